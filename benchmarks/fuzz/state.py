"""What hub and agent keep on their disks, and what they are told by files: TOML, JSON, SQLite."""

from __future__ import annotations

import contextlib
import random
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks.fuzz.subject import Subject
from benchmarks.fuzz.wire import TASK
from benchmarks.rows import version_row
from edge_agent import config as agent_config
from edge_agent.journal import Entry, Journal
from edge_agent.worker import Measured, TrainJob, TrainResult
from federation.messages import Done, Offer
from federation.transfer.outbox import Outbox
from ffm_common import tensors
from ffm_common.errors import WorkerFailed
from ffm_common.files import sha256_bytes
from hub import config as hub_config
from hub.making import kept_losses
from hub.versions import record
from hub.versions.ledger import Ledger, UpdateRow, VoteRow
from learning import checkpoint
from learning.process import Failure
from learning.texts import packed
from learning.texts.pieces import Piece
from profiles import ledger as budget
from profiles import profile as profiles
from profiles import sensors
from profiles.calibration import Calibrated, Calibration, Calibrations
from profiles.detect import detect
from quantization.updates.feedback import ErrorFeedback

_DIGEST = "ab" * 32


def _of_file(path: Path, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    """Give what puts an input into a file and reads that."""

    def parse(data: bytes) -> object:
        path.write_bytes(data)
        return read(path)

    return parse


# -- TOML -----------------------------------------------------------------------------------------

_HUB = b"""\
federation = "home"
base = "base"
task = "classification"
codec_up = "ecsq0.5"
seed = 3

[public]
train = "public.csv"
evaluation = "held-out.csv"
text = "question"
steps = 4
policy = "adaptive"

[broker]
kind = "external"
url = "wss://gateway.local:443/mqtt?x=1"

[adapter]
kind = "lora"
rank = 8
targets = ["query", "value"]

[training]
local_steps = 8
learning_rate = 2e-3

[versions]
buffer = 4
deadline_s = 600.5
max_staleness = 1

[defence]
[gate]
tolerance = 0.05
[network]
in_flight_mb = 8
[server]
optimizer = "nesterov"
"""
_AGENT = b"""\
id = "kitchen-pi"
federation = "home"
base = "base"
profile = "rpi4-4gb"

[broker]
host = "gateway.local"
port = 1883

[data]
path = "private.csv"
text = 'note'
held_out = 0.1

[meter]
root = "/"
interval_s = 5.0
"""
_PROFILE = b"""\
extends = "rpi4-2gb"
name = "mine"
title = "My board"
memory_mb = 900
hours = ["22:00-07:00"]
max_temp_c = 70.5

[sources]
memory_mb = "half of it"
"""


def hub_toml(work: Path) -> Subject:
    """hub.toml."""
    return Subject(_of_file(work / "hub.toml", hub_config.load), {"full": _HUB}, "lines")


def agent_toml(work: Path) -> Subject:
    """agent.toml."""
    return Subject(_of_file(work / "agent.toml", agent_config.load), {"full": _AGENT}, "lines")


def profile_toml(work: Path) -> Subject:
    """A device profile of somebody's own."""
    return Subject(_of_file(work / "mine.toml", profiles.load), {"extends": _PROFILE}, "lines")


# -- JSON -----------------------------------------------------------------------------------------


def journal(work: Path) -> Subject:
    """The agent's journal, and the next start with it."""
    entry = Entry(boot=3, since=1_700_000_000, trained=_DIGEST)

    def read(path: Path) -> object:
        return Journal(path).boot()

    seeds = {"trained": msgspec.json.encode(entry), "fresh": b"{}"}
    return Subject(_of_file(work / "journal.json", read), seeds, "json")


def calibration(work: Path) -> Subject:
    """What was measured on a machine; a file that cannot be read counts as none."""
    one = Calibration(floor_mb=300, scale=1.1, overhead_s=0.1, rate=1e10)
    kept = {"here/torch": Calibrated(plain=one, checkpointing=one, products="bf16")}

    def read(path: Path) -> object:
        found = Calibrations(path).get("here/torch")
        return found and (found.plain.peak_mb(100.0), found.plain.seconds(1e9))

    seeds = {"one": msgspec.json.encode(kept)}
    return Subject(_of_file(work / "calibration.json", read), seeds, "json")


def daily_budget(work: Path) -> Subject:
    """What was spent on each day; a file that cannot be read is set aside."""
    import datetime as dt

    def read(path: Path) -> object:
        with budget.Ledger(path) as found:
            day = found.spent(dt.date(2024, 5, 1))
            assert day.bytes >= 0
            assert day.joules >= 0
            return day

    seeds = {"days": b'{"2024-05-01": {"bytes": 1000, "joules": 2.5}, "2024-05-02": {}}'}
    return Subject(_of_file(work / "budget.json", read), seeds, "json")


def version_record(_: Path) -> Subject:
    """What the ledger keeps about a version; what cannot be read counts as nothing told."""

    def parse(data: bytes) -> object:
        found = record.decode(data.decode("utf-8", "replace"))
        return record.describe(found)

    full = record.Record(parent=2, files={"a.csv": "1-2"}, medians={"others": 1.5})
    return Subject(parse, {"full": record.encode(full).encode(), "empty": b"{}"}, "json")


def kept_loss(work: Path) -> Subject:
    """Losses of a version on public examples; what cannot be read counts as none."""

    def read(path: Path) -> object:
        return kept_losses.load(path.parent, content=_DIGEST, data="x")

    text = f'{{"content":"{_DIGEST}","data":"x","sums":[1.5,0.25],"scored":[2,1]}}'
    return Subject(_of_file(work / "losses.json", read), {"two": text.encode()}, "json")


def worker_answers(work: Path) -> Subject:
    """What a worker leaves for its parent, and what the parent leaves for it.

    The first line says which file it is.
    """
    from learning.process import read_answer, read_job

    result = TrainResult(
        examples=90,
        losses=(0.7, 0.6),
        seconds=3.5,
        step_seconds=0.5,
        peak_memory_mb=300.0,
        measured=Measured(loss=0.5, accuracy=0.9, examples=10),
    )
    job = TrainJob(
        base="base",
        base_digest=_DIGEST,
        version=3,
        chain=("a", "b"),
        content=_DIGEST,
        task=TASK,
        codec="eden1",
        residual=None,
        data="private.csv",
        text="note",
        label=None,
        micro_batch=4,
        max_length=64,
        checkpointing=False,
        threads=2,
        seed=7,
    )

    def parse(data: bytes) -> object:
        name, _, content = data.partition(b"\n")
        shutil.rmtree(work / "answers", ignore_errors=True)
        (work / "answers").mkdir()
        if name == b"job":
            (work / "answers" / "job.json").write_bytes(content)
            return read_job(work / "answers", TrainJob)
        if name != b"error":
            (work / "answers" / "result.json").write_bytes(content)
            return read_answer(work / "answers", TrainResult)
        (work / "answers" / "error.json").write_bytes(content)
        try:
            return read_answer(work / "answers", TrainResult)
        except WorkerFailed as error:
            if error.message == f"{failure.message} [{failure.code}]":
                return error  # it is what the worker had to say
            raise

    failure = Failure("data-empty", "the shard holds no example")
    seeds = {
        "error": b"error\n" + msgspec.json.encode(failure),
        "result": b"result\n" + msgspec.json.encode(result),
        "job": b"job\n" + msgspec.json.encode(job),
    }
    return Subject(parse, seeds)


# -- tensors and the like -------------------------------------------------------------------------


def _state() -> dict[str, tensors.Array]:
    draw = np.random.default_rng(0)
    return {
        "a.lora_A.weight": draw.standard_normal((2, 8)).astype(np.float32),
        "b": np.zeros((), np.float32),
    }


def _safetensors(work: Path) -> bytes:
    path = work / "seed.safetensors"
    tensors.save(path, _state(), metadata={"version": "3"})
    return path.read_bytes()


def adapter_weights(work: Path) -> Subject:
    """The weights of an adapter folder."""

    def read(path: Path) -> object:
        found = tensors.load(path)
        return tensors.content_digest(found), tensors.count(found)

    parse = _of_file(work / "adapter_model.safetensors", read)
    return Subject(parse, {"two": _safetensors(work)}, mend=_head_mended)


def residual(work: Path) -> Subject:
    """What a codec has not sent yet; a file that is broken counts as none."""

    def read(path: Path) -> object:
        found = ErrorFeedback(path).compensate(_state(), 4)
        for array in found.values():
            assert np.isfinite(array).all()
        return len(found)

    parse = _of_file(work / "residual.safetensors", read)
    return Subject(parse, {"two": _safetensors(work)}, mend=_head_mended)


def training_state(work: Path) -> Subject:
    """A checkpoint of training."""
    made = work / "made.safetensors"
    arrays: dict[str, NDArray[Any]] = {"a": np.ones((2, 3), np.float32)}
    arrays |= {"codes": np.zeros(5, np.uint8), "none": np.zeros(0, np.int8)}
    checkpoint.save(made, arrays)

    def read(path: Path) -> object:
        return {name: array.tobytes() for name, array in checkpoint.load(path).items()}

    parse = _of_file(work / "checkpoint.safetensors", read)
    return Subject(parse, {"three": made.read_bytes()}, mend=_head_mended)


def _head_mended(data: bytes, draw: random.Random) -> bytes:
    """Now and then make the length of a safetensors file's head right again."""
    end = data.find(b"}}", 8) + 2
    if end > 10 and draw.random() < 0.5:
        return (end - 8).to_bytes(8, "little") + data[8:]
    return data


def tokens(work: Path) -> Subject:
    """Tokenized examples in a file, as the next worker finds them."""
    key = "k" * 64

    def make(targets: tuple[int, ...]) -> bytes:
        import io

        pieces = [
            Piece(np.arange(length, dtype=np.int32), target)
            for length, target in zip((3, 5), targets, strict=True)
        ]
        sink = io.BytesIO()
        packed.write(sink, pieces, key=key, note=lambda: "two of two")
        return sink.getvalue()

    def read(path: Path) -> object:
        if not packed.is_whole(path, key):
            return None
        found = packed.view(np.asarray(np.memmap(path, dtype=np.uint8, mode="r")))
        assert len(found.ids) == found.contents.examples
        return [int(each.sum()) for each in found.ids[:50]]

    def mend(data: bytes, draw: random.Random) -> bytes:
        if len(data) < 16 or draw.random() < 0.2:
            return data
        return data[:-12] + zlib.crc32(data[:-16]).to_bytes(4, "little") + data[-8:]

    seeds = {"labelled": make((0, 1)), "plain": make((-1, -1))}
    return Subject(_of_file(work / "x.tokens", read), seeds, mend=mend)


# -- the board ------------------------------------------------------------------------------------

_BOARD = {
    "proc/cpuinfo": b"processor\t: 0\nCPU part\t: 0xd08\nprocessor\t: 1\n",
    "proc/meminfo": b"MemTotal:  3884000 kB\nMemAvailable:  3000000 kB\n",
    "proc/stat": b"cpu  100 2 30 4000 5 6 7 8 0 0\ncpu0 1 2 3\n",
    "proc/loadavg": b"0.52 0.40 0.30 1/100 999\n",
    "proc/pressure/memory": b"some avg10=1.25 avg60=0.00 avg300=0.00 total=7\n",
    "proc/device-tree/model": b"Raspberry Pi 4 Model B Rev 1.4\0",
    "sys/class/thermal/thermal_zone0/temp": b"51121\n",
    "sys/class/thermal/thermal_zone0/type": b"cpu-thermal\n",
    "sys/class/power_supply/BAT0/type": b"Battery\n",
    "sys/class/power_supply/BAT0/capacity": b"87\n",
    "sys/class/power_supply/AC/type": b"Mains\n",
    "sys/class/power_supply/AC/online": b"1\n",
    "commands/vcgencmd-get_throttled": b"throttled=0x50005\n",
    "commands/df": b"Avail\n20000000000\n",
}


def board(work: Path) -> Subject:
    """What a board says of itself: files of /proc and /sys, and what programs print."""
    between = b"\x1e"
    for name in _BOARD:
        (work / name).parent.mkdir(parents=True, exist_ok=True)

    def parse(data: bytes) -> object:
        parts = data.split(between)
        for place, name in enumerate(_BOARD):
            (work / name).write_bytes(parts[place] if place < len(parts) else b"")
        root = sensors.Root(work)
        return (
            *(detect(root), sensors.heat(root), sensors.throttled(root), sensors.power(root)),
            *(sensors.pressure(root, "memory"), sensors.memory(root), sensors.cpu_time(root)),
            *(sensors.load(root), sensors.cores(root), sensors.free_disk_mb(root, work)),
        )

    return Subject(parse, {"pi4": between.join(_BOARD.values())}, "lines")


# -- SQLite ---------------------------------------------------------------------------------------


def outbox(work: Path) -> Subject:
    """The agent's outbox at a start."""
    folder = work / "outbox"

    def fresh(database: bytes | None) -> Outbox:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        if database is not None:
            (folder / "outbox.sqlite").write_bytes(database)
        return Outbox(folder)

    made = fresh(None)
    for number in range(2):
        blob = bytes([number]) * 100
        offer = Offer(digest=sha256_bytes(blob), size=100, version=number, examples=4)
        made.add(offer, blob)
    made.settle(offer.digest, Done(digest=offer.digest, version=1))
    seed = _closed(made._db, folder / "outbox.sqlite")

    def parse(data: bytes) -> object:
        with contextlib.closing(fresh(data)) as found:
            return found.pending(), found.history()

    return Subject(parse, {"two": seed})


def hub_ledger(work: Path) -> Subject:
    """The hub's ledger at a start, and what it is asked then."""
    path = work / "ledger.db"
    made = Ledger(path)
    made.boot()
    made.see("ann", "rpi4-4gb")
    made.put("note", "x")
    made.add_version(
        version_row(
            blob=_DIGEST,
            size=100,
            content=_DIGEST,
            carried="",
            record="{}",
        )
    )
    made.add_update(
        UpdateRow(
            agent="ann",
            version=0,
            digest=_DIGEST,
            container=_DIGEST,
            size=100,
            examples=4,
            loss=0.5,
            received=1e9,
            counted_for=0,
        )
    )
    made.add_vote(
        VoteRow(agent="ann", version=0, loss=0.5, accuracy=None, examples=9, received=1e9)
    )
    seed = _closed(made._db, path)

    def parse(data: bytes) -> object:
        for name in (path, path.with_name("ledger.db-wal"), path.with_name("ledger.db-shm")):
            name.unlink(missing_ok=True)
        path.write_bytes(data)
        with contextlib.closing(Ledger(path)) as found:
            said: list[Any] = [found.boot(), found.agents(), found.versions(newest=5)]
            said += [found.chain(), found.updates(0), found.votes(0), found.pinned("note")]
            return said

    return Subject(parse, {"one": seed})


def _closed(database: Any, path: Path) -> bytes:
    """Give the bytes of a database with everything in its one file."""
    database.execute("PRAGMA journal_mode = DELETE")
    database.execute("VACUUM")
    database.close()
    return path.read_bytes()
