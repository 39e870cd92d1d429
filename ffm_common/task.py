"""What is to be learned: one set of structs for hub.toml, the manifest and the trainer."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from ffm_common.config import Config

AdapterKind = Literal["lora", "prompt", "full"]
TaskKind = Literal["classification", "causal-lm", "masked-lm", "image-classification"]
Label = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]

PROMPT_RATE = 3e-2
"""A learning rate for soft prompts: entries are as large as word embeddings, so steps must be."""


class Adapter(Config, frozen=True, kw_only=True):
    """What is trained: something on top of the frozen base, or a difference to all of it.

    Parameters
    ----------
    kind
        ``lora``: low-rank factors in the linear layers (Hu et al. 2021); ``prompt``: a soft prompt
        (Lester et al. 2021); ``full``: every weight, as its difference to the base's. A classifier
        head is trained with any.
    rank, alpha
        LoRA: rank of the factors; their product is scaled by ``alpha / rank``.
    min_rank
        LoRA: a device may train as few as the first `min_rank` slices of the factors; 0: all train
        them all.
    targets
        LoRA: last parts of the names of the linear layers that get factors.
    top_layers
        LoRA: how many layers, counted from the top, get factors; 0 is all. ``full``: how many are
        trained, with all above them; 0 is everything, the table of words included. What lies below
        stays as it is, so a device may compute it once per example and keep it.
    prompt_tokens
        Soft prompt: how many virtual tokens.
    """

    kind: AdapterKind = "lora"
    rank: Annotated[int, msgspec.Meta(ge=1, le=256)] = 8
    alpha: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 16
    min_rank: Annotated[int, msgspec.Meta(ge=0, le=256)] = 0
    targets: Annotated[
        tuple[Annotated[str, msgspec.Meta(max_length=64)], ...], msgspec.Meta(max_length=32)
    ] = ("query", "key", "value", "dense")
    top_layers: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 0
    prompt_tokens: Annotated[int, msgspec.Meta(ge=1, le=512)] = 16

    def __post_init__(self) -> None:
        """Refuse a least rank above the rank."""
        if self.min_rank > self.rank:
            raise ValueError("min_rank: it is above rank")

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks that a device may train, smallest first."""
        return tuple(
            rank
            for rank in range(self.min_rank or self.rank, self.rank + 1)
            # Alpha is a whole number, and alpha / rank must be the same for all.
            if self.alpha * rank % self.rank == 0
        )

    def at_rank(self, rank: int) -> Adapter:
        """Give the adapter of a device that trains one of `ranks`."""
        return msgspec.structs.replace(
            self, rank=rank, alpha=self.alpha * rank // self.rank, min_rank=0
        )


class Training(Config, frozen=True, kw_only=True):
    """How a device trains between two versions.

    Parameters
    ----------
    local_steps
        Optimizer steps per version.
    batch_size
        Examples per step; a device splits it into micro-batches that fit its profile.
    learning_rate, head_learning_rate
        AdamW step sizes of the adapter and of the classifier head.
    max_length
        Tokens per example; longer texts are cut.
    proximal
        FedProx (Li et al. 2020): how strongly a device is drawn back to the version that it
        started from, as the gradient of ``proximal / 2 * |w - w_version|^2``; 0 is not at all.
    balanced
        Classification: draw a device's labels equally often and adjust the scores of those that it
        lacks (`learning.balance`), so that devices whose labels differ do not unlearn each other's.
    """

    local_steps: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 16
    batch_size: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 16
    learning_rate: Annotated[float, msgspec.Meta(gt=0, le=1)] = 2e-3
    head_learning_rate: Annotated[float, msgspec.Meta(gt=0, le=1)] = 2e-3
    max_length: Annotated[int, msgspec.Meta(ge=4, le=8192)] = 64
    proximal: Annotated[float, msgspec.Meta(ge=0, le=1e3)] = 0.0
    balanced: bool = True


class Task(Config, frozen=True, kw_only=True):
    """One federation's learning task, the same for hub and agents.

    Parameters
    ----------
    kind
        ``classification``: a label for each text; ``causal-lm``: the next token of every text;
        ``masked-lm``: tokens hidden in every text (an encoder's language model);
        ``image-classification``: a label for each picture.
    labels
        Of a classification; what each output means. None for a language model.
    """

    kind: TaskKind = "classification"
    labels: Annotated[tuple[Label, ...], msgspec.Meta(max_length=1000)] = ()
    adapter: Adapter = Adapter()
    training: Training = Training()
    seed: Annotated[int, msgspec.Meta(ge=0, lt=2**31)] = 0

    def __post_init__(self) -> None:
        """Refuse labels that do not go with the kind, and a prompt that would leave its layers."""
        if self.classifies and len(self.labels) < 2:  # noqa: PLR2004
            raise ValueError("labels: a classification needs at least two")
        if not self.classifies and self.labels:
            raise ValueError("labels: a language model has none")
        if self.kind == "masked-lm" and self.adapter.kind == "prompt":
            raise ValueError("adapter.kind: masked-lm is trained with lora or full")
        if self.kind == "image-classification" and self.adapter.kind == "prompt":
            raise ValueError("adapter.kind: image-classification is trained with lora or full")
        if self.adapter.kind == "prompt" and self.adapter.top_layers:
            raise ValueError("adapter.top_layers: a soft prompt enters below all layers")

    @property
    def classifies(self) -> bool:
        """Whether an example has one label, and not a target at every token."""
        return self.kind in {"classification", "image-classification"}

    @property
    def starts_random(self) -> bool:
        """Whether a fresh adapter is nothing but random numbers and zeros."""
        # A prompt starts from words, and the head of a masked language model as the identity; a
        # difference to where a model starts is zero.
        lora = self.adapter.kind == "lora" and self.kind != "masked-lm"
        return lora or self.adapter.kind == "full"
