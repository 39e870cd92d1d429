"""The trainer: steps over a shard with any engine, exact to resume; and the evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ffm_common.errors import AdapterInvalid, LossNotFinite
from ffm_common.task import Training
from ffm_common.tensors import Array, Tensors
from learning import checkpoint as checkpoints
from learning.adam import Adam
from learning.balance import Balance
from learning.engine import Engine, Score, Scorer
from learning.texts.batches import Shard

EVALUATION_BATCH = 32
"""Examples in memory at once where nobody asks for fewer."""
# The PEFT names of trained heads: a classifier's, and a masked language model's.
_HEADS = (".classifier.", ".transform.")
_BIAS = "classifier.bias"

Progress = Callable[[int, float], None]


class Measure(msgspec.Struct, frozen=True, kw_only=True):
    """Mean cross-entropy (nats) and the share of right answers over what was scored.

    A classifier is scored once per example, a language model at every token.
    """

    loss: float
    accuracy: float
    examples: int


class Trainer:
    """Train an engine's adapter in place.

    Parameters
    ----------
    engine
        Gives gradients; holds the adapter that training starts from.
    shard
        The examples; every step draws ``training.batch_size`` of them.
    training
        Sizes and rates.
    micro_batch
        Examples in memory at once; gradients are accumulated up to the batch size.
    seed
        Which examples are drawn when.
    checkpoint
        File for the state every `every` steps; if it exists, training resumes there.
    """

    def __init__(
        self,
        engine: Engine,
        shard: Shard,
        training: Training,
        *,
        micro_batch: int,
        seed: int,
        checkpoint: Path | None = None,
        every: int = 10,
    ) -> None:
        self._engine = engine
        self._shard = shard
        self._batch_size = training.batch_size
        self._micro_batch = min(micro_batch, training.batch_size)
        self._seed = seed
        self._checkpoint = checkpoint
        self._every = every
        self._proximal = np.float32(training.proximal)
        self._tensors = engine.read()
        # What the engine holds now is the version, before a resume too: a checkpoint comes later.
        self._start = (
            {name: array.copy() for name, array in self._tensors.items()}
            if training.proximal
            else {}
        )
        rates = {
            name: (
                training.head_learning_rate
                if any(head in name for head in _HEADS)
                else training.learning_rate
            )
            for name in self._tensors
        }
        self._adam = Adam(self._tensors, rates)
        self._bias, self._balance = _balance(self._tensors, shard, training)
        self.losses: list[float] = []
        if checkpoint is not None and checkpoint.exists():
            self._resume(checkpoint)

    @property
    def worth(self) -> int:
        """How many examples what is trained counts for."""
        return len(self._shard) if self._balance is None else self._balance.worth

    @property
    def step(self) -> int:
        """Steps done so far, those before a resume included."""
        return len(self.losses)

    def run(
        self,
        steps: int,
        progress: Progress | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> list[float]:
        """Train until `steps` steps are done in all; give the loss of each.

        When `stop` says so, the state is kept in the checkpoint and the run ends early.

        Raises
        ------
        LossNotFinite
            The engine keeps the state of the last good step.
        """
        try:
            return self._run(steps, progress, stop)
        finally:
            self._engine.write(self._tensors)

    def _run(self, steps: int, progress: Progress | None, stop: Callable[[], bool]) -> list[float]:
        while self.step < steps:
            loss, gradients = self._accumulate(self.step)
            self._adam.step(self._tensors, gradients)
            self.losses.append(loss)
            if progress is not None:
                progress(self.step, loss)
            asked = stop()
            due = self.step < steps and (asked or self.step % self._every == 0)
            if self._checkpoint is not None and due:
                self._save(self._checkpoint)
            if asked:
                break
        return self.losses

    def _accumulate(self, step: int) -> tuple[float, dict[str, Array]]:
        """Give the loss and gradient of one step, micro-batch by micro-batch."""
        self._engine.write(self._shifted())
        drawn_from = self._balance or self._shard
        chosen = drawn_from.draw(self._batch_size, self._seed, step)
        total, sums = 0.0, {name: np.zeros_like(array) for name, array in self._tensors.items()}
        batches = list(self._shard.micro_batches(chosen, self._micro_batch))
        scored = sum(batch.scored for batch in batches)
        for batch in batches:
            share = np.float32(batch.scored / scored)
            loss, gradients = self._engine.gradients(batch)
            total += float(share) * loss
            for name, gradient in gradients.items():
                sums[name] += share * gradient
            del gradients  # or the next batch's would stand beside them
        for name, start in self._start.items():
            sums[name] += self._proximal * (self._tensors[name] - start)
        if not math.isfinite(total) or not all(np.isfinite(g).all() for g in sums.values()):
            raise LossNotFinite(f"the loss of step {step + 1} is {total}")
        # Rounded to what a checkpoint holds, so that a resumed run reports the same numbers.
        return float(np.float32(total)), sums

    def _shifted(self) -> dict[str, Array]:
        """Give the tensors as they are trained, with the scores of absent labels held back."""
        if self._balance is None:
            return self._tensors
        return self._tensors | {self._bias: self._tensors[self._bias] + self._balance.shift}

    def _save(self, path: Path) -> None:
        losses = np.array(self.losses, dtype=np.float32)
        checkpoints.save(path, {"losses": losses, **self._parts()})

    def _resume(self, path: Path) -> None:
        state = checkpoints.load(path)
        losses = state.pop("losses", None)
        expected = {name: (array.shape, array.dtype) for name, array in self._parts().items()}
        found = {name: (array.shape, array.dtype) for name, array in state.items()}
        if losses is None or found != expected:
            raise AdapterInvalid(f"{path} is a checkpoint of another adapter")
        self.losses = [float(loss) for loss in losses]
        self._adam.count = self.step
        for name, array in self._parts().items():
            array[...] = state[name]
        self._engine.write(self._tensors)

    def _parts(self) -> dict[str, NDArray[Any]]:
        """Name everything that a checkpoint holds."""
        values = {f"value/{name}": array for name, array in self._tensors.items()}
        return values | self._adam.state()


def _balance(tensors: Tensors, shard: Shard, training: Training) -> tuple[str, Balance | None]:
    """Give the balance of a classification's shard, and the tensor that takes its shift."""
    if not training.balanced or shard.targets is None:
        return "", None
    (name,) = (each for each in tensors if each.endswith(_BIAS))
    return name, Balance(shard.targets, len(tensors[name]))


def evaluate(
    engine: Scorer, shard: Shard, *, most: int | None = None, batch: int = EVALUATION_BATCH
) -> Measure:
    """Measure an engine's adapter on a shard, in batches of like lengths.

    Parameters
    ----------
    most
        How many examples, the first of the shard, are measured at most; None is all.
    batch
        Examples in memory at once.

    Raises
    ------
    LossNotFinite
        The adapter gives NaN: there is nothing to measure.
    """
    examples = len(shard) if most is None else min(len(shard), most)
    return measure_of(score_each(engine, shard, range(examples), batch), examples)


def score_each(
    engine: Scorer, shard: Shard, places: Sequence[int], batch: int = EVALUATION_BATCH
) -> list[Score]:
    """Score some examples of a shard, in batches of like lengths, in an order of the shard's."""
    return [engine.score(each) for each in shard.micro_batches(places, batch)]


def measure_of(scores: Iterable[Score], examples: int) -> Measure:
    """Sum scores up.

    Raises
    ------
    LossNotFinite
        As `evaluate`.
    """
    found = list(scores)
    scored = sum(score.scored for score in found)
    loss = sum(score.loss for score in found)
    if not math.isfinite(loss):
        raise LossNotFinite(f"the evaluation loss is {loss}")
    return Measure(
        loss=loss / scored,
        accuracy=sum(score.right for score in found) / scored,
        examples=examples,
    )


class Losses(msgspec.Struct, frozen=True):
    """Losses to be compared in pairs: of single examples, or of batches where no more is known.

    Parameters
    ----------
    sums
        Of cross-entropies, nats: float64, shape (pairs,).
    scored
        How many targets each sum is over: int64, shape (pairs,).
    """

    sums: NDArray[np.float64]
    scored: NDArray[np.int64]


def losses_of(scores: Iterable[Score]) -> Losses:
    """Take scores apart."""
    sums: list[NDArray[np.float64]] = []
    scored: list[NDArray[np.int64]] = []
    for score in scores:
        each = np.array([score.loss]) if score.each is None else score.each
        sums.append(each)
        scored.append(np.full(len(each), score.scored // len(each), np.int64))
    return Losses(np.concatenate(sums), np.concatenate(scored))
