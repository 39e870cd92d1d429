"""A network cut in two at a border between layers: what is frozen below, what is trained above.

The network's own code runs either part, with its own masks and positions: for the time of a call
it holds only the layers of that part, and what lies at the other side of the border is stepped
over.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class _Given(torch.nn.Module):
    """In the place of BERT's embeddings: pass on what was given for them."""

    def forward(self, *, inputs_embeds: Any, **_: Any) -> Any:
        return inputs_embeds


class Cut:
    """Where a base is cut.

    Parameters
    ----------
    network
        A transformers base model, BERT's or Llama's kind.
    layers
        How many layers lie below the border.
    """

    def __init__(self, network: Any, layers: int) -> None:
        self._network = network
        self._encodes = hasattr(network, "encoder")
        self._holder = network.encoder if self._encodes else network
        self._name = "layer" if self._encodes else "layers"
        self.layers = layers

    def below(self) -> str:
        """Give a pattern of the names of the modules below the border."""
        numbers = "|".join(map(str, range(self.layers)))
        return rf".*\.{self._name}\.({numbers})\..*"

    def parameters_below(self) -> Iterator[Any]:
        """Give what has no part in anything above: the tables of words and places, the layers."""
        words = "embeddings" if self._encodes else "embed_tokens"
        yield from getattr(self._network, words).parameters()
        for layer in getattr(self._holder, self._name)[: self.layers]:
            yield from layer.parameters()

    def never_checkpoint_below(self) -> None:
        """Keep no input of a frozen layer: nothing below the border is ever computed again."""
        for layer in getattr(self._holder, self._name)[: self.layers]:
            layer.gradient_checkpointing = False

    def hidden_below(self, ids: Any, mask: Any) -> Any:
        """Give the hidden states at the border, shape (batch, length, hidden)."""
        layers = getattr(self._holder, self._name)[: self.layers]
        with self._holding(self._holder, self._name, layers):
            if self._encodes:
                with self._holding(self._network, "pooler", None):
                    return self._network(input_ids=ids, attention_mask=mask)[0]
            with self._holding(self._network, "norm", torch.nn.Identity()):
                return self._network(input_ids=ids, attention_mask=mask, use_cache=False)[0]

    @contextmanager
    def above(self) -> Iterator[None]:
        """Have the network take hidden states at the border as its ``inputs_embeds``."""
        layers = getattr(self._holder, self._name)[self.layers :]
        with self._holding(self._holder, self._name, layers):
            if self._encodes:
                with self._holding(self._network, "embeddings", _Given()):
                    yield
            else:
                yield

    @contextmanager
    def _holding(self, owner: Any, name: str, part: Any) -> Iterator[None]:
        """Put `part` into the place of a module until the end of the block."""
        whole = getattr(owner, name)
        setattr(owner, name, part)
        try:
            yield
        finally:
            setattr(owner, name, whole)
