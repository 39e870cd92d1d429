"""The hub's disk: killed at every operation, full, read-only, damaged, and swept.

Nothing here is simulated: forked children die, file sizes are limited by the kernel, disks of a few
megabytes run full. What a hub finds afterwards must be the old state or the new one, and every
receipt must hold.
"""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest

from federation.messages import Offer, Reject
from federation.topics import Topics
from federation.transfer.blobs import BlobStore
from federation.transfer.chunks import CHUNK, chunk_count, pack
from federation.transfer.receive import UploadReceiver
from ffm_common import tensors as shape
from ffm_common.errors import LedgerBroken, PathUnwritable, VersionLost
from ffm_common.files import make_folder, sha256_bytes
from ffm_common.task import Adapter
from ffm_common.tensors import Tensors, content_digest
from hub.intake import Intake
from hub.making.carried import digest
from hub.trouble import Trouble
from hub.versions.ledger import Kind, Ledger, LeftOut, VersionRow
from hub.versions.registry import Registry
from quantization.updates import container
from quantization.updates.chain import decode

BASE = "ab" * 32
TOPICS = Topics("town")
ADAPTER = Adapter(rank=4, alpha=4)
AGENTS = ("one", "two")
_WATCHED = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}


def tensors(seed: int) -> dict[str, shape.Array]:
    draw = np.random.default_rng(seed)
    return {
        "layer.lora_A.weight": draw.standard_normal((4, 20)).astype(np.float32),
        "layer.lora_B.weight": draw.standard_normal((30, 4)).astype(np.float32),
        "bias": draw.standard_normal(2 * CHUNK // 4).astype(np.float32),
    }


def packed(made: Tensors, kind: container.Kind, version: int) -> bytes:
    return container.pack(
        made,
        kind=kind,
        version=version,
        from_version=version - 1 if kind == "delta" else None,
        base=BASE,
        codec="fp32",
        seed=0,
    )


class Hub:
    """What the hub's process does with its disk."""

    def __init__(self, folder: Path, say: Callable[[str], int] = len) -> None:
        self.folder = folder
        self.ledger = Ledger(folder / "ledger.db")
        self.ledger._db.execute("PRAGMA synchronous = OFF")  # nobody cuts the power here
        self.store = BlobStore(folder / "blobs")
        self.registry = Registry(
            folder / "versions", folder / "carried", self.ledger, self.store, BASE
        )
        self.intake = Intake(self.registry, self.ledger, self.store, ADAPTER, BASE)
        self.receiver = UploadReceiver(
            folder / "incoming",
            TOPICS,
            lambda topic, _: say(topic),
            self.intake.admit,
            self.intake.accept,
            max_bytes=1 << 20,
        )

    def live(self) -> None:
        """Take updates in, close the version, commit the next; or go on where that was."""
        if self.registry.next == 1 and self.takes_all_in():
            self.goes_on()

    def takes_all_in(self) -> bool:
        self.intake.open = self.ledger.pinned("closed/0") is None
        self.take_in("two", packed(tensors(12), "update", 0))
        return len(self.ledger.updates(0)) == len(AGENTS)

    def goes_on(self) -> None:
        self.ledger.pin("closed/0", "buffer")
        self.intake.open = False
        self.receiver.review()
        self.commit(1, tensors(1))

    def take_in(self, agent: str, blob: bytes) -> None:
        offer = Offer(digest=sha256_bytes(blob), size=len(blob), version=0, examples=10)
        self.receiver.on_offer(agent, offer)
        for index in range(chunk_count(len(blob))):
            piece = pack(blob[index * CHUNK : (index + 1) * CHUNK])
            self.receiver.on_chunk(agent, offer.digest, index, piece)

    def commit(
        self,
        version: int,
        made: Tensors,
        kind: Kind = "version",
        left_out: Sequence[LeftOut] = (),
    ) -> None:
        """Commit a version whose container holds these tensors, or what leads to others by them."""
        blob = packed(made, kind, version)
        if kind == "delta":
            made = shape.add(self.registry.tensors, made)
        folders = [self.folder / "work" / name for name in ("adapter", "carried")]
        for folder, name in zip(folders, ("adapter_model", "residual"), strict=True):
            shutil.rmtree(folder, ignore_errors=True)
            shape.save(make_folder(folder) / f"{name}.safetensors", made)
        row = VersionRow(
            version=version,
            blob=self.registry.keep_blob(blob),
            size=len(blob),
            kind=kind,
            error=0.0,
            accuracy=0.5,
            loss=1.0,
            updates=2,
            closed_because="buffer",
            tail=0.0,
            uplink_bytes=0,
            downlink_bytes=0,
            seconds=1.0,
            created=1e9,
            content=content_digest(made),
            carried=digest(folders[1]),
        )
        self.registry.commit(row, folders[0], folders[1], left_out)

    def close(self) -> None:
        self.ledger.close()


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder of a hub that has published version 0 and counted an update to it."""
    folder = tmp_path_factory.mktemp("start")
    hub = Hub(folder)
    hub.commit(0, tensors(0))
    hub.intake.open = True
    hub.take_in("one", packed(tensors(11), "update", 0))
    hub.close()
    return folder


def die_at(number: int, folder: Path) -> tuple[bool, set[str]]:
    """Live until the n-th operation; say whether that came, and which agents had a receipt."""
    read_end, write_end = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which the child has not
        child = os.fork()
    if child == 0:
        _live_and_die(number, folder, write_end)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        said = pipe.read().decode().split()
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) in {0, 42}
    receipts = {topic.split("/")[4] for topic in said if topic.endswith("/done")}
    return os.waitstatus_to_exitcode(status) == 42, receipts


def _live_and_die(number: int, folder: Path, pipe: int) -> None:
    """Be the child; never returns."""
    count = 0

    def operation() -> None:
        nonlocal count
        count += 1
        if count == number:
            os._exit(42)

    def watch(event: str, _: object) -> None:
        if event in _WATCHED:
            operation()

    try:
        os.fsync = lambda fd: operation()
        hub = Hub(folder, lambda topic: os.write(pipe, f"{topic}\n".encode()))
        hub.ledger._db._sql.set_trace_callback(lambda _: operation())
        sys.addaudithook(watch)
        hub.live()
        os._exit(0)
    except BaseException:  # noqa: BLE001
        sys.excepthook(*sys.exc_info())
        os._exit(1)


def check(hub: Hub, receipts: set[str]) -> None:
    """Find the old state or the new one, whole, and every promise kept."""
    registry, row = hub.registry, hub.registry.current
    assert row is not None
    assert row.version in {0, 1}
    assert content_digest(registry.tensors) == row.content
    assert all(hub.store.whole(link.blob) for link in registry.chain)
    assert registry.folders is not None
    assert digest(registry.folders[1]) == row.carried
    counted = {update.agent: update for update in hub.ledger.updates(0)}
    assert receipts <= counted.keys()
    if row.version == 0:
        assert all(hub.store.whole(update.container) for update in counted.values())
    else:
        assert set(counted) == set(AGENTS)


def end_of(hub: Hub) -> dict[str, object]:
    """Name all that is on the disk in the end, but for what is only a matter of time."""
    row = hub.registry.current
    assert row is not None
    files = {
        str(path.relative_to(hub.folder)): sha256_bytes(path.read_bytes())
        for path in hub.folder.rglob("*")
        if path.is_file() and not path.name.startswith("ledger.db") and "work" not in path.parts
    }
    updates = [(update.agent, update.digest, update.fault) for update in hub.ledger.updates(0)]
    return {"row": row, "updates": updates, "files": files}


def test_a_hub_killed_at_any_operation_ends_as_if_it_had_not_been(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    calm = tmp_path / "calm"
    shutil.copytree(start, calm)
    hub = Hub(calm)
    hub.live()
    wanted = end_of(hub)
    hub.close()
    number, seen, died = 0, set(), True
    while died:
        number += 1
        folder = tmp_path / str(number)
        shutil.copytree(start, folder)
        died, receipts = die_at(number, folder)
        hub = Hub(folder)
        check(hub, receipts)
        seen.add((hub.registry.next, len(hub.ledger.updates(0)), len(receipts)))
        hub.live()
        assert end_of(hub) == wanted, f"killed at operation {number}"
        hub.close()
        shutil.rmtree(folder)
    assert number > 60
    # It has been killed before and after each thing that counts.
    assert {(1, 1, 0), (1, 2, 0), (1, 2, 1), (2, 2, 1)} <= seen


def in_a_child(work: Callable[[], None]) -> int:
    """Do work that changes what the kernel allows, in a process of its own; 77: it may not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except PermissionError:
            os._exit(77)
        except BaseException:  # noqa: BLE001
            sys.excepthook(*sys.exc_info())
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def calm_end(start: Path, folder: Path) -> dict[str, object]:
    """Give how it ends where nothing goes wrong."""
    shutil.copytree(start, folder)
    hub = Hub(folder)
    hub.live()
    found = end_of(hub)
    hub.close()
    return found


@pytest.mark.parametrize("largest", [0, 1 << 10, 20 << 10, 60 << 10, 100 << 10, 200 << 10])
def test_a_disk_that_takes_no_more_is_contained_and_goes_on_when_it_does(
    start: Path, tmp_path: Path, largest: int
) -> None:
    """The kernel refuses to let any file grow beyond so many bytes."""
    wanted = calm_end(start, tmp_path / "calm")
    shutil.copytree(start, tmp_path / "full")

    def work() -> None:
        hub = Hub(tmp_path / "full")
        trouble = Trouble()
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, before[1]))
        for _ in range(3):
            with trouble.contained():
                hub.live()
            check(hub, set())
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        hub.live()
        assert end_of(hub) == wanted
        hub.close()

    assert in_a_child(work) == 0


def mount(kind: str, folder: Path, flags: int, options: str = "") -> None:
    """Mount for this process alone; PermissionError if it may not."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(0x20000) == 0:  # CLONE_NEWNS; then private, all the way down
        libc.mount(None, b"/", None, ctypes.c_ulong(0x4000 | 0x40000), None)
        text = [part.encode() for part in (kind, str(folder), kind, options)]
        if libc.mount(*text[:3], ctypes.c_ulong(flags), text[3]) == 0:
            return
    raise PermissionError(ctypes.get_errno(), "mounting needs root")


@pytest.mark.parametrize("when", ["before the upload", "before the commit"])
@pytest.mark.parametrize("free_kb", [0, 8, 100, 300])
def test_a_disk_that_runs_full_loses_nothing(
    start: Path, tmp_path: Path, when: str, free_kb: int
) -> None:
    wanted = calm_end(start, tmp_path / "calm")
    disk = tmp_path / "disk"
    disk.mkdir()

    def work() -> None:
        mount("tmpfs", disk, 0, "size=20m")
        home = disk / "hub"
        shutil.copytree(start, home)
        hub = Hub(home)
        trouble = Trouble()
        if when == "before the commit":
            assert hub.takes_all_in()
        free = shutil.disk_usage(disk).free
        (disk / "photos").write_bytes(bytes(max(0, free - (free_kb << 10))))
        for _ in range(3):
            with trouble.contained():
                hub.live()
            check(hub, set())
        assert "path-unwritable" in trouble.line or hub.registry.next == 2
        (disk / "photos").unlink()
        hub.live()
        assert end_of(hub) == wanted
        hub.close()

    if (status := in_a_child(work)) == 77:
        pytest.skip("no disk of its own for this test: mounting needs root")
    assert status == 0


def test_a_disk_that_becomes_read_only_is_contained(start: Path, tmp_path: Path) -> None:
    wanted = calm_end(start, tmp_path / "calm")
    disk = tmp_path / "disk"
    disk.mkdir()
    shutil.copytree(start, disk / "hub")

    def work() -> None:
        bind, remount, read_only = 0x1000, 0x20, 0x1
        hub = Hub(disk / "hub")
        libc = ctypes.CDLL(None, use_errno=True)
        mount(str(disk), disk, bind)
        os.chdir("/")
        where = str(disk).encode()
        flags = ctypes.c_ulong(bind | remount | read_only)
        assert libc.mount(where, where, None, flags, None) == 0
        trouble = Trouble()
        for _ in range(3):
            with trouble.contained():
                hub.live()
            check(hub, set())
        assert hub.registry.next == 1
        hub.close()
        with pytest.raises(PathUnwritable):  # and who starts there is told so
            Hub(disk / "hub")
        assert libc.umount(where) == 0
        hub = Hub(disk / "hub")
        hub.live()
        assert end_of(hub) == wanted
        hub.close()

    if (status := in_a_child(work)) == 77:
        pytest.skip("no disk of its own for this test: mounting needs root")
    assert status == 0


@pytest.fixture(scope="module")
def chained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder of a hub with a keyframe and three deltas."""
    hub = Hub(tmp_path_factory.mktemp("chained"))
    hub.commit(0, tensors(0))
    for version in (1, 2, 3):
        hub.commit(version, tensors(version), "delta")
    hub.close()
    return hub.folder


@pytest.fixture
def chain(chained: Path, tmp_path: Path) -> Path:
    """Give a copy of it, to be spoiled."""
    shutil.copytree(chained, tmp_path / "chain")
    return tmp_path / "chain"


def spoil(path: Path, how: str) -> None:
    if how == "gone":
        path.unlink()
        return
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data[:-1] if how == "cut" else data)


def as_agents_get_it(hub: Hub) -> tuple[int, str]:
    """Decode the chain as it lies in the store; give the version and its digest."""
    blobs = [hub.store.path(row.blob).read_bytes() for row in hub.registry.chain]
    assert [len(blob) for blob in blobs] == [row.size for row in hub.registry.chain]
    layout = container.shapes_of(hub.registry.tensors)
    version, found = decode(blobs, layout, base=BASE)
    return version, content_digest(found)


@pytest.mark.parametrize("how", ["flipped", "gone", "row"])
@pytest.mark.parametrize("broken", [(0,), (3,), (0, 2)])
@pytest.mark.parametrize("running", [False, True])
def test_a_spoiled_container_is_replaced_and_agents_decode_the_same_bits(
    chain: Path, how: str, broken: tuple[int, ...], *, running: bool
) -> None:
    hub = Hub(chain)
    content = as_agents_get_it(hub)
    last = hub.registry.chain[-1].blob
    for number in broken:
        if how == "row":
            hub.ledger._db.execute(
                "UPDATE versions SET blob = ? WHERE version = ?", ("not a digest", number)
            )
            hub.registry.chain = hub.ledger.chain()
        else:
            spoil(hub.store.path(hub.registry.chain[number].blob), how)
    if running:
        assert hub.registry.mend()
    else:
        hub.close()
        hub = Hub(chain)
    assert as_agents_get_it(hub) == content
    assert len(hub.registry.chain) == 4 - max(broken)
    if 3 not in broken:
        assert hub.registry.chain[-1].blob == last  # who holds the version need not train again
    assert hub.registry.current == hub.registry.chain[-1]
    assert not hub.registry.mend()
    hub.commit(4, tensors(4), "delta")
    assert as_agents_get_it(hub)[0] == 4
    hub.close()
    hub = Hub(chain)
    assert as_agents_get_it(hub)[0] == 4
    hub.close()


@pytest.mark.parametrize("how", ["flipped", "cut", "gone"])
def test_a_spoiled_adapter_is_written_anew_from_the_chain(chain: Path, how: str) -> None:
    weights = chain / "versions" / "3" / "adapter_model.safetensors"
    whole = weights.read_bytes()
    spoil(weights, how)
    hub = Hub(chain)
    assert hub.registry.current is not None
    assert content_digest(hub.registry.tensors) == hub.registry.current.content
    assert content_digest(shape.load(weights)) == hub.registry.current.content
    spoil(weights, how)
    assert not hub.registry.mend()
    assert sha256_bytes(weights.read_bytes()) == sha256_bytes(whole)
    hub.close()


def test_a_version_that_is_whole_nowhere_is_said_to_be_lost(chain: Path) -> None:
    spoil(chain / "versions" / "3" / "adapter_model.safetensors", "flipped")
    ledger = Ledger(chain / "ledger.db")
    spoil(chain / "blobs" / ledger.versions()[2].blob, "flipped")
    ledger.close()
    with pytest.raises(VersionLost, match="version 3"):
        Hub(chain).close()


def test_hundreds_of_versions_leave_no_more_on_the_disk_than_twenty(tmp_path: Path) -> None:
    said: list[str] = []
    hub = Hub(make_folder(tmp_path / "hub"), lambda topic: said.append(topic) or 1)  # type: ignore[func-returns-value]
    small = {"bias": np.ones(8, np.float32)}
    sizes = {}
    for version in range(60):
        hub.commit(version, small, "delta" if version % 10 else "version")
        hub.intake.open = True
        for agent in range(3):  # the last never ends its upload, and never comes back
            blob = packed({"bias": np.full(8, agent + version, np.float32)}, "update", version)
            name = f"agent-{agent}" if agent < 2 else f"gone-{version}"
            offer = Offer(digest=sha256_bytes(blob), size=len(blob), version=version, examples=1)
            hub.receiver.on_offer(name, offer)
            if agent < 2:
                hub.receiver.on_chunk(name, offer.digest, 0, pack(blob))
        (hub.store.folder / f".{version}.part").touch()  # as a power cut leaves it
        hub.intake.open = False
        hub.receiver.review()
        files = [path for path in hub.folder.rglob("*") if path.is_file()]
        sizes[version] = len([path for path in files if path.suffix != ".part"])
        assert list((hub.folder / "incoming").iterdir()) == []
        assert said[-1].endswith(f"gone-{version}/down/reject")
    assert sizes[59] <= sizes[39]
    assert len(list(hub.store.digests())) <= 10 + 2
    assert sorted(int(path.name) for path in (hub.folder / "versions").iterdir()) == list(
        range(40, 60)
    )
    assert [path.name for path in (hub.folder / "carried").iterdir()] == ["59"]
    hub.close()
    hub = Hub(tmp_path / "hub")
    assert list(hub.store.folder.glob(".*")) == []
    hub.close()


@pytest.mark.parametrize("how", ["flipped", "gone"])
def test_a_counted_update_that_was_spoiled_is_taken_again_while_its_version_is_open(
    start: Path, tmp_path: Path, how: str
) -> None:
    shutil.copytree(start, tmp_path / "hub")
    said: list[str] = []
    hub = Hub(tmp_path / "hub", lambda topic: said.append(topic) or 1)  # type: ignore[func-returns-value]
    (row,) = hub.ledger.updates(0)
    spoil(hub.store.path(row.container), how)
    hub.intake.open = True
    hub.take_in("one", packed(tensors(11), "update", 0))
    assert said[-1].endswith("/one/down/done")
    assert hub.store.whole(row.container)
    assert [update.digest for update in hub.ledger.updates(0)] == [row.digest]
    hub.close()


def test_an_update_that_is_in_no_version_for_the_disk_had_spoiled_it_is_marked(
    start: Path, tmp_path: Path
) -> None:
    shutil.copytree(start, tmp_path / "hub")
    hub = Hub(tmp_path / "hub")
    (row,) = hub.ledger.updates(0)
    hub.commit(1, tensors(1), left_out=(LeftOut("one", "damaged on the hub's disk"),))
    hub.close()
    hub = Hub(tmp_path / "hub")
    (found,) = hub.ledger.updates(0)
    assert found == msgspec.structs.replace(row, fault="damaged on the hub's disk")
    offer = Offer(digest=row.digest, size=row.size, version=0, examples=10)
    answer = hub.intake.admit("one", offer)
    assert isinstance(answer, Reject)
    assert answer.code == "blob-corrupt"
    hub.close()


def test_a_damaged_row_of_an_update_is_named_left_out_and_made_good_by_its_agent(
    start: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(start, tmp_path / "hub")
    hub = Hub(tmp_path / "hub")
    hub.ledger._db.execute("UPDATE updates SET digest = 'nonsense', examples = -3")
    assert hub.intake.counted(0) == []
    assert "ledger-broken" in caplog.text
    assert "'one'" in caplog.text
    hub.intake.open = True
    hub.take_in("one", packed(tensors(11), "update", 0))
    (one,) = hub.intake.counted(0)
    assert (one.agent, one.examples) == ("one", 10)
    hub.close()


def test_a_ledger_whose_pages_are_damaged_while_the_hub_runs_is_contained(
    start: Path, tmp_path: Path
) -> None:
    shutil.copytree(start, tmp_path / "hub")
    hub = Hub(tmp_path / "hub")
    hub.ledger._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    data = bytearray((tmp_path / "hub" / "ledger.db").read_bytes())
    data[4096:] = bytes(index % 251 for index in range(len(data) - 4096))
    (tmp_path / "hub" / "ledger.db").write_bytes(data)
    hub.ledger._db.execute("PRAGMA shrink_memory")
    trouble = Trouble()
    with trouble.contained():
        hub.live()
    assert "ledger-broken" in trouble.line
    assert hub.store.read(hub.registry.chain[0].blob, 0, 4) == b"FFMU"  # this is still served
    hub.close()
    with pytest.raises(LedgerBroken):
        Hub(tmp_path / "hub")
