"""The hub's bench: the base with its engine and the hub's data; it trains and measures."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import msgspec

from ffm_common.errors import DataError, LossNotFinite
from ffm_common.seeds import derive
from ffm_common.task import Task, Training
from ffm_common.tensors import Array, Tensors
from hub.making.public_files import PublicData, PublicFile
from hub.switching.pool import halves, hold_out, pick
from hub.switching.public_step import PublicStep, take_public_step
from hub.switching.warmup import Warm, until_flat
from learning.model import Learner
from learning.process import Report
from learning.texts.batches import Shard
from learning.texts.cache import TokenCache
from learning.trainer import (
    EVALUATION_BATCH,
    Losses,
    Measure,
    Trainer,
    evaluate,
    losses_of,
    measure_of,
    score_each,
)

log = logging.getLogger("ffm.hub")

_FEWEST = 2
_PAIRS = 64


class Judged(msgspec.Struct, frozen=True):
    """How good a version is; `measure` is None where its loss is no number."""

    measure: Measure | None
    losses: Losses


class Bench:
    """An open base with its adapter.

    Parameters
    ----------
    base, task, threads
        As of `learning.model.Learner`.
    text, label
        Columns of all data.
    tokens
        Where it is kept tokenized; None: in memory.
    """

    def __init__(
        self,
        base: Path,
        task: Task,
        *,
        threads: int,
        text: str | None,
        label: str | None,
        tokens: TokenCache | None,
    ) -> None:
        self.learner = Learner(base, task, threads=threads)
        self._text = text
        self._label = label
        self._tokens = tokens
        # FedProx holds devices together, and here is nobody else.
        self._training: Training = msgspec.structs.replace(task.training, proximal=0.0)
        self.notes: list[str] = []
        """What is not as the configuration asks."""

    def fresh(self) -> dict[str, Array]:
        """Give the adapter that nobody has trained."""
        return self.learner.engine.read()

    def warm_up(self, data: PublicData, *, seed: int, report: Report) -> Warm | None:
        """Train the fresh adapter on public data; None where there is too little."""
        old, new = self._shards(data.files)
        shards = [*old, *new]
        if self._too_few(shards):
            return None
        held, rest = hold_out(sum(map(len, shards)), seed=derive(seed, "held out"))
        held_out, engine = pick(shards, held), self.learner.engine

        def judge() -> tuple[dict[str, Array], float]:
            return engine.read(), evaluate(engine, held_out).loss

        return until_flat(
            self._trainer(pick(shards, rest), derive(seed, "warm-up")),
            judge,
            longest=data.warmup_steps,
            progress=lambda step, loss: report(step, data.warmup_steps, loss),
        )

    def public_step(
        self, version: Tensors, data: PublicData, *, seed: int, least: int, report: Report
    ) -> PublicStep | None:
        """Train on two halves of the public data from a version; None where there is too little."""
        old, new = self._shards(data.files)
        shards = [*old, *new]
        if self._too_few(shards):
            return None
        drawn = halves(
            sum(map(len, old)),
            sum(map(len, new)),
            size=data.steps * self._training.batch_size,
            replay=data.replay,
            seed=derive(seed, "halves"),
        )
        steps, begun = data.steps, 0

        def train(start: Tensors, part: Shard, seed: int) -> dict[str, Array]:
            nonlocal begun
            done, begun = begun, begun + steps
            self.learner.engine.write(start)
            self._trainer(part, seed).run(
                steps, lambda step, loss: report(done + step, 2 * steps, loss)
            )
            return self.learner.engine.read()

        parts = (pick(shards, places) for places in drawn)
        return take_public_step(version, parts, train, seed=seed, least=least)

    def judge(self, truth: Tensors, path: Path, most: int | None = None) -> Judged:
        """Measure what agents will decode, on the hub's evaluation data.

        Parameters
        ----------
        most
            Examples at most, from all over the file; None: all.
        """
        self.learner.engine.write(truth)
        shard = self._shard(path)
        places = range(0, len(shard), 1 if most is None else -(-len(shard) // most))
        # Of a language model only whole batches are compared, so these are small.
        few = 1 if shard.targets is None else EVALUATION_BATCH
        batch = max(few, min(EVALUATION_BATCH, len(places) // _PAIRS))
        scores = score_each(self.learner.engine, shard, places, batch)
        try:
            measure = measure_of(scores, len(places))
        except LossNotFinite:
            measure = None
        return Judged(measure, losses_of(scores))

    def _trainer(self, shard: Shard, seed: int) -> Trainer:
        engine, training = self.learner.engine, self._training
        return Trainer(engine, shard, training, micro_batch=training.batch_size, seed=seed)

    def _shard(self, path: Path) -> Shard:
        return self.learner.shard(path, text=self._text, label=self._label, cache=self._tokens)

    def _shards(self, files: Sequence[PublicFile]) -> tuple[list[Shard], list[Shard]]:
        """Read files, older and new ones; what cannot be read is left out and named."""
        found: tuple[list[Shard], list[Shard]] = ([], [])
        for file in files:
            try:
                found[file.new].append(self._shard(Path(file.path)))
            except DataError as error:
                log.error("public file left out: %s", error.line())
                self.notes.append(f"public file {file.name} is left out: {error.message}")
        return found

    def _too_few(self, shards: Sequence[Shard]) -> bool:
        if sum(map(len, shards)) >= _FEWEST:
            return False
        self.notes.append("no step on public data: there are not two examples to learn from")
        return True
