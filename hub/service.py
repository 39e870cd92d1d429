"""The hub: one loop that opens a version, collects updates, closes it and publishes the next.

Updates are checked in full when they arrive and kept compressed on disk until the version closes.
What has been acknowledged is in the ledger first, so a hub that is killed carries on in the
version it was in.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from pathlib import Path

import msgspec

from federation import messages
from federation.connection.probe import PACKET_BYTES
from federation.connection.session import Connected, Disconnected, Event, Received, Session
from federation.messages import (
    AgentState,
    Done,
    Get,
    HubState,
    HubStatus,
    Offer,
    Receipt,
    Reject,
    Renew,
    Vote,
)
from federation.refusals import Refusals
from federation.topics import ChunkRoute, HubRoute, MessageRoute, StateRoute, Topics
from federation.transfer.blobs import BlobStore
from federation.transfer.download import serve
from federation.transfer.receive import UploadReceiver
from ffm_common.errors import (
    BrokerLimit,
    FfmError,
    LedgerBroken,
    MessageInvalid,
    WireError,
)
from ffm_common.files import make_folder
from ffm_common.health import Health
from ffm_common.lock import FolderLock
from hub.announcing import ANNOUNCE_S, Announcer
from hub.broker import Broker
from hub.config import Located
from hub.intake import Intake
from hub.making.maker import Made, Maker
from hub.making.public_files import PublicFiles
from hub.meter import Meter
from hub.presence import GONE, Presence
from hub.release.shelf import Shelf
from hub.rounds import Round
from hub.selection import Selection
from hub.switching.idle import Quiet
from hub.switching.policy import policy_of
from hub.task import task_of
from hub.telling import outcome, tell
from hub.trouble import Trouble
from hub.trust.conduct import Conduct
from hub.trust.reception import Reception
from hub.trust.trusting import BROKER, Trusting
from hub.versions import devices
from hub.versions.ledger import Ledger, VersionRow, VoteRow
from hub.versions.record import decode, encode
from hub.versions.registry import Registry
from learning import engines
from learning.trainer import Measure
from profiles import profile as profiles

log = logging.getLogger("ffm.hub")

_TICK_S = 0.2
_FAREWELL_S = 20.0
_REUNION_S = 45.0
_INSPECT_S = 600.0
_ASK_S = 1.0
_PATIENCE_S = 60.0
_MAX_UPDATE_BYTES = 1 << 30


class Hub:
    """One federation's hub.

    Parameters
    ----------
    located
        Its configuration.

    Raises
    ------
    ModelMissing, ModelDigest, DataError, ProfileUnknown, LedgerBroken, IdentityBroken,
    PathUnwritable, FolderBusy
        What it needs is not there; nothing has been started.
    """

    def __init__(self, located: Located) -> None:
        self._config = located.config
        self._base = engines.verify(located.base)
        self._profile = profiles.load(self._config.profile)
        self._task = task_of(located)
        engines.require_task(self._base, self._task)
        public = self._config.public
        self._public = PublicFiles(
            located.train,
            self._task,
            but=located.evaluation,
            text=public.text,
            label=public.label,
        )
        self._policy = policy_of(public.policy)
        self._folder = make_folder(located.folder)
        with contextlib.ExitStack() as undo:
            self._lock = FolderLock(self._folder)
            undo.callback(self._lock.close)
            self._health = Health(self._folder)
            self._ledger = Ledger(self._folder / "ledger.db")
            undo.callback(self._ledger.close)
            self._check_same_federation()
            self._trusting = Trusting(located)
            undo.pop_all()
        self._boot = self._ledger.boot()
        self._store = BlobStore(self._folder / "blobs")
        self._topics = Topics(self._config.federation)
        self._refusals = Refusals(log, self._topics)
        self._broker = Broker(
            self._folder / BROKER,
            kind=self._config.broker.choice,
            host=located.broker.host,
            port=located.broker.port,
            carrier=located.broker.carrier,
            access=self._trusting.access,
        )
        self._warden = self._trusting.warden(self._broker, self._topics)
        self._conduct = Conduct(
            self._trusting.voice,
            self._ledger,
            self._topics,
            enrolled=self._trusting.enrolled,
            vouched=self._trusting.vouched,
        )
        self._session: Session
        self._announcer: Announcer
        self._receiver: UploadReceiver
        self._meter: Meter
        self._trouble = Trouble()
        self._registry = Registry(
            self._folder / "versions",
            self._folder / "carried",
            self._ledger,
            self._store,
            self._base.base_digest,
        )
        enrolled = self._trusting.enrolled
        self._shelf = Shelf(located, self._store, self._ledger, enrolled=enrolled)
        self._inspect_at = time.monotonic() + _INSPECT_S
        self._intake = Intake(
            self._registry,
            self._ledger,
            self._store,
            self._task.adapter,
            self._base.base_digest,
            rules=self._config.versions,
            unseal=self._trusting.unseal,
        )
        self._maker = Maker(
            located,
            self._base.base_digest,
            self._task,
            self._profile,
            folder=self._folder / "work",
            registry=self._registry,
            ledger=self._ledger,
            public=self._public,
        )
        self._round = Round(self._config.versions, (), ())
        self._selection = Selection(self._ledger, self._config.versions, self._task)
        self._stand_in_at = float("-inf")
        self._quiet = Quiet(time.monotonic())
        self._ask_at = float("-inf")
        self._reception = Reception(located, self._trusting)
        self._presence = Presence(self._ledger, signed=self._trusting.enrolled)
        self._unopened: VersionRow | None = None
        self._finished_at: float | None = None
        self._farewell: list[str] = []
        self._stopping = False

    def stop(self) -> None:
        """Ask the loop to end; may be called from a signal handler."""
        self._stopping = True

    def run(self) -> None:
        """Serve until `stop`, or until the last version is fetched if so configured."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._lock.close)
            stack.callback(self._health.close)
            stack.callback(self._ledger.close)
            stack.callback(self._trusting.close)
            stack.callback(self._broker.stop)
            if self._warden is not None:
                self._warden.prepare(time.monotonic(), self._conduct.held())
            self._broker.start()
            log.info("broker: %s at %s:%d", self._broker.kind, self._broker.host, self._broker.port)
            stack.callback(self._reception.close)
            self._reception.open(self._broker)
            self._connect()
            stack.callback(self._leave)
            self._resume()
            while not self._stopping and not self._farewell_over():
                self._listen()
                now = time.monotonic()
                for turn in (
                    self._tend_broker,
                    lambda now=now: self._shut_out(now),
                    lambda now=now: self._receiver.tick(now),
                    lambda now=now: self._take_made(now),
                    self._open_next,
                    lambda now=now: self._close_version(now),
                    lambda now=now: self._stand_in(now),
                    lambda now=now: self._measure(now),
                    lambda now=now: self._inspect(now),
                    lambda now=now: self._public.look(now),
                    lambda now=now: self._shelf.look(now, self._session),
                ):
                    with self._trouble.contained():
                        turn()
                trouble = self._trouble.line or self._maker.trouble or self._public.trouble
                self._announcer.tell(now, trouble or self._maker.rollbacks.trouble)
                state = self._announcer.state
                self._health.beat(
                    status=state.status,
                    detail=trouble or state.detail,
                    connected=self._session.connected,
                )

    def _listen(self) -> None:
        """Take in what has come, for a moment: a flood of messages must not stop the clock."""
        until, wait = time.monotonic() + 2 * _TICK_S, _TICK_S
        while time.monotonic() < until:
            with self._trouble.contained():  # to believe somebody, the disk is asked for his key
                event = self._session.next(wait)
                if event is None:
                    return
                self._on_event(event)
            wait = 0

    # -- start ----------------------------------------------------------------------------------

    def _check_same_federation(self) -> None:
        """Refuse a state folder that was made for another task or base."""
        mine = msgspec.json.encode((self._base.base_digest, self._task)).decode()
        if self._ledger.pin("federation", mine) != mine:
            raise LedgerBroken(
                f"{self._folder} belongs to a federation with another base, labels or training",
                remedy="restore that configuration, or name another folder in hub.toml",
            )

    def _connect(self) -> None:
        will = messages.encode(HubState(status="lost", boot=self._boot))
        self._session = Session(
            self._broker.host,
            self._broker.port,
            f"{self._config.federation}..hub",
            subscriptions=self._topics.for_hub(),
            will=(self._topics.hub_state, will),
            carrier=self._broker.carrier,
            echo=self._topics.hub_state,
            patience=_PATIENCE_S,
            voice=self._conduct,
            refusals=self._refusals,
        )
        self._announcer = Announcer(
            self._session,
            self._config,
            self._task,
            self._base.base_digest,
            registry=self._registry,
            ledger=self._ledger,
            selection=self._selection,
            state=HubState(status="starting", boot=self._boot),
            numbered=self._trusting.enrolled,
        )
        self._receiver = UploadReceiver(
            self._folder / "incoming",
            self._topics,
            self._session.publish,
            self._intake.admit,
            self._accept,
            max_bytes=_MAX_UPDATE_BYTES,
            max_in_flight=self._config.network.in_flight_mb << 20,
        )

    def _leave(self) -> None:
        """End what the loop has started."""
        self._maker.close()
        self._announcer.take_leave()
        self._session.close()

    def _resume(self) -> None:
        """Carry on from the last version in the ledger, or have the first one made."""
        current = self._registry.current
        if current is None:
            log.info("no version yet: making version 0")
            self._meter = Meter(self._ledger, self._session, 0)
            return
        log.info("carrying on from version %d", current.version)
        # Agents were cut off, too: their longest pause between two attempts may have just begun.
        self._open_version(current, patience=_REUNION_S)

    def _open_version(self, row: VersionRow, *, patience: float = 0.0) -> None:
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
            self._expect(agent, now, patience)
        last = self._config.versions.count
        finished = bool(last) and row.version >= last
        if finished:
            self._finished_at = now
            # Right after a restart nobody is there yet: then all who ever were are waited for.
            self._farewell = sorted(self._presence.here) or self._ledger.agents()
        self._intake.open = not finished and self._closing(row.version) is None
        self._receiver.review()
        self._set("finished" if finished else "open", row.version, outcome(decode(row.record)))
        self._publish_manifest()

    def _open_next(self) -> None:
        """Open the version that was committed last; where the disk hinders that, later."""
        if self._unopened is not None:
            self._open_version(self._unopened)
            self._unopened = None

    # -- events ---------------------------------------------------------------------------------

    def _on_event(self, event: Event) -> None:
        match event:
            case Connected(packet_limit=limit):
                if limit is not None and limit < PACKET_BYTES:
                    log.error("%s", BrokerLimit(f"the broker takes {limit} bytes a packet").line())
                self._announcer.repeat()
                self._publish_manifest()
                self._shelf.repeat()
            case Disconnected(reason=reason):
                log.warning("lost the broker (%s); reconnecting", reason)
            case Received(topic=topic, payload=payload):
                try:
                    self._on_message(topic, payload)
                except WireError as error:
                    self._refusals.note(topic, error)
                    self._conduct.refused(topic, error)
            case _:
                pass

    def _tend_broker(self) -> None:
        self._broker.tend(time.monotonic(), in_touch=self._session.connected)

    def _shut_out(self, now: float) -> None:
        """See to it that nobody waits for who was revoked, or is in quarantine."""
        session = self._session
        out = self._conduct.look(now, session.publish)
        for agent in out:
            self._presence.miss(agent)
        if self._warden is not None:
            held, here = self._conduct.held(), session.connected
            revoked = self._warden.look(now, session.clear, in_touch=here, held=held)
            for agent in revoked:
                self._presence.forget(agent)
            out += revoked
        for agent in out:
            self._receiver.release(agent)
            if self._round.knows(agent):
                self._expect(agent, now)

    def _on_message(self, topic: str, payload: bytes) -> None:
        route = self._topics.parse(topic)
        if isinstance(route, MessageRoute):
            # Who speaks is there, even where a late last will of a dead link said otherwise.
            self._round.arrive(route.agent, time.monotonic())
        match route:
            case StateRoute(agent=agent):
                self._on_state(agent, messages.decode(payload, AgentState))
            case MessageRoute(agent=agent, kind="offer"):
                self._receiver.on_offer(agent, messages.decode(payload, Offer))
            case MessageRoute(agent=agent, kind="get"):
                get = messages.decode(payload, Get)
                ours = any(row.blob == get.digest for row in self._registry.chain)
                if ours and not self._store.has(get.digest):
                    self._inspect_at = 0.0
                store = self._shelf.store(get.digest)
                sent = serve(self._topics, agent, get, store, self._session.publish)
                whole = self._registry.chunks + self._shelf.chunks
                self._conduct.fetched(agent, sent, whole)
            case MessageRoute(agent=agent, kind="renew"):
                asked = messages.decode(payload, Renew)
                self._reception.renew(agent, asked, self._session.publish)
            case MessageRoute(agent=agent, kind="vote"):
                self._on_vote(agent, messages.decode(payload, Vote))
            case ChunkRoute(agent=agent, digest=digest, index=index):
                if wasted := self._receiver.on_chunk(agent, digest, index, payload):
                    self._conduct.wasted(agent, wasted)
                else:
                    self._round.arrive(agent, time.monotonic())
            case HubRoute(kind="state"):
                if messages.decode(payload, HubState).status in GONE:
                    self._announcer.repeat()  # the last will of a link that is no more
            case other:
                raise MessageInvalid(f"{other} is not for the hub")

    def _on_state(self, agent: str, state: AgentState) -> None:
        if not self._presence.hear(agent, state):
            return
        if agent not in self._presence.here:
            self._receiver.release(agent)
        self._expect(agent, time.monotonic())

    def _on_vote(self, agent: str, vote: Vote) -> None:
        """Note what a device says of a version; the ledger holds one vote for each of both."""
        current = self._registry.current
        if current is None or vote.version > current.version or agent not in self._ledger.agents():
            raise MessageInvalid(f"no such agent or version: {agent} votes on {vote.version}")
        said = msgspec.structs.asdict(vote)
        self._ledger.add_vote(VoteRow(agent=agent, received=time.time(), **said))

    def _expect(self, agent: str, now: float, patience: float = 0.0) -> None:
        """Tell the round whether an agent may still deliver; one that failed or pauses may not."""
        if self._presence.able(agent):
            self._round.arrive(agent, now)
        else:
            self._round.vanish(agent, now + (0 if self._conduct.holds(agent) else patience))

    # -- versions -------------------------------------------------------------------------------

    def _accept(self, agent: str, offer: Offer, path: Path) -> Receipt:
        """Take a whole update in; the round hears of those that count for the open version."""
        receipt, state = self._intake.accept(agent, offer, path), self._announcer.state
        if isinstance(receipt, Done) and self._ledger.speaks(agent, state.version):
            self._round.deliver(agent)
            self._set(state.status, state.version, state.detail)
        if isinstance(receipt, Reject):
            self._conduct.bad_update(agent, receipt.code)
        return receipt

    def _stand_in(self, now: float) -> None:
        """Ask others to train where those that are asked do not come, or are too few."""
        if now < self._stand_in_at or self._announcer.state.status != "open":
            return
        self._stand_in_at = now + ANNOUNCE_S  # one manifest for many that arrive
        missing = self._round.missing(now)
        if self._selection.stand_in(self._presence.here, missing, self._round.open_s(now)):
            self._round.ask(self._selection.chosen or ())
            self._publish_manifest()

    def _closing(self, version: int) -> str | None:
        """Give why a version has closed; written down first, so that a restart closes it alike."""
        return self._ledger.pinned(f"closed/{version}")

    def _close_version(self, now: float) -> None:
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
            self._mend()
        if self._maker.make(counted, now):
            log.info("version %d closes with %d updates (%s)", row.version, len(counted), reason)
            said = devices.describe(devices.summary(self._ledger.votes(row.version)))
            log.info("version %d on devices' own data: %s", row.version, said)

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

    def _take_made(self, now: float) -> None:
        """Commit a version that is ready, and open it; one that cannot be kept is made again."""
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

    def _measure(self, now: float) -> None:
        """Write down now and then what the version in the making has cost."""
        self._meter.tick(now, min(self._round.open_s(now), self._config.versions.deadline_s))

    def _inspect(self, now: float) -> None:
        """Now and then, look whether what agents fetch is still whole on the disk."""
        if now < self._inspect_at:
            return
        self._inspect_at = now + _INSPECT_S
        self._mend()

    def _mend(self) -> None:
        """Make good what has been spoiled of the current version, and say where it is now."""
        if self._registry.mend():
            self._publish_manifest()

    # -- what others see ------------------------------------------------------------------------

    def _publish_manifest(self) -> None:
        self._announcer.manifest(open=self._finished_at is None)

    def _set(self, status: HubStatus, version: int, detail: str = "") -> None:
        self._announcer.set(
            status=status,
            version=version,
            updates=self._round.delivered,
            expected=self._round.expected,
            detail=detail,
        )

    def _farewell_over(self) -> bool:
        """Tell whether the last version is where it should be and the hub may end."""
        stays = self._maker.busy or not self._config.versions.exit_when_done
        if self._finished_at is None or stays:
            return False
        last = self._announcer.state.version
        here = self._presence.here
        everyone = all(agent in here and here[agent].version >= last for agent in self._farewell)
        return everyone or time.monotonic() - self._finished_at > _FAREWELL_S
