"""The agent's supervisor: one thread, one loop, no torch.

It listens for the hub's manifest, fetches the version, has the worker train from it, and offers
the update until the hub's receipt is there. Everything it must not forget is on disk before it is
acted on, so a kill at any moment costs at most the steps since the worker's last checkpoint.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time

import msgspec

from edge_agent.announcing import Announcer
from edge_agent.belonging import Belonging
from edge_agent.care import Care
from edge_agent.config import Located
from edge_agent.enrolment.renewing import Renewal
from edge_agent.journal import Journal
from edge_agent.residuals import Residuals
from edge_agent.staleness import welcome
from edge_agent.training import Trained, Training
from edge_agent.update.updating import Updating
from federation import messages
from federation.connection.identity import Identity
from federation.connection.probe import PACKET_BYTES
from federation.connection.session import Acked, Connected, Disconnected, Event, Received, Session
from federation.messages import (
    AgentState,
    AgentStatus,
    Done,
    Gone,
    HubState,
    InQuarantine,
    Manifest,
    Need,
    Offer,
    Receipt,
    Reject,
    Release,
    Vote,
)
from federation.pace import Throttle
from federation.refusals import Refusals
from federation.topics import ChunkRoute, ClaimRoute, HubRoute, MessageRoute, Topics
from federation.transfer.blobs import BlobStore
from federation.transfer.download import Downloader
from federation.transfer.outbox import Outbox
from federation.transfer.upload import Uploader
from federation.trust.membership import Credentials
from ffm_common.errors import (
    BlobOversize,
    BrokerLimit,
    FfmError,
    MessageInvalid,
    MessageStale,
    Quarantined,
    StorageError,
    WireError,
)
from ffm_common.files import make_folder
from ffm_common.health import Health
from ffm_common.lock import FolderLock
from ffm_common.restarts import Budget
from ffm_launch import RESTART
from learning import engines
from profiles import profile as profiles
from profiles.sensors import Root

log = logging.getLogger("ffm.agent")

_BUSY_TICK_S, _IDLE_TICK_S = 0.2, 1.0
_PATIENCE_S = 60.0
_MAX_VERSION_BYTES = 1 << 30
_BYTES_PER_KBIT = 125
_ANSWERS: dict[str, type[Need | Done | Reject]] = {"need": Need, "done": Done, "reject": Reject}


class Supervisor:
    """One agent.

    Parameters
    ----------
    located
        Its configuration.

    Raises
    ------
    ModelMissing, ModelDigest
        The base folder is not there or has been altered.
    ProfileUnknown
        No such profile.
    FolderBusy
        The same agent runs already.
    IdentityTaken
        Raised by `run`: another device has the same id.
    """

    def __init__(self, located: Located) -> None:
        self._config = located.config
        self._where = located
        self._base = engines.verify(located.base)
        self._profile = profiles.load(self._config.profile)
        folder = make_folder(located.folder)
        self._belonging = Belonging(located)
        self._lock = FolderLock(folder)
        self._health = Health(folder)
        self._journal = Journal(folder / "journal.json")
        self._boot = self._journal.boot()
        self._store = BlobStore(folder / "blobs")
        self._outbox = Outbox(folder / "outbox")
        self._residuals = Residuals(folder / "residuals")
        self._training = Training(
            located,
            self._base.base_digest,
            self._profile,
            work=folder / "work",
            calibration=located.calibration,
            seal=self._belonging.seal,
        )
        self._care = Care(
            self._profile,
            root=Root(located.board),
            folder=folder,
            interval_s=self._config.meter.interval_s,
        )
        self._topics = Topics(self._config.federation)
        self._refusals = Refusals(log, self._topics)
        state = AgentState(status="starting", boot=self._boot, profile=self._profile.name)
        state_topic = self._topics.agent_state(self._config.id)
        will = messages.encode(msgspec.structs.replace(state, status="lost"))
        self._session = Session(
            located.broker.host,
            located.broker.port,
            # Dots stand in no name: two federations, or an agent called hub, never collide.
            f"{self._config.federation}.{self._config.id}",
            subscriptions=self._topics.for_agent(self._config.id),
            will=(state_topic, will),
            carrier=located.broker.carrier,
            echo=self._topics.claim(self._config.id),
            patience=_PATIENCE_S,
            voice=self._belonging.voice,
            refusals=self._refusals,
            explain=self._belonging.explain,
        )
        self._renewal = Renewal(located.identity, self._topics, self._session.publish)
        self._announcer = Announcer(self._session, state_topic, state)
        since = self._journal.entry.since
        self._identity = Identity(self._config.id, since=since, boot=self._boot)
        downlink = Throttle(self._profile.downlink_kbit_s * _BYTES_PER_KBIT)
        self._downloader = Downloader(
            self._topics,
            self._config.id,
            self._store,
            self._session.publish,
            on_complete=self._on_version,
            on_gone=self._on_gone,
            max_bytes=_MAX_VERSION_BYTES,
            throttle=downlink,
        )
        self._updating = Updating(
            located,
            self._journal,
            topics=self._topics,
            publish=self._session.publish,
            throttle=downlink,
            tell=lambda line: self._rest(detail=line),
        )
        self._uploader = Uploader(
            self._topics,
            self._config.id,
            self._outbox,
            self._session.publish,
            self._on_receipt,
            throttle=Throttle(self._profile.uplink_kbit_s * _BYTES_PER_KBIT),
        )
        self._manifest: Manifest | None = None
        self._vote: Vote | None = None
        self._quarantine: InQuarantine | None = None
        self._hub_there, self._hub_boot = True, 0
        self._issued = self._journal.issued(self._belonging.hub)
        self._silent = self._pausing = self._limited = False
        self._budget = Budget()
        self._stopping = False

    def stop(self) -> None:
        """Ask the loop to end; may be called from a signal handler."""
        self._stopping = True

    def run(self) -> None:
        """Work until `stop`."""
        log.info("agent %s, profile %s", self._config.id, self._profile.name)
        try:
            while not (self._stopping or self._updating.switched):
                status = self._announcer.state.status
                busy = self._training.running or self._updating.busy
                busy = busy or status in {"downloading", "uploading"}
                event = self._session.next(_BUSY_TICK_S if busy else _IDLE_TICK_S)
                while event is not None:
                    self._on_event(event)
                    event = self._session.next(0)
                now = time.monotonic()
                self._renewal.tick(now, connected=self._session.connected)
                self._look_after_board(now)
                self._downloader.tick(now)
                self._uploader.tick(now)
                self._tend_training(now)
                self._update(now)
                self._begin_training(now)
                self._announcer.tell(now)
                state = self._announcer.state
                self._health.beat(
                    status=state.status, detail=state.detail, connected=self._session.connected
                )
        finally:
            self._health.close()
            self._training.close()
            self._updating.close()
            if not self._identity.lost:  # or it would be said of who has the id
                self._announcer.take_leave()
            self._session.close()
            self._outbox.close()
            self._care.close()
            self._lock.close()
        if self._updating.switched:
            sys.exit(RESTART)

    # -- events ---------------------------------------------------------------------------------

    def _on_event(self, event: Event) -> None:
        match event:
            case Connected(packet_limit=limit):
                log.info("connected to the broker")
                self._announcer.repeat()
                self._claim()
                self._heed_limit(limit)
                self._move_on()
            case Disconnected(reason=reason):
                log.warning("lost the broker (%s); reconnecting", reason)
                self._hold()
            case Acked(mid=mid):
                self._uploader.on_acked(mid)
            case Received(topic=topic, payload=payload):
                try:
                    self._on_message(topic, payload)
                except WireError as error:
                    self._refusals.note(topic, error)
                except StorageError as error:  # a full disk: it is asked for again, later
                    self._give_up(error.message)

    def _on_message(self, topic: str, payload: bytes) -> None:
        match self._topics.parse(topic):
            case HubRoute(kind="manifest"):
                self._on_manifest(messages.decode(payload, Manifest))
            case ClaimRoute():
                if self._identity.hear(payload):
                    self._claim()
            case HubRoute(kind="state"):
                self._on_hub(messages.decode(payload, HubState))
            case ChunkRoute(digest=digest, index=index):
                self._downloader.on_chunk(digest, index, payload)
                self._updating.on_chunk(digest, index, payload)
            case MessageRoute(kind="gone"):
                gone = messages.decode(payload, Gone)
                self._downloader.on_gone(gone)
                self._updating.on_gone(gone)
            case HubRoute(kind="release"):
                self._updating.on_release(messages.decode(payload, Release))
            case MessageRoute(kind="quarantine"):
                self._on_quarantine(messages.decode(payload, InQuarantine))
            case MessageRoute(kind="certificate"):
                self._renewal.on_certificate(messages.decode(payload, Credentials))
            case MessageRoute(kind=kind) if kind in _ANSWERS:
                self._uploader.on_message(messages.decode(payload, _ANSWERS[kind]))
            case other:
                raise MessageInvalid(f"{other} is not for an agent")

    def _on_hub(self, hub: HubState) -> None:
        """Talk to the hub only while it is there, and start over when it is back."""
        there = hub.status not in {"lost", "left"}
        if not there and hub.boot < self._hub_boot:
            return  # the last will of an earlier life
        another = 0 < self._hub_boot < hub.boot
        self._hub_boot = max(self._hub_boot, hub.boot)
        if there and (another or not self._hub_there):
            self._move_on()
        elif not there:
            log.warning("the hub is gone (%s)", hub.status)
            self._hold()
        self._hub_there = there
        if there:
            self._updating.heard_hub()

    def _on_quarantine(self, said: InQuarantine) -> None:
        """Tell the person at the log; what is offered meanwhile costs little, and counts later."""
        if said != self._quarantine:
            self._quarantine = said
            why = f"the hub does not hear us for {said.seconds / 60:.0f} min: {said.why}"
            log.error("%s", Quarantined(why).line())

    def _claim(self) -> None:
        topic = self._topics.claim(self._config.id)
        self._session.publish(topic, self._identity.claim, retain=True)

    def _heed_limit(self, limit: int | None) -> None:
        """Hold still at a broker that hangs up on chunks: each attempt would end the connection."""
        limited = limit is not None and limit < PACKET_BYTES
        if limited:
            self._give_up(BrokerLimit(f"the broker takes {limit} bytes a packet").line())
            self._hold()
        elif self._limited:
            self._rest(detail="")
        self._limited = limited

    def _move_on(self) -> None:
        if self._mute:
            return
        self._uploader.on_connected()
        self._downloader.on_connected()
        self._updating.on_connected()
        self._say_vote()

    @property
    def _mute(self) -> bool:
        """Whether the profile, or the broker's limit, has it say nothing."""
        return self._silent or self._limited

    def _hold(self) -> None:
        self._uploader.hold()
        self._downloader.hold()
        self._updating.hold()

    def _on_manifest(self, manifest: Manifest) -> None:
        if manifest.federation != self._config.federation:
            raise MessageInvalid(f"manifest of federation {manifest.federation!r}")
        self._check_age(manifest)
        # Said again, it may ask for another spread; that alone is no reason to start over.
        spread_s = manifest.spread_s
        manifest = msgspec.structs.replace(manifest, spread_s=0.0, issued=0)
        if self._manifest == manifest:
            return
        if self._belonging.enrolled:
            with contextlib.suppress(StorageError):  # a full disk: it is known until the next start
                self._journal.set_issued(self._belonging.hub, self._issued)
        self._manifest = manifest
        begun = self._training.begun
        if self._training.running and begun is not None:
            if welcome(begun, manifest):
                log.info("version %d is out, going on with %d", manifest.version, begun.version)
            else:
                log.info("version %d is out, dropping the work on an older one", manifest.version)
                self._training.close()
        self._budget.renew()
        if manifest.base != self._base.base_digest:
            self._give_up("the federation uses another base model [model-digest]")
            return
        self._sweep(manifest)
        if not self._training.running:
            self._set("downloading", detail="")
        try:
            self._downloader.want(manifest.chain, spread_s=spread_s)
        except BlobOversize as error:
            self._give_up(error.message)

    def _check_age(self, manifest: Manifest) -> None:
        """Refuse a manifest that is older than another: a version must not come back by itself."""
        if not self._belonging.enrolled:
            return
        if manifest.issued < self._issued:
            raise MessageStale(
                f"the manifest of version {manifest.version} is older than one heard before",
                remedy="nothing to do; if no other comes, set the clock of the hub's machine right",
            )
        self._issued = manifest.issued

    def _on_version(self, digest: str) -> None:
        if self._manifest is not None and self._manifest.blob == digest:
            version = self._manifest.version
            log.info("holding version %d", version)
            mine = self._chosen(self._manifest)
            self._rest(version=version, detail="" if mine else "others are to train this version")

    def _on_gone(self, digest: str) -> None:
        log.warning("the hub does not have blob %s (any more)", digest[:12])
        self._rest(detail="waiting for a version that the hub has")

    def _sweep(self, manifest: Manifest) -> None:
        """Delete the containers that neither a version nor the work on an older one needs."""
        begun = self._training.begun
        wanted = {link.blob for link in manifest.chain}
        if begun is not None and welcome(begun, manifest):
            wanted |= {link.blob for link in begun.chain}
        for digest in list(self._store.digests()):
            if digest not in wanted:
                self._store.remove(digest)

    def _on_receipt(self, offer: Offer, receipt: Receipt) -> None:
        if self._vote is not None and self._vote.version == offer.version:
            self._vote = None
        if isinstance(receipt, Reject):
            log.warning("update for version %d refused: %s", offer.version, receipt.why)
            self._rest(detail=f"update refused: {receipt.why} [{receipt.code}]")
        else:
            log.info("update for version %d counted", offer.version)
            self._rest()

    def _say_vote(self) -> None:
        """Publish what a version is worth here; it is said again until its update is answered.

        Nobody waits for a vote, and so nobody answers one.
        """
        if self._vote is not None and not self._mute:
            topic = self._topics.up(self._config.id, "vote")
            self._session.publish(topic, messages.encode(self._vote))

    # -- training -------------------------------------------------------------------------------

    def _look_after_board(self, now: float) -> None:
        """Read the sensors; have the worker give way, and fall silent, where the profile asks."""
        self._care.count_bytes(self._session.sent_bytes + self._session.received_bytes)
        self._care.look(now)
        if self._care.silent != self._silent:
            self._silent = self._care.silent
            if self._silent:
                self._hold()
            else:
                self._move_on()
        pauses = self._care.pauses
        if pauses:
            if not self._pausing:
                log.warning("pausing: %s", pauses[0].sentence)
            self._pausing = True
            self._training.pause()
            self._set("paused", detail="; ".join(pause.sentence for pause in pauses))
        elif self._pausing:
            self._pausing = False
            log.info("going on")
            self._rest(detail="")

    def _update(self, now: float) -> None:
        """Take a release between two pieces of work."""
        self._updating.tick(
            now,
            free=not (self._training.running or self._care.pauses),
            in_touch=self._session.connected and self._hub_there and not self._mute,
        )

    def _chosen(self, manifest: Manifest) -> bool:
        return manifest.chosen is None or self._config.id in manifest.chosen

    def _trainable(self, now: float) -> Manifest | None:
        """Give the manifest to train from now, if there is one: what was begun comes first."""
        current, begun = self._manifest, self._training.begun
        if (
            current is None
            or not current.open
            or current.base != self._base.base_digest
            or self._training.running
            or self._updating.busy
            or self._care.pauses
            or self._limited
            or now < self._budget.due
        ):
            return None
        if begun is not None and welcome(begun, current) and self._ready(begun):
            return begun
        return current if self._chosen(current) and self._ready(current) else None

    def _ready(self, manifest: Manifest) -> bool:
        """Tell whether a version is here and its update is not yet made."""
        return self._journal.entry.trained != manifest.blob and all(
            self._store.has(link.blob) for link in manifest.chain
        )

    def _begin_training(self, now: float) -> None:
        manifest = self._trainable(now)
        if manifest is None:
            return
        self._set(
            "training",
            # An older one may be finished.
            version=max(manifest.version, self._announcer.state.version),
            step=0,
            steps=manifest.task.training.local_steps,
            detail="",
        )
        try:
            self._training.begin(
                manifest,
                [self._store.path(link.blob) for link in manifest.chain],
                self._residuals.of(self._journal.entry.trained),
            )
        except FfmError as error:
            self._fail(manifest, error, now)

    def _tend_training(self, now: float) -> None:
        manifest = self._training.begun
        if not self._training.running or manifest is None:
            return
        spent = self._training.seconds()
        try:
            trained = self._training.tend()
        except FfmError as error:
            self._fail(manifest, error, now)
            return
        finally:
            if not self._training.running:  # what failed has cost energy, too
                self._care.count_work(spent)
        vote = self._training.vote() if trained is None else trained.vote
        if vote is not None:  # with the update it is said again: a link may have been cut
            self._vote = vote
            self._say_vote()
        if trained is not None:
            self._keep(manifest, trained, now)
        elif self._announcer.state.status == "training":
            if self._training.running:
                self._show_progress()
            else:  # it has obeyed a pause that is already over
                self._rest()

    def _show_progress(self) -> None:
        plan, worker = self._training.plan, self._training.worker
        if self._training.measuring:
            self._set("training", detail="measuring this board")
        elif plan is not None and worker is not None:
            changes: dict[str, object] = {
                "planned_memory_mb": round(plan.memory_mb, 1),
                "planned_step_s": round(plan.step_seconds, 3),
                "detail": "",
            }
            if worker.last is not None:
                changes |= {
                    "step": worker.last.step,
                    "loss": worker.last.loss,
                    "worker_memory_mb": worker.last.memory_mb,
                }
            self._set("training", **changes)

    def _keep(self, manifest: Manifest, trained: Trained, now: float) -> None:
        """Put a finished update into the outbox, then note that it is there."""
        try:
            if trained.residual is not None:
                self._residuals.put(manifest.blob, trained.residual)
            self._outbox.add(trained.offer, trained.blob)
            self._journal.set_trained(manifest.blob)
        except FfmError as error:
            self._fail(manifest, error, now)
            return
        self._residuals.keep_only(manifest.blob)
        self._forget()
        self._set(
            "paused" if self._care.pauses else "uploading",
            step=len(trained.result.losses),
            loss=trained.result.losses[-1],
            worker_memory_mb=round(trained.result.peak_memory_mb, 1),
            step_s=round(trained.result.step_seconds, 3),
        )

    def _fail(self, manifest: Manifest, error: FfmError, now: float) -> None:
        """Say what went wrong, and try again: soon at first, then after long pauses.

        An older version is not tried again where there is a newer one.
        """
        if self._manifest is not None and self._manifest.blob != manifest.blob:
            self._forget()
        delay = self._budget.failed(now, got=self._announcer.state.step)
        self._give_up(
            f"training from version {manifest.version} failed, again in {delay:.0f} s: "
            f"{error.message} [{error.code}] -- {error.how_to_resolve}"
        )

    def _forget(self) -> None:
        """Let go of the work on a version, and of what only that needs."""
        self._training.forget()
        if self._manifest is not None:
            self._sweep(self._manifest)

    def _give_up(self, why: str) -> None:
        """Tell the person at the log and those at the broker what does not go on."""
        log.error("%s", why)
        self._set("failed", detail=why)

    # -- state ----------------------------------------------------------------------------------

    def _rest(self, **changes: object) -> None:
        """Show what goes on beside what has just ended."""
        status: AgentStatus = "idle"
        if self._training.running:
            status = "training"
        elif self._uploader.busy:
            status = "uploading"
        elif self._downloader.wanted:
            status = "downloading"
        self._set(status, **changes)

    def _set(self, status: AgentStatus, **changes: object) -> None:
        self._announcer.set(status, **changes)
