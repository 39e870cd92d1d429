"""The frozen-prefix cache: found again by anybody, exact to resume, and harmless when damaged."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from ffm_common import tensors as shape
from ffm_common.task import Adapter, Task
from ffm_common.tensors import Array
from learning import base
from learning.engine import Border
from learning.model import Learner
from learning.prefix import CachedShard
from learning.texts.masking import MaskedShard, Masks
from learning.torch.engine import TorchEngine
from learning.trainer import Trainer, evaluate


@pytest.fixture(scope="module")
def top(task: Task) -> Task:
    return msgspec.structs.replace(task, adapter=Adapter(top_layers=2))


@pytest.fixture(scope="module")
def learner(minilm: Path, top: Task) -> Learner:
    return Learner(minilm, top)


class Counting:
    """The real engine, and how many examples it was asked to compute."""

    def __init__(self, engine: TorchEngine) -> None:
        self._engine = engine
        self.examples = 0

    @property
    def border(self) -> Border | None:
        return self._engine.border

    def prefix(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> Array:
        self.examples += len(ids)
        return self._engine.prefix(ids, mask)


@pytest.fixture
def counting(learner: Learner) -> Counting:
    assert isinstance(learner.engine, TorchEngine)
    return Counting(learner.engine)


def cached(
    learner: Learner, counting: Counting, texts: Path, folder: Path, budget_mb: float = 10
) -> CachedShard:
    return CachedShard(learner.shard(texts), counting, folder, budget_mb=budget_mb)


def all_hidden(shard: CachedShard) -> list[Array]:
    """Give every example's hidden states, as its batch brings them."""
    found = []
    for place, ids in enumerate(shard.ids):
        hidden = shard.collate([place]).hidden
        assert hidden is not None
        assert hidden.shape == (1, len(ids), 384)
        found.append(hidden[0])
    return found


def test_hidden_states_are_those_of_the_engine_to_the_precision_of_float16(
    learner: Learner, counting: Counting, texts: Path, tmp_path: Path
) -> None:
    shard = cached(learner, counting, texts, tmp_path)
    for _ in range(2):
        batch = shard.collate(range(len(shard)))
        exact = counting.prefix(batch.ids, batch.mask) * batch.mask[..., None]
        assert batch.hidden is not None
        assert batch.hidden.dtype == np.float32
        np.testing.assert_allclose(batch.hidden, exact, rtol=2**-11, atol=1e-5)


def test_what_float16_cannot_hold_is_cut_not_made_infinite(
    learner: Learner, counting: Counting, texts: Path, tmp_path: Path
) -> None:
    class Loud(Counting):
        def prefix(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> Array:
            return np.full((*ids.shape, 384), -1e6, dtype=np.float32)

    assert isinstance(learner.engine, TorchEngine)
    hidden = cached(learner, Loud(learner.engine), texts, tmp_path).collate([0]).hidden
    assert hidden is not None
    np.testing.assert_array_equal(hidden, -65504)


def test_each_example_is_computed_once_over_epochs_and_shards(
    learner: Learner, counting: Counting, texts: Path, top: Task, tmp_path: Path
) -> None:
    shard = cached(learner, counting, texts, tmp_path)
    Trainer(learner.engine, shard, top.training, micro_batch=2, seed=1).run(6)
    assert counting.examples == len(shard)
    again = cached(learner, counting, texts, tmp_path)
    evaluate(learner.engine, again)
    assert counting.examples == len(shard)


SECOND = """
import json, sys
from pathlib import Path
import msgspec
from ffm_common.task import Task
from learning.model import Learner
from learning.prefix import CachedShard
learner = Learner(Path(sys.argv[1]), msgspec.json.decode(sys.argv[2], type=Task))
shard = learner.shard(Path(sys.argv[3]))
shard = CachedShard(shard, learner.engine, Path(sys.argv[4]), budget_mb=10)
def refuse(*_):
    raise AssertionError("computed again")
learner.engine.prefix = refuse
print(json.dumps([float(shard.collate([place]).hidden.sum()) for place in range(len(shard))]))
"""


def test_another_process_finds_what_was_kept(
    learner: Learner, counting: Counting, texts: Path, top: Task, minilm: Path, tmp_path: Path
) -> None:
    wanted = [
        float(hidden.sum()) for hidden in all_hidden(cached(learner, counting, texts, tmp_path))
    ]
    arguments = [str(minilm), msgspec.json.encode(top).decode(), str(texts), str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", SECOND, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == wanted


# Trains with a checkpoint and a cache, and says each step; it is killed while at it.
VICTIM = """
import sys
from pathlib import Path
import msgspec
from ffm_common.task import Task
from learning.model import Learner
from learning.prefix import CachedShard
from learning.trainer import Trainer
task = msgspec.json.decode(sys.argv[2], type=Task)
learner = Learner(Path(sys.argv[1]), task, threads=2)
shard = learner.shard(Path(sys.argv[3]))
shard = CachedShard(shard, learner.engine, Path(sys.argv[4]), budget_mb=10)
trainer = Trainer(learner.engine, shard, task.training, micro_batch=2, seed=5,
                  checkpoint=Path(sys.argv[5]), every=2)
trainer.run(1000, lambda step, loss: print(step, flush=True))
"""


def test_a_run_that_is_killed_goes_on_as_if_nothing_had_happened(
    learner: Learner, counting: Counting, texts: Path, top: Task, minilm: Path, tmp_path: Path
) -> None:
    start = TorchEngine(minilm, top).read()
    learner.engine.write(start)
    whole = cached(learner, counting, texts, tmp_path / "whole")
    wanted = Trainer(learner.engine, whole, top.training, micro_batch=2, seed=5).run(8)
    held = shape.content_digest(learner.engine.read())
    checkpoint = tmp_path / "checkpoint.safetensors"
    folder = tmp_path / "cache"
    arguments = [minilm, msgspec.json.encode(top).decode(), texts, folder, checkpoint]
    with subprocess.Popen(
        [sys.executable, "-c", VICTIM, *map(str, arguments)], stdout=subprocess.PIPE, text=True
    ) as victim:
        assert victim.stdout is not None
        while victim.stdout.readline().strip() != "3":
            assert victim.poll() is None
        os.kill(victim.pid, signal.SIGKILL)
    learner.engine.write(start)
    shard = cached(learner, counting, texts, folder)
    resumed = Trainer(
        learner.engine, shard, top.training, micro_batch=2, seed=5, checkpoint=checkpoint
    )
    assert 2 <= resumed.step < 8
    assert resumed.run(8) == wanted
    assert shape.content_digest(learner.engine.read()) == held


def test_a_flipped_byte_costs_one_example_and_changes_nothing(
    learner: Learner, counting: Counting, texts: Path, tmp_path: Path
) -> None:
    before = all_hidden(cached(learner, counting, texts, tmp_path))
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    content[-700] ^= 0x40
    path.write_bytes(content)
    counting.examples = 0
    after = all_hidden(cached(learner, counting, texts, tmp_path))
    assert counting.examples == 1
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_torn_file_is_filled_again(
    learner: Learner, counting: Counting, texts: Path, tmp_path: Path
) -> None:
    before = all_hidden(cached(learner, counting, texts, tmp_path))
    (path,) = tmp_path.iterdir()
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    counting.examples = 0
    after = all_hidden(cached(learner, counting, texts, tmp_path))
    assert 0 < counting.examples < len(after)
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_does_not_fit_is_computed_each_time_with_the_same_result(
    learner: Learner, counting: Counting, texts: Path, top: Task, tmp_path: Path
) -> None:
    start = learner.engine.read()
    whole = cached(learner, counting, texts, tmp_path / "whole")
    wanted = Trainer(learner.engine, whole, top.training, micro_batch=4, seed=5).run(5)
    learner.engine.write(start)
    counting.examples = 0
    small = cached(learner, counting, texts, tmp_path / "small", budget_mb=0.02)
    found = Trainer(learner.engine, small, top.training, micro_batch=4, seed=5).run(5)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    assert len(small) < counting.examples < 20
    (path,) = (tmp_path / "small").iterdir()
    assert path.stat().st_size <= 0.02 * 2**20


def test_another_base_border_or_shard_has_another_file(
    learner: Learner, counting: Counting, texts: Path, top: Task, tmp_path: Path
) -> None:
    full = base.bundled_minilm()
    base.prepare(full, tmp_path / "fp32", "fp32")
    folder = tmp_path / "cache"
    cached(learner, counting, texts, folder)
    deeper = msgspec.structs.replace(top, adapter=Adapter(top_layers=3))
    for where, task in ((tmp_path / "fp32", top), (learner.folder, deeper)):
        other = Learner(where, task)
        assert isinstance(other.engine, TorchEngine)
        CachedShard(other.shard(texts), other.engine, folder, budget_mb=10)
    short = learner.shard(texts, max_length=4)
    CachedShard(short, counting, folder, budget_mb=10)
    assert len(list(folder.iterdir())) == 4


def test_masks_that_change_with_every_epoch_are_refused(
    learner: Learner, counting: Counting, texts: Path, tmp_path: Path
) -> None:
    masks = Masks(mask=103, special=(0, 101, 102), vocabulary=30522)
    masked = MaskedShard(learner.shard(texts).ids, 0, masks)
    with pytest.raises(TypeError, match="masks"):
        CachedShard(masked, counting, tmp_path, budget_mb=1)


def test_an_adapter_on_all_layers_leaves_nothing_to_keep(
    minilm: Path, task: Task, texts: Path, tmp_path: Path
) -> None:
    other = Learner(minilm, task)
    assert isinstance(other.engine, TorchEngine)
    with pytest.raises(ValueError, match="all layers"):
        CachedShard(other.shard(texts), other.engine, tmp_path, budget_mb=1)


def test_steps_from_the_cache_are_faster(
    learner: Learner, counting: Counting, texts: Path, top: Task, tmp_path: Path
) -> None:
    plain = learner.shard(texts)
    kept = cached(learner, counting, texts, tmp_path)
    batches = [shard.collate(list(range(10)) * 2) for shard in (plain, kept)]

    def seconds(number: int) -> float:
        started = time.process_time()
        learner.engine.gradients(batches[number])
        return time.process_time() - started

    times = [(seconds(0), seconds(1)) for _ in range(12)]
    assert min(one for _, one in times) < min(one for one, _ in times)
