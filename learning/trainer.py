"""The trainer: AdamW over the adapter and head, exact to resume; and the evaluation beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ffm_common import tensors as shape
from ffm_common.errors import AdapterInvalid, LossNotFinite
from ffm_common.task import Training
from ffm_common.tensors import Array
from learning.batches import Encoded

# AdamW as in Loshchilov & Hutter 2019, with torch's defaults but no decay: an adapter that starts
# at zero has nothing to decay towards.
_BETAS = (0.9, 0.999)
_EPSILON = 1e-8
_EVALUATION_BATCH = 32

Progress = Callable[[int, float], None]


class Measure(msgspec.Struct, frozen=True, kw_only=True):
    """Mean cross-entropy (nats) and the share of right answers over `examples` examples."""

    loss: float
    accuracy: float
    examples: int


class Trainer:
    """Train a PEFT model in place for a number of steps.

    Parameters
    ----------
    model
        What `learning.adapter.attach` gives.
    shard
        The examples; every step draws ``training.batch_size`` of them.
    training
        Steps, sizes and rates.
    micro_batch
        Examples in memory at once; gradients are accumulated up to the batch size.
    seed
        Which examples are drawn when.
    checkpoint
        File for the state every `every` steps; if it exists, training resumes there.
    """

    def __init__(
        self,
        model: Any,
        shard: Encoded,
        training: Training,
        *,
        micro_batch: int,
        seed: int,
        checkpoint: Path | None = None,
        every: int = 10,
    ) -> None:
        import torch

        self._model = model
        self._shard = shard
        self._training = training
        self._micro_batch = max(1, min(micro_batch, training.batch_size))
        self._seed = seed
        self._checkpoint = checkpoint
        self._every = every
        self._named = {
            name: parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }
        head = [p for name, p in self._named.items() if ".classifier." in name]
        rest = [p for name, p in self._named.items() if ".classifier." not in name]
        self._optimizer = torch.optim.AdamW(
            [
                {"params": rest, "lr": training.learning_rate},
                {"params": head, "lr": training.head_learning_rate},
            ],
            betas=_BETAS,
            eps=_EPSILON,
            weight_decay=0.0,
        )
        self.losses: list[float] = []
        if checkpoint is not None and checkpoint.exists():
            self._resume(checkpoint)

    @property
    def step(self) -> int:
        """Steps done so far, those before a resume included."""
        return len(self.losses)

    def run(self, steps: int, progress: Progress | None = None) -> list[float]:
        """Train until `steps` steps are done in all; give the loss of each.

        Raises
        ------
        LossNotFinite
            The model keeps the state of the last good step.
        """
        self._model.train()
        while self.step < steps:
            loss = self._one_step(self.step)
            self.losses.append(loss)
            if progress is not None:
                progress(self.step, loss)
            if self._checkpoint is not None and self.step % self._every == 0 and self.step < steps:
                self._save(self._checkpoint)
        return self.losses

    def _one_step(self, step: int) -> float:
        chosen = self._shard.draw(self._training.batch_size, self._seed, step)
        self._optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for batch in self._shard.micro_batches(chosen, self._micro_batch):
            loss = self._model(**batch).loss * (len(batch["labels"]) / len(chosen))
            loss.backward()
            total += loss.item()
        if not math.isfinite(total):
            raise LossNotFinite(f"the loss of step {step + 1} is {total}")
        self._optimizer.step()
        return total

    def _save(self, path: Path) -> None:
        state: dict[str, Array] = {"losses": np.array(self.losses, dtype=np.float32)}
        for name, parameter in self._named.items():
            moments = self._optimizer.state[parameter]
            state[f"value/{name}"] = parameter.detach().numpy()
            state[f"mean/{name}"] = moments["exp_avg"].numpy()
            state[f"square/{name}"] = moments["exp_avg_sq"].numpy()
        shape.save(path, state)

    def _resume(self, path: Path) -> None:
        import torch

        state = shape.load(path)
        expected = {f"{kind}/{n}" for n in self._named for kind in ("value", "mean", "square")}
        if set(state) != expected | {"losses"}:
            raise AdapterInvalid(f"{path} is a checkpoint of another adapter")
        self.losses = [float(loss) for loss in state["losses"]]
        with torch.no_grad():
            for name, parameter in self._named.items():
                parameter.copy_(torch.from_numpy(state[f"value/{name}"]))
                self._optimizer.state[parameter] = {
                    "step": torch.tensor(float(self.step)),
                    "exp_avg": torch.from_numpy(state[f"mean/{name}"]),
                    "exp_avg_sq": torch.from_numpy(state[f"square/{name}"]),
                }


def evaluate(model: Any, shard: Encoded) -> Measure:
    """Measure a model on a shard, in batches of like lengths."""
    import torch

    model.eval()
    loss, right = 0.0, 0
    with torch.inference_mode():
        for batch in shard.micro_batches(range(len(shard)), _EVALUATION_BATCH):
            logits = model(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
            ).logits
            loss += float(
                torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="sum")
            )
            right += int((logits.argmax(-1) == batch["labels"]).sum())
    return Measure(loss=loss / len(shard), accuracy=right / len(shard), examples=len(shard))


def predict(model: Any, tokenizer: Any, texts: Sequence[str], max_length: int) -> Any:
    """Give the probabilities of each label for each text, shape (texts, labels), as numpy."""
    import torch

    model.eval()
    batch = tokenizer(
        list(texts), truncation=True, max_length=max_length, padding=True, return_tensors="pt"
    )
    with torch.inference_mode():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return torch.softmax(logits, dim=-1).numpy()
