"""The coordinator of rounds: it opens a version, waits for its updates, and commits the next.

It says when; what may come is `Intake`'s to judge, and versions are made by `Maker`. All that it
has decided is in the ledger first, so a hub that is killed carries on in the version it was in.
The name is that of Bonawitz et al. 2019, *Towards Federated Learning at Scale* (section 4).
"""

from __future__ import annotations

import logging
import math
import time

from federation.connection.session import Session
from federation.messages import HubStatus
from federation.transfer.receive import UploadReceiver
from ffm_common.errors import FfmError
from hub.announcing import ANNOUNCE_S, Announcer
from hub.config import HubConfig
from hub.intake import Intake
from hub.making.maker import Made, Maker
from hub.making.public_files import PublicFiles
from hub.meter import Meter
from hub.presence import Presence
from hub.rounds import Round
from hub.selection import Selection
from hub.switching.idle import Quiet
from hub.switching.policy import policy_of
from hub.telling import outcome, tell
from hub.trust.conduct import Conduct
from hub.versions import devices
from hub.versions.ledger import Ledger, VersionRow
from hub.versions.record import decode, encode
from hub.versions.registry import Registry
from learning.trainer import Measure

log = logging.getLogger("ffm.hub")

_FAREWELL_S = 20.0
_REUNION_S = 45.0
_ASK_S = 1.0


class Coordinator:
    """Leads a federation from version to version.

    Each method that begins a piece of work may raise StorageError: what the disk hinders is left
    undone, and tried again by the next call.

    Parameters
    ----------
    config
        The hub's.
    registry, ledger
        The versions that there are, and what is counted for them.
    session
        Counts what a version costs.
    announcer
        Tells everybody which version is open.
    intake, receiver
        Judges updates; has those that wait judged anew, when a version opens or closes.
    maker, public
        Makes versions; the public data that may be a reason for one.
    selection, presence, conduct
        Who is asked to train, who is there, and who is not heard.
    """

    def __init__(
        self,
        config: HubConfig,
        *,
        registry: Registry,
        ledger: Ledger,
        session: Session,
        announcer: Announcer,
        intake: Intake,
        receiver: UploadReceiver,
        maker: Maker,
        public: PublicFiles,
        selection: Selection,
        presence: Presence,
        conduct: Conduct,
    ) -> None:
        self._config = config
        self._policy = policy_of(config.public.policy)
        self._registry = registry
        self._ledger = ledger
        self._session = session
        self._announcer = announcer
        self._intake = intake
        self._receiver = receiver
        self._maker = maker
        self._public = public
        self._selection = selection
        self._presence = presence
        self._conduct = conduct
        self._round = Round(config.versions, (), ())
        self._meter: Meter
        self._quiet = Quiet(time.monotonic())
        self._stand_in_at = self._ask_at = float("-inf")
        self._unopened: VersionRow | None = None
        self._finished_at: float | None = None
        self._farewell: list[str] = []

    # -- a version opens ------------------------------------------------------------------------

    def resume(self) -> None:
        """Carry on from the last version in the ledger, or have the first one made."""
        current = self._registry.current
        if current is None:
            log.info("no version yet: making version 0")
            self._meter = Meter(self._ledger, self._session, 0)
            return
        log.info("carrying on from version %d", current.version)
        # Agents were cut off, too: their longest pause between two attempts may have just begun.
        self.open(current, patience=_REUNION_S)

    def open(self, row: VersionRow, *, patience: float = 0.0) -> None:
        """Publish a version and collect the updates made from it.

        Agents that are not there count as lost `patience` seconds from now.
        """
        counted = self._ledger.updates(row.version)
        self._meter = Meter(self._ledger, self._session, row.version + 1)
        self._selection.begin(row.version, self._presence.here)
        self._round = Round(
            self._config.versions,
            self._ledger.agents(),
            [update.agent for update in counted if update.fault is None],
            open_s=self._meter.open_before_s,
            asked=self._selection.chosen,
        )
        now = time.monotonic()
        self._quiet = Quiet(now + patience)
        for agent in self._ledger.agents():
            self.expect(agent, now, patience)
        last = self._config.versions.count
        finished = bool(last) and row.version >= last
        if finished:
            self._finished_at = now
            # Right after a restart nobody is there yet: then all who ever were are waited for.
            self._farewell = sorted(self._presence.here) or self._ledger.agents()
        self._intake.open = not finished and self._closing(row.version) is None
        self._receiver.review()
        self._set("finished" if finished else "open", row.version, outcome(decode(row.record)))
        self.announce()

    def open_next(self) -> None:
        """Open the version that was committed last; where the disk hinders that, later."""
        if self._unopened is not None:
            self.open(self._unopened)
            self._unopened = None

    def announce(self) -> None:
        """Publish the manifest of the current version."""
        self._announcer.manifest(open=self._finished_at is None)

    def mend(self) -> None:
        """Make good what has been spoiled of the current version, and say where it is now."""
        if self._registry.mend():
            self.announce()

    # -- whom it waits for ----------------------------------------------------------------------

    def arrive(self, agent: str) -> None:
        """Note that an agent is there and may work on the version."""
        self._round.arrive(agent, time.monotonic())

    def expect(self, agent: str, now: float, patience: float = 0.0) -> None:
        """Note whether an agent may still deliver; one that failed or pauses may not."""
        if self._presence.able(agent):
            self._round.arrive(agent, now)
        else:
            self._round.vanish(agent, now + (0 if self._conduct.holds(agent) else patience))

    def shut_out(self, agent: str, now: float) -> None:
        """Wait no more for an agent that is not heard any more, if it is waited for."""
        if self._round.knows(agent):
            self.expect(agent, now)

    def deliver(self, agent: str) -> None:
        """Note that an update of an agent is counted: for the open version, or for the next."""
        state = self._announcer.state
        if self._ledger.speaks(agent, state.version):
            self._round.deliver(agent)
            self._set(state.status, state.version, state.detail)

    def stand_in(self, now: float) -> None:
        """Ask others to train where those that are asked do not come, or are too few."""
        if now < self._stand_in_at or self._announcer.state.status != "open":
            return
        self._stand_in_at = now + ANNOUNCE_S  # one manifest for many that arrive
        missing = self._round.missing(now)
        if self._selection.stand_in(self._presence.here, missing, self._round.open_s(now)):
            self._round.ask(self._selection.chosen or ())
            self.announce()

    def measure(self, now: float) -> None:
        """Write down now and then what the version in the making has cost."""
        self._meter.tick(now, min(self._round.open_s(now), self._config.versions.deadline_s))

    # -- a version closes -----------------------------------------------------------------------

    def close_version(self, now: float) -> None:
        """Have the next version made when the current one is due, or the very first."""
        row = self._registry.current
        if self._unopened is not None or not self._maker.ready(now):
            return
        if row is None:
            self._maker.make((), now)
            return
        finished, due = self._finished_at is not None, None
        reason = None if finished else self._closing(row.version)
        if reason is None:
            if not finished:
                due = self._round.reason_to_close(now) or self._reason_to_go_alone(now)
            reason = self._maker.rollbacks.reason(row, due, now)
        if reason is None:
            return
        self._ledger.pin(f"closed/{row.version}", reason)
        self._intake.open = False
        self._receiver.review()
        self._set("closing", row.version, detail=reason)
        counted = self._intake.counted(row.version)
        if self._maker.trouble:  # the last attempt may have failed for what has been spoiled here
            self.mend()
        if self._maker.make(counted, now):
            log.info("version %d closes with %d updates (%s)", row.version, len(counted), reason)
            said = devices.describe(devices.summary(self._ledger.votes(row.version)))
            log.info("version %d on devices' own data: %s", row.version, said)

    def _closing(self, version: int) -> str | None:
        """Give why a version has closed; written down first, so that a restart closes it alike."""
        return self._ledger.pinned(f"closed/{version}")

    def _reason_to_go_alone(self, now: float) -> str | None:
        """Say why the hub makes the next version of public data alone; None while it waits."""
        at_work = any(map(self._presence.able, self._presence.here))
        self._quiet.look(now, at_work=at_work)
        if at_work or self._policy.kind != "adaptive" or now < self._ask_at:
            return None
        self._ask_at = now + _ASK_S
        record, _ = self._maker.past()
        return self._quiet.reason_to_go_alone(
            now,
            self._policy,
            record.state,
            [file.new for file in self._public.files(record.files)],
            taken_back=record.decision is None,
            counted=self._round.delivered,
            deadline_s=self._config.versions.deadline_s,
            grace_s=self._config.versions.grace_s,
        )

    # -- the next is there ----------------------------------------------------------------------

    def take_made(self, now: float) -> None:
        """Commit a version that is ready; one that cannot be kept is made again."""
        made = self._maker.poll(now)
        if made is None:
            return
        try:
            row = self._commit(made)
        except FfmError as error:
            self._maker.fail(error, now)
            return
        self._maker.clear()
        self._unopened = row

    def _commit(self, made: Made) -> VersionRow:
        version, spent, result = self._registry.next, self._meter.spent(), made.result
        measure: Measure | VersionRow | None = result.measure
        if result.restored is not None:  # the same content was measured then
            measure = self._ledger.version(result.restored)
        row = VersionRow(
            version=version,
            blob=self._registry.keep_blob(made.blob),
            size=len(made.blob),
            kind=result.kind,
            error=result.error,
            accuracy=math.nan if measure is None else measure.accuracy,
            loss=math.nan if measure is None else measure.loss,
            updates=result.updates,
            closed_because=self._closing(version - 1) or "start",
            tail=result.tail,
            uplink_bytes=spent.uplink_bytes,
            downlink_bytes=spent.downlink_bytes,
            seconds=spent.seconds,
            created=time.time(),
            content=result.content,
            carried=result.carried,
            record=encode(result.record),
        )
        self._registry.commit(row, made.adapter, made.carried, result.left_out)
        tell(row, result)
        return row

    @property
    def over(self) -> bool:
        """Whether the last version is where it should be, and the hub may end if so configured."""
        stays = self._maker.busy or not self._config.versions.exit_when_done
        if self._finished_at is None or stays:
            return False
        last = self._announcer.state.version
        here = self._presence.here
        everyone = all(agent in here and here[agent].version >= last for agent in self._farewell)
        return everyone or time.monotonic() - self._finished_at > _FAREWELL_S

    def _set(self, status: HubStatus, version: int, detail: str = "") -> None:
        self._announcer.set(
            status=status,
            version=version,
            updates=self._round.delivered,
            expected=self._round.expected,
            detail=detail,
        )
