"""The hub: one loop that opens a version, collects updates, closes it and publishes the next.

Updates are checked in full when they arrive and kept compressed on disk until the version closes.
What has been acknowledged is in the ledger first, so a hub that is killed carries on in the
version it was in.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from pathlib import Path

import msgspec

from federation import messages
from federation.blobs import BlobStore
from federation.download import serve
from federation.messages import (
    AgentState,
    Done,
    Get,
    HubState,
    HubStatus,
    Manifest,
    Offer,
    Receipt,
    Reject,
)
from federation.receive import UploadReceiver
from federation.session import Connected, Disconnected, Event, Received, Session
from federation.topics import ChunkRoute, MessageRoute, StateRoute, Topics
from ffm_common import tensors as shape
from ffm_common.errors import (
    BlobOversize,
    FfmError,
    LedgerBroken,
    MessageInvalid,
    UpdateInvalid,
)
from ffm_common.files import make_folder, sync_folder
from ffm_common.lock import FolderLock
from ffm_common.seeds import derive
from ffm_common.task import Task
from ffm_common.tensors import Tensors
from hub.aggregation import Contribution, aggregate, hold
from hub.broker import Broker
from hub.config import Located
from hub.ledger import Ledger, UpdateRow, VersionRow
from hub.meter import Meter
from hub.rounds import Round
from hub.worker import ADAPTER, BLOB, VersionJob, VersionResult
from learning import adapter, base
from learning.data import label_names, read_labelled, require_labels
from learning.process import Worker
from profiles import profile as profiles
from profiles.limits import Limits
from quantization.updates.container import shapes_of, unpack

log = logging.getLogger("ffm.hub")

_TICK_S = 0.2
_FAREWELL_S = 20.0
_REUNION_S = 45.0
_ATTEMPTS = 3
_KEEP_VERSIONS = 20
_MAX_UPDATE_BYTES = 1 << 30
_CONTAINER_SLACK = 1 << 18
_CANDIDATE = "candidate.safetensors"


class Hub:
    """One federation's hub.

    Parameters
    ----------
    located
        Its configuration.

    Raises
    ------
    ModelMissing, ModelDigest, DataError, ProfileUnknown, LedgerBroken, PathUnwritable, FolderBusy
        What it needs is not there; nothing has been started.
    """

    def __init__(self, located: Located) -> None:
        self._where = located
        self._config = located.config
        self._base = base.verify(located.base)
        self._profile = profiles.load(self._config.profile)
        self._task = _task(located)
        self._folder = make_folder(located.folder)
        with contextlib.ExitStack() as undo:
            self._lock = FolderLock(self._folder)
            undo.callback(self._lock.close)
            self._ledger = Ledger(self._folder / "ledger.db")
            undo.callback(self._ledger.close)
            self._check_same_federation()
            undo.pop_all()
        self._boot = self._ledger.boot()
        self._store = BlobStore(self._folder / "blobs")
        self._topics = Topics(self._config.federation)
        self._state = HubState(status="starting", boot=self._boot)
        self._announced: HubState | None = None
        self._broker = Broker(
            self._folder / "broker",
            kind=self._config.broker.kind,
            host=self._config.broker.host,
            port=self._config.broker.port,
        )
        self._session: Session
        self._receiver: UploadReceiver
        self._meter: Meter
        self._version: VersionRow | None = self._ledger.latest()
        self._tensors: Tensors = {}
        self._round = Round(self._config.versions, (), ())
        self._worker: Worker[VersionResult] | None = None
        self._tail = 0.0
        self._failures = 0
        self._boots: dict[str, int] = {}
        self._present: dict[str, AgentState] = {}
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
            stack.callback(self._ledger.close)
            stack.callback(self._broker.stop)
            self._broker.start()
            log.info("broker: %s at %s:%d", self._broker.kind, self._broker.host, self._broker.port)
            self._connect()
            stack.callback(self._leave)
            self._resume()
            while not self._stopping and not self._farewell_over():
                event = self._session.next(_TICK_S)
                while event is not None:
                    self._on_event(event)
                    event = self._session.next(0)
                now = time.monotonic()
                self._tend_broker()
                self._receiver.tick(now)
                self._tend_worker()
                self._close_version(now)
                self._meter.tick(now)
                self._announce()

    # -- start ----------------------------------------------------------------------------------

    def _check_same_federation(self) -> None:
        """Refuse a state folder that was made for another task or base."""
        mine = msgspec.json.encode((self._base.digest, self._task)).decode()
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
        )
        self._receiver = UploadReceiver(
            self._folder / "incoming",
            self._topics,
            self._session.publish,
            self._admit,
            self._accept,
            max_bytes=_MAX_UPDATE_BYTES,
        )

    def _leave(self) -> None:
        """End what the loop has started."""
        if self._worker is not None:
            self._worker.close()
        self._publish_state(msgspec.structs.replace(self._state, status="left"))
        self._session.close()

    def _resume(self) -> None:
        """Carry on from the last version in the ledger, or have the first one made."""
        if self._version is None:
            log.info("no version yet: making version 0")
            self._meter = Meter(self._ledger, self._session, 0)
            self._make_version(0, None)
            return
        log.info("carrying on from version %d", self._version.version)
        # Agents were cut off, too: their longest pause between two attempts may have just begun.
        self._open_version(self._version, patience=_REUNION_S)

    def _open_version(self, row: VersionRow, *, patience: float = 0.0) -> None:
        """Publish a version and collect the updates made from it.

        Agents that are not there count as lost `patience` seconds from now.
        """
        self._version = row
        self._tensors = adapter.load_tensors(self._adapter_folder(row.version))
        counted = self._ledger.updates(row.version)
        self._round = Round(
            self._config.versions, self._ledger.agents(), [update.agent for update in counted]
        )
        now = time.monotonic()
        for agent in self._ledger.agents():
            self._expect(agent, now, patience)
        self._meter = Meter(self._ledger, self._session, row.version + 1)
        last = self._config.versions.count
        finished = bool(last) and row.version >= last
        if finished:
            self._finished_at = now
            # Right after a restart nobody is there yet: then all who ever were are waited for.
            self._farewell = sorted(self._present) or self._ledger.agents()
        self._set("finished" if finished else "open", row.version)
        self._publish_manifest()

    def _adapter_folder(self, version: int) -> Path:
        return self._folder / "versions" / str(version)

    # -- events ---------------------------------------------------------------------------------

    def _on_event(self, event: Event) -> None:
        match event:
            case Connected():
                self._announced = None
                self._publish_manifest()
            case Disconnected(reason=reason):
                log.warning("lost the broker (%s); reconnecting", reason)
            case Received(topic=topic, payload=payload):
                try:
                    self._on_message(topic, payload)
                except MessageInvalid as error:
                    log.warning("%s", error.line())
            case _:
                pass

    def _tend_broker(self) -> None:
        """Start a broker of ours again that has died."""
        if self._session.connected or self._broker.kind == "external" or self._broker.alive():
            return
        log.warning("the broker has died; starting it again")
        self._broker.stop()
        self._broker.start()

    def _on_message(self, topic: str, payload: bytes) -> None:
        route = self._topics.parse(topic)
        if isinstance(route, MessageRoute | ChunkRoute):
            # Who speaks is there, even where a late last will of a dead link said otherwise.
            self._round.arrive(route.agent, time.monotonic())
        match route:
            case StateRoute(agent=agent):
                self._on_state(agent, messages.decode(payload, AgentState))
            case MessageRoute(agent=agent, kind="offer"):
                self._receiver.on_offer(agent, messages.decode(payload, Offer))
            case MessageRoute(agent=agent, kind="get"):
                get = messages.decode(payload, Get)
                serve(self._topics, agent, get, self._store, self._session.publish)
            case ChunkRoute(agent=agent, digest=digest, index=index):
                self._receiver.on_chunk(agent, digest, index, payload)
            case other:
                raise MessageInvalid(f"{other} is not for the hub")

    def _on_state(self, agent: str, state: AgentState) -> None:
        gone = state.status in {"lost", "left"}
        before = self._boots.get(agent, 0)
        if state.boot < before:
            if gone:
                return  # the last will of an earlier life
            log.warning(
                "agent %s counts its starts anew (%d after %d): its state folder is new, or two "
                "devices share the id",
                agent,
                state.boot,
                before,
            )
        self._boots[agent] = state.boot
        if gone:
            if self._present.pop(agent, None) is not None:
                log.warning("agent %s %s", agent, state.status)
        else:
            if agent not in self._present:
                log.info("agent %s is there (%s)", agent, state.profile)
                self._ledger.see(agent, state.profile)
            self._present[agent] = state
        self._expect(agent, time.monotonic())

    def _expect(self, agent: str, now: float, patience: float = 0.0) -> None:
        """Tell the round whether an agent may still deliver; one that failed or pauses may not."""
        state = self._present.get(agent)
        if state is None or state.status in {"failed", "paused"}:
            self._round.vanish(agent, now + patience)
        else:
            self._round.arrive(agent, now)

    # -- updates --------------------------------------------------------------------------------

    def _admit(self, agent: str, offer: Offer) -> Receipt | None:
        """Answer an offer before a byte is sent: counted already, too late, or None: go on."""
        counted = self._ledger.update_of(agent, offer.version)
        if counted is not None:
            if counted.digest == offer.digest:
                return Done(digest=offer.digest, version=offer.version)
            return Reject(
                digest=offer.digest,
                code="already-counted",
                why=f"another update of {agent} is counted for version {offer.version}",
            )
        if (
            self._version is None
            or offer.version != self._version.version
            or self._finished_at is not None
            or self._ledger.pinned(f"closed/{offer.version}") is not None
        ):
            return Reject(
                digest=offer.digest,
                code="version-closed",
                why=f"version {offer.version} takes no more updates",
            )
        most = 4 * shape.count(self._tensors) + _CONTAINER_SLACK
        if offer.size > most:
            return Reject(
                digest=offer.digest,
                code=BlobOversize.code,
                why=f"an update of {offer.size} bytes, at most {most} can be right",
            )
        return None

    def _accept(self, agent: str, offer: Offer, path: Path) -> Receipt:
        """Judge a whole update; after Done it is in the ledger and will be counted once."""
        late = self._admit(agent, offer)
        if late is not None:
            return late
        blob = path.read_bytes()
        try:
            header, delta = unpack(blob, shapes_of(self._tensors), base=self._base.digest)
            # What could not be added up later must not be counted now.
            hold(self._tensors, delta, agent)
            if header.kind != "update" or header.version != offer.version:
                raise UpdateInvalid(f"{header.kind} of version {header.version} in its place")
        except UpdateInvalid as error:
            log.warning("update of %s refused: %s", agent, error.message)
            return Reject(digest=offer.digest, code=error.code, why=error.message)
        self._store.put(blob)
        row = UpdateRow(
            agent=agent,
            version=offer.version,
            digest=offer.digest,
            size=offer.size,
            examples=offer.examples,
            loss=offer.loss,
            received=time.time(),
        )
        self._ledger.add_update(row)
        self._round.deliver(agent)
        self._set("open", offer.version)
        log.info(
            "version %d: update of %s (%d bytes), %d of %d",
            offer.version,
            agent,
            offer.size,
            self._round.delivered,
            self._round.expected,
        )
        return Done(digest=offer.digest, version=offer.version)

    # -- versions -------------------------------------------------------------------------------

    def _close_version(self, now: float) -> None:
        """Aggregate and start the worker when the version is due."""
        row = self._version
        if row is None or self._worker is not None or self._state.status == "finished":
            return
        pinned = self._ledger.pinned(f"closed/{row.version}")
        reason = pinned or self._round.reason_to_close(now)
        if reason is None:
            return
        # Written down first: a hub killed from here on closes with the same updates.
        self._ledger.pin(f"closed/{row.version}", reason)
        self._set("closing", row.version, detail=reason)
        self._announce()
        updates = self._ledger.updates(row.version)
        log.info("version %d closes with %d updates (%s)", row.version, len(updates), reason)
        contributions = {}
        for update in updates:
            blob = self._store.path(update.digest).read_bytes()
            _, delta = unpack(blob, shapes_of(self._tensors), base=self._base.digest)
            contributions[update.agent] = Contribution(delta, update.examples)
        result = aggregate(self._tensors, contributions)
        self._tail = result.tail
        work = make_folder(self._work_folder(row.version + 1))
        shape.save(work / _CANDIDATE, result.tensors)
        self._make_version(row.version + 1, work / _CANDIDATE)

    def _work_folder(self, version: int) -> Path:
        return self._folder / "work" / str(version)

    def _make_version(self, version: int, candidate: Path | None) -> None:
        public = self._config.public
        limits = Limits.of(self._profile)
        job = VersionJob(
            base=str(self._where.base),
            base_digest=self._base.digest,
            version=version,
            candidate=None if candidate is None else str(candidate),
            task=self._task,
            codec=self._config.codec_down,
            train=str(self._where.train),
            evaluation=str(self._where.evaluation),
            text=public.text,
            label=public.label,
            steps=public.steps,
            rate_scale=public.rate_scale,
            threads=limits.threads,
            seed=derive(self._task.seed, "hub", version),
        )
        self._worker = Worker(
            "hub.worker", job, VersionResult, folder=self._work_folder(version), limits=limits
        )

    def _tend_worker(self) -> None:
        if self._worker is None or not self._worker.poll():
            return
        worker, self._worker = self._worker, None
        version = 0 if self._version is None else self._version.version + 1
        try:
            result = worker.result()
        except FfmError as error:
            self._failures += 1
            log.error("making version %d failed: %s", version, error.message)
            if self._failures >= _ATTEMPTS:
                raise
            if self._version is None:
                self._make_version(0, None)
            return  # a version in closing is taken up again by the loop
        self._failures = 0
        self._commit_version(version, result)

    def _commit_version(self, version: int, result: VersionResult) -> None:
        """Make a finished version the current one; the ledger's row is the moment it exists."""
        work = self._work_folder(version)
        blob = (work / BLOB).read_bytes()
        digest = self._store.put(blob)
        target = self._adapter_folder(version)
        make_folder(target.parent)
        shutil.rmtree(target, ignore_errors=True)
        (work / ADAPTER).rename(target)
        sync_folder(target.parent)
        spent = self._meter.spent()
        row = VersionRow(
            version=version,
            blob=digest,
            size=len(blob),
            accuracy=result.measure.accuracy,
            loss=result.measure.loss,
            updates=self._round.delivered if version else 0,
            closed_because=self._ledger.pinned(f"closed/{version - 1}") or "start",
            tail=self._tail,
            uplink_bytes=spent.uplink_bytes,
            downlink_bytes=spent.downlink_bytes,
            seconds=spent.seconds,
            created=time.time(),
        )
        self._ledger.add_version(row)
        log.info(
            "version %d: accuracy %.3f, loss %.3f, %d updates",
            version,
            row.accuracy,
            row.loss,
            row.updates,
        )
        self._forget_before(version)
        self._open_version(row)

    def _forget_before(self, version: int) -> None:
        """Delete blobs that nobody will ask for again: older versions and updates counted."""
        shutil.rmtree(self._folder / "work", ignore_errors=True)
        wanted = {row.blob for row in self._ledger.versions() if row.version >= version}
        for digest in list(self._store.digests()):
            if digest not in wanted:
                self._store.remove(digest)
        for folder in (self._folder / "versions").iterdir():
            if int(folder.name) <= version - _KEEP_VERSIONS:
                shutil.rmtree(folder, ignore_errors=True)

    # -- what others see ------------------------------------------------------------------------

    def _publish_manifest(self) -> None:
        row = self._version
        if row is None:
            return
        manifest = Manifest(
            federation=self._config.federation,
            version=row.version,
            blob=row.blob,
            size=row.size,
            base=self._base.digest,
            spec=shape.spec_digest(self._tensors),
            task=self._task,
            codec=self._config.codec_up,
            deadline_s=self._config.versions.deadline_s,
            open=self._finished_at is None,
        )
        self._session.publish(self._topics.manifest, messages.encode(manifest), retain=True)

    def _set(self, status: HubStatus, version: int, detail: str = "") -> None:
        self._state = msgspec.structs.replace(
            self._state,
            status=status,
            version=version,
            updates=self._round.delivered,
            expected=self._round.expected,
            detail=detail,
        )

    def _announce(self) -> None:
        if self._session.connected and self._announced != self._state:
            self._announced = self._state
            self._publish_state(self._state)

    def _publish_state(self, state: HubState) -> None:
        self._session.publish(self._topics.hub_state, messages.encode(state), retain=True)

    def _farewell_over(self) -> bool:
        """Tell whether the last version is where it should be and the hub may end."""
        if self._finished_at is None or not self._config.versions.exit_when_done:
            return False
        last = self._state.version
        here = self._present
        everyone = all(agent in here and here[agent].version >= last for agent in self._farewell)
        return everyone or time.monotonic() - self._finished_at > _FAREWELL_S


def _task(located: Located) -> Task:
    """Build the task: its labels are those of the hub's own data."""
    config, public = located.config, located.config.public
    examples = [
        example
        for path in (located.train, located.evaluation)
        for example in read_labelled(path, text=public.text, label=public.label)
    ]
    require_labels(examples)
    return Task(
        labels=tuple(label_names(examples)),
        adapter=config.adapter,
        training=config.training,
        seed=config.seed,
    )
