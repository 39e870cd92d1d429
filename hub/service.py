"""The hub: one loop that hears what comes, hands it to whom it concerns, and gives each its turn.

Updates are checked in full when they arrive and kept compressed on disk until the version closes.
What has been acknowledged is in the ledger first.
"""

from __future__ import annotations

import contextlib
import logging
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
    LedgerBroken,
    MessageInvalid,
    WireError,
)
from ffm_common.files import make_folder
from ffm_common.health import Health
from ffm_common.lock import FolderLock
from hub.announcing import Announcer
from hub.broker import Broker
from hub.config import Located
from hub.coordinator import Coordinator
from hub.intake import Intake
from hub.making.maker import Maker
from hub.making.public_files import PublicFiles
from hub.presence import GONE, Presence
from hub.release.shelf import Shelf
from hub.selection import Selection
from hub.task import task_of
from hub.trouble import Trouble
from hub.trust.conduct import Conduct
from hub.trust.reception import Reception
from hub.trust.trusting import BROKER, Trusting
from hub.versions.ledger import Ledger, VoteRow
from hub.versions.registry import Registry
from learning import engines
from profiles import profile as profiles

log = logging.getLogger("ffm.hub")

_TICK_S = 0.2
_INSPECT_S = 600.0
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
        self._coordinator: Coordinator
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
        self._selection = Selection(self._ledger, self._config.versions, self._task)
        self._reception = Reception(located, self._trusting)
        self._presence = Presence(self._ledger, signed=self._trusting.enrolled)
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
            self._coordinator.resume()
            while not (self._stopping or self._coordinator.over):
                self._listen()
                now = time.monotonic()
                for turn in (
                    self._tend_broker,
                    lambda now=now: self._shut_out(now),
                    lambda now=now: self._receiver.tick(now),
                    lambda now=now: self._coordinator.take_made(now),
                    self._coordinator.open_next,
                    lambda now=now: self._coordinator.close_version(now),
                    lambda now=now: self._coordinator.stand_in(now),
                    lambda now=now: self._coordinator.measure(now),
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
        self._coordinator = Coordinator(
            self._config,
            registry=self._registry,
            ledger=self._ledger,
            session=self._session,
            announcer=self._announcer,
            intake=self._intake,
            receiver=self._receiver,
            maker=self._maker,
            public=self._public,
            selection=self._selection,
            presence=self._presence,
            conduct=self._conduct,
        )

    def _leave(self) -> None:
        """End what the loop has started."""
        self._maker.close()
        self._announcer.take_leave()
        self._session.close()

    # -- events ---------------------------------------------------------------------------------

    def _on_event(self, event: Event) -> None:
        match event:
            case Connected(packet_limit=limit):
                if limit is not None and limit < PACKET_BYTES:
                    log.error("%s", BrokerLimit(f"the broker takes {limit} bytes a packet").line())
                self._announcer.repeat()
                self._coordinator.announce()
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

    def _on_message(self, topic: str, payload: bytes) -> None:
        route = self._topics.parse(topic)
        if isinstance(route, MessageRoute):
            # Who speaks is there, even where a late last will of a dead link said otherwise.
            self._coordinator.arrive(route.agent)
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
                    self._coordinator.arrive(agent)
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
        self._coordinator.expect(agent, time.monotonic())

    def _on_vote(self, agent: str, vote: Vote) -> None:
        """Note what a device says of a version; the ledger holds one vote for each of both."""
        current = self._registry.current
        if current is None or vote.version > current.version or agent not in self._ledger.agents():
            raise MessageInvalid(f"no such agent or version: {agent} votes on {vote.version}")
        said = msgspec.structs.asdict(vote)
        self._ledger.add_vote(VoteRow(agent=agent, received=time.time(), **said))

    def _accept(self, agent: str, offer: Offer, path: Path) -> Receipt:
        """Take a whole update in; the round hears of those that count for the open version."""
        receipt = self._intake.accept(agent, offer, path)
        if isinstance(receipt, Done):
            self._coordinator.deliver(agent)
        if isinstance(receipt, Reject):
            self._conduct.bad_update(agent, receipt.code)
        return receipt

    # -- turns of the loop ----------------------------------------------------------------------

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
            self._coordinator.shut_out(agent, now)

    def _inspect(self, now: float) -> None:
        """Now and then, look whether what agents fetch is still whole on the disk."""
        if now < self._inspect_at:
            return
        self._inspect_at = now + _INSPECT_S
        self._coordinator.mend()
