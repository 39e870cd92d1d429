"""A Llama of 260,000 parameters from nothing: `python -m benchmarks.pretraining`.

Three ways to spend the same 64 steps on a version, whoever takes them:

- *public only*: the hub takes all, on its own few stories, in one run without codec or restart;
- *federated only*: four agents take 16 each, on stories of their own, and the version is the mean;
- *public + federated*: the hub takes all of the first versions on its stories (two where it has 20,
  four where it has 60); then, in turns, the agents take 15 each and the hub 4, of a quarter's size.

Between agents and hub is the product's own path: trainer, containers (eden1 up, ecsq2 deltas and
int8 keyframes down, with the hub's error feedback), aggregation. The loss is that of held-out
stories, of what agents decode.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import Literal, TypeAlias

import msgspec
import numpy as np
from msgspec.structs import replace

from benchmarks.models import DATA, stories260k
from benchmarks.result import Target, at_least, finish, parser
from benchmarks.resumable import run_all, say
from ffm_common.files import make_folder
from ffm_common.seeds import derive
from ffm_common.task import Adapter, Task, Training
from ffm_common.tensors import Array, Tensors, subtract
from hub.aggregation.mean import Contribution, aggregate
from hub.making.downlink import Before, encode
from learning import base, scratch
from learning.texts.batches import Shard, text_shard
from learning.texts.data import read_texts
from learning.torch.engine import TorchEngine, use_threads
from learning.trainer import Trainer, evaluate
from quantization.updates.container import pack, shapes_of, unpack
from quantization.updates.rates import DELTA, KEYFRAME, KEYFRAME_EVERY

Arm: TypeAlias = Literal["public only", "federated only", "public + federated"]
WITH_PUBLIC: tuple[Arm, ...] = ("public only", "public + federated")

AGENTS, VERSIONS = 4, 12
SEEDS = (10, 11, 12)
"""Not 0 and 1, on which the schedule was chosen (docs/pretraining.md)."""
STEPS = 64
"""Of all parties together, for a version."""
PUBLIC_STEPS, PUBLIC_RATE = 4, 0.25
"""The hub's share where it works with agents, and how far its steps go, compared with theirs."""
WARM_UP = {20: 2, 60: 4}
"""The hub's stories, and how many versions it makes alone before the agents begin."""
_TEST, _OWN = 60, 300
_STORIES = DATA / "tinystories_sample" / "tinystories_sample.txt"
_TASK = Task(
    kind="causal-lm",
    adapter=Adapter(kind="full"),
    training=Training(batch_size=8, max_length=64, learning_rate=4e-3),
)
# A version may be worse than the one before by so much: what another draw of examples makes.
_NOISE = 0.02


class Cell(msgspec.Struct, frozen=True):
    """One run; `stories` are the hub's, 0 where it trains on none."""

    arm: Arm
    stories: int
    seed: int


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """The held-out loss (nats a token) of every version, and the bytes of all updates."""

    cell: Cell
    losses: tuple[float, ...]
    up_bytes: int


class Stage:
    """The engine and the stories of one seed."""

    def __init__(self, work: Path, seed: int) -> None:
        self.seed = seed
        folder = work / f"base-{seed}"
        self.base = base.describe(folder).digest
        self.engine = TorchEngine(folder, _TASK)
        tokenizer, stories = base.load_tokenizer(folder), read_texts(_STORIES)

        def shard(chosen: Sequence[str]) -> Shard:
            return text_shard(chosen, tokenizer, _TASK.training.max_length)

        # Every seed deals other stories, to measure on, too.
        order = np.random.default_rng(derive(seed, "stories")).permutation(len(stories))
        dealt = [stories[place] for place in order]
        self._test = shard(dealt[:_TEST])
        self.public = {count: shard(dealt[_TEST : _TEST + count]) for count in WARM_UP}
        start = _TEST + max(WARM_UP)
        starts = range(start, start + AGENTS * _OWN, _OWN)
        self.own = [shard(dealt[each : each + _OWN]) for each in starts]

    def trainer(self, start: Tensors, shard: Shard, seed: int, rate: float = 1.0) -> Trainer:
        """Give a trainer that begins at `start`, with steps of so many times the task's size."""
        self.engine.write(start)
        training = _TASK.training
        training = replace(training, learning_rate=rate * training.learning_rate)
        return Trainer(self.engine, shard, training, micro_batch=training.batch_size, seed=seed)

    def loss(self, tensors: Tensors) -> float:
        """Measure on the held-out stories."""
        self.engine.write(tensors)
        return evaluate(self.engine, self._test).loss


def public_only(stage: Stage, stories: int) -> Iterator[float]:
    """Give the loss after every `STEPS` steps of one run."""
    trainer = stage.trainer(
        stage.engine.read(), stage.public[stories], derive(stage.seed, "public")
    )
    for version in range(VERSIONS + 1):
        trainer.run(version * STEPS)
        yield stage.loss(stage.engine.read())


class Federation:
    """Agents and hub, from version to version; a hub without stories takes no step."""

    def __init__(self, stage: Stage, folder: Path, stories: int) -> None:
        self._stage = stage
        self._folder = folder
        self._stories = stories
        self._public = PUBLIC_STEPS if stories else 0
        self._local = (STEPS - self._public) // AGENTS
        self._warm_up = WARM_UP.get(stories, 0)
        self.up_bytes = 0

    def run(self) -> Iterator[float]:
        """Give the loss of every version."""
        fresh = {name: 0 * array for name, array in self._stage.engine.read().items()}
        state = self._publish(fresh, None, 0)
        yield self._stage.loss(state)
        for version in range(VERSIONS):
            if version < self._warm_up:
                wanted = self._public_steps(state, version, STEPS)
            else:
                updates = {
                    f"{place}": self._update(state, version, place) for place in range(AGENTS)
                }
                wanted = aggregate(state, updates).tensors
                if self._public:
                    wanted = self._public_steps(wanted, version, self._public, PUBLIC_RATE)
            state = self._publish(wanted, state, version + 1)
            yield self._stage.loss(state)

    def _update(self, state: Tensors, version: int, place: int) -> Contribution:
        stage, seed = self._stage, derive(self._stage.seed, place, version)
        stage.trainer(state, stage.own[place], seed).run(self._local)
        blob = pack(
            subtract(stage.engine.read(), state),
            kind="update",
            version=version,
            base=stage.base,
            codec="eden1",
            seed=seed,
        )
        self.up_bytes += len(blob)
        read = partial(_decoded, blob, state, stage.base)
        return Contribution(read, len(stage.own[place]))

    def _public_steps(
        self, start: Tensors, version: int, steps: int, rate: float = 1.0
    ) -> dict[str, Array]:
        seed = derive(self._stage.seed, "public", version)
        public = self._stage.public[self._stories]
        self._stage.trainer(start, public, seed, rate).run(steps)
        return self._stage.engine.read()

    def _publish(self, wanted: Tensors, state: Tensors | None, version: int) -> dict[str, Array]:
        before = None if state is None else Before(version - 1, state, self._folder)
        sent = encode(
            wanted,
            before,
            version=version,
            base=self._stage.base,
            codecs=(KEYFRAME, DELTA),
            keyframe=version % KEYFRAME_EVERY == 0,
            seed=derive(self._stage.seed, "down", version),
            carry=self._folder,
            fresh=state is None,
        )
        return sent.truth


def _decoded(blob: bytes, state: Tensors, digest: str) -> dict[str, Array]:
    return unpack(blob, shapes_of(state), base=digest)[1]


@cache
def stage_of(work: Path, seed: int) -> Stage:
    """Give the stage of a seed, which a process keeps."""
    use_threads(1)
    return Stage(work, seed)


def run_cell(work: Path, cell: Cell) -> Run:
    """Run one arm with one seed."""
    stage = stage_of(work, cell.seed)
    stage.engine.write({name: 0 * array for name, array in stage.engine.read().items()})
    if cell.arm == "public only":
        return Run(cell=cell, losses=tuple(public_only(stage, cell.stories)), up_bytes=0)
    with tempfile.TemporaryDirectory() as carried:
        federation = Federation(stage, Path(carried), cell.stories)
        losses = tuple(federation.run())
    return Run(cell=cell, losses=losses, up_bytes=federation.up_bytes)


def prepare(work: Path, missing: Sequence[Cell]) -> None:
    """Make the base of every seed: `ffm model new` with the tokenizer of a real small model."""
    for seed in sorted({cell.seed for cell in missing}):
        if not (work / f"base-{seed}").exists():
            if not (work / "words").exists():
                stories260k(work / "words")
            config = scratch.SHAPES["llama-tiny"]
            scratch.new(work / f"base-{seed}", config, tokenizer=work / "words", seed=seed)


def judge(runs: Sequence[Run]) -> list[Target]:
    """Say what the runs must show."""
    found = {run.cell: run.losses for run in runs}
    targets = []
    for arm in ("federated only", "public + federated"):
        falls = [
            before - after
            for cell, losses in found.items()
            if cell.arm == arm
            for before, after in pairwise(losses)
        ]
        name = f"{arm}: smallest fall of the loss in a version, nats"
        targets.append(at_least(name, min(falls), -_NOISE))
    for stories in WARM_UP:
        both = {
            cell.seed: losses
            for cell, losses in found.items()
            if cell.arm == "public + federated" and cell.stories == stories
        }
        alone: dict[Arm, int] = {"public only": stories, "federated only": 0}
        for arm, theirs in alone.items():
            others = {seed: found[Cell(arm, theirs, seed)] for seed in both}
            name = f"{stories} public stories: nats gained on {arm}"
            ends = mean(min(others[seed]) - both[seed][-1] for seed in both)
            targets.append(at_least(f"{name}, at its best, by the end", ends, 0.0))
            way = mean(mean(others[seed]) - mean(both[seed]) for seed in both)
            targets.append(at_least(f"{name}, over all versions", way, 0.0))
    return targets


def main() -> int:
    """Run all cells and judge."""
    arguments = parser(__doc__).parse_args()
    cells = [
        cell
        for seed in (SEEDS[:1] if arguments.quick else SEEDS)
        for cell in (
            Cell("federated only", 0, seed),
            *(Cell(arm, stories, seed) for stories in WARM_UP for arm in WITH_PUBLIC),
        )
    ]
    with tempfile.TemporaryDirectory() as temporary:
        work = make_folder(arguments.work or Path(temporary))
        runs = run_all(
            cells,
            partial(run_cell, work),
            Run,
            path=work / "rows.jsonl",
            jobs=2,
            prepare=partial(prepare, work),
            describe=lambda run: f"{_name(run.cell)}, seed {run.cell.seed}: {run.losses[-1]:.3f}",
        )
    for name in dict.fromkeys(_name(run.cell) for run in runs):
        best = [min(run.losses) for run in runs if _name(run.cell) == name]
        spread = f" +- {stdev(best):.3f}" if len(best) > 1 else ""
        say(f"{name}: {mean(best):.3f}{spread} nats a token at its best")
    return finish("pretraining", msgspec.to_builtins(runs), judge(runs), arguments)


def _name(cell: Cell) -> str:
    return f"{cell.arm}, {cell.stories} public stories" if cell.stories else cell.arm


if __name__ == "__main__":
    sys.exit(main())
