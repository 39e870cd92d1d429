"""The agent's supervisor: one thread, one loop, no torch.

It listens for the hub's manifest, fetches the version, has it trained from, and offers the update
until the hub's receipt is there. Everything it must not forget is on disk before it is acted on.
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
from edge_agent.freshness import Freshness
from edge_agent.journal import Journal
from edge_agent.residuals import Residuals
from edge_agent.tending import Tending
from edge_agent.training import Training
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
    MessageInvalid,
    MessageStale,
    Quarantined,
    StorageError,
    WireError,
)
from ffm_common.files import make_folder
from ffm_common.health import Health
from ffm_common.lock import FolderLock
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
        training = Training(
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
        self._tending = Tending(
            self._config.id,
            self._base.base_digest,
            training,
            care=self._care,
            store=self._store,
            outbox=self._outbox,
            residuals=Residuals(folder / "residuals"),
            journal=self._journal,
            freshness=Freshness(located.data, self._journal),
            announcer=self._announcer,
            rest=self._rest,
            vote=self._cast,
        )
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
        self._vote: Vote | None = None
        self._quarantine: InQuarantine | None = None
        self._hub_there, self._hub_boot = True, 0
        self._issued = self._journal.issued(self._belonging.hub)
        self._silent = self._limited = False
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
                busy = self._tending.running or self._updating.busy
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
                self._tending.tend(now)
                self._update(now)
                self._tending.begin(now, free=not (self._updating.busy or self._limited))
                self._announcer.tell(now)
                state = self._announcer.state
                self._health.beat(
                    status=state.status, detail=state.detail, connected=self._session.connected
                )
        finally:
            self._health.close()
            self._tending.close()
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
                    self._announcer.give_up(error.message)

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
            self._announcer.give_up(BrokerLimit(f"the broker takes {limit} bytes a packet").line())
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
        if self._tending.manifest == manifest:
            return
        if self._belonging.enrolled:
            with contextlib.suppress(StorageError):  # a full disk: it is known until the next start
                self._journal.set_issued(self._belonging.hub, self._issued)
        self._tending.heed(manifest)
        if manifest.base != self._base.base_digest:
            self._announcer.give_up("the federation uses another base model [model-digest]")
            return
        if not self._tending.running:
            self._announcer.set("downloading", detail="")
        try:
            self._downloader.want(manifest.chain, spread_s=spread_s)
        except BlobOversize as error:
            self._announcer.give_up(error.message)

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
        manifest = self._tending.manifest
        if manifest is not None and manifest.blob == digest:
            version = manifest.version
            log.info("holding version %d", version)
            mine = self._tending.asked(manifest)
            self._rest(version=version, detail="" if mine else "others are to train this version")

    def _on_gone(self, digest: str) -> None:
        log.warning("the hub does not have blob %s (any more)", digest[:12])
        self._rest(detail="waiting for a version that the hub has")

    def _on_receipt(self, offer: Offer, receipt: Receipt) -> None:
        if self._vote is not None and self._vote.version == offer.version:
            self._vote = None
        if isinstance(receipt, Reject):
            log.warning("update for version %d refused: %s", offer.version, receipt.why)
            self._rest(detail=f"update refused: {receipt.why} [{receipt.code}]")
        else:
            log.info("update for version %d counted", offer.version)
            self._rest()

    def _cast(self, vote: Vote) -> None:
        self._vote = vote
        self._say_vote()

    def _say_vote(self) -> None:
        """Publish what a version is worth here; it is said again until its update is answered.

        Nobody waits for a vote, and so nobody answers one.
        """
        if self._vote is not None and not self._mute:
            topic = self._topics.up(self._config.id, "vote")
            self._session.publish(topic, messages.encode(self._vote))

    # -- the board ------------------------------------------------------------------------------

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
        self._tending.give_way()

    def _update(self, now: float) -> None:
        """Take a release between two pieces of work."""
        self._updating.tick(
            now,
            free=not (self._tending.running or self._care.pauses),
            in_touch=self._session.connected and self._hub_there and not self._mute,
        )

    # -- state ----------------------------------------------------------------------------------

    def _rest(self, **changes: object) -> None:
        """Show what goes on beside what has just ended."""
        status: AgentStatus = "idle"
        if self._tending.running:
            status = "training"
        elif self._uploader.busy:
            status = "uploading"
        elif self._downloader.wanted:
            status = "downloading"
        self._announcer.set(status, **changes)
