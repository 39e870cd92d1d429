"""Where a soft prompt starts: at the vectors of ordinary words.

Lester et al. (2021) start from the most common tokens of the vocabulary and find that far better
than random vectors, which are like no word a base has ever seen. Vocabularies of BPE, Unigram and
WordPiece begin with what is most frequent, so the order of the ids tells which those are.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from learning import base

_MOST_COMMON = 5000
_SHORTEST = 2
# What stands before a word in the vocabularies of SentencePiece and of byte-level BPE.
_MARKS = ("\u2581", "\u0120")


def start(folder: Path, embeddings: Any, count: int, seed: int) -> Any:
    """Give `count` vectors to start a soft prompt from; the same seed gives the same.

    Parameters
    ----------
    folder
        The base, whose tokenizer knows the words.
    embeddings
        Its layer that gives float32 vectors of ids.

    Returns
    -------
    Tensor of shape (count, hidden).
    """
    import torch

    words = ordinary_words(base.load_tokenizer(folder).get_vocab())
    found = words if len(words) >= count else list(range(embeddings.num_embeddings))
    random = np.random.default_rng(seed)
    chosen = random.choice(found, count, replace=len(found) < count)
    with torch.no_grad():
        return embeddings(torch.from_numpy(chosen)).float()


def ordinary_words(vocabulary: Mapping[str, int]) -> list[int]:
    """Give the ids of the most common whole words of lower-case letters, the most common first."""
    marked = any(token.startswith(_MARKS) for token in vocabulary)
    words = (
        number
        for token, number in vocabulary.items()
        if token.startswith(_MARKS) == marked and _is_word(token.lstrip("".join(_MARKS)))
    )
    return sorted(words)[:_MOST_COMMON]


def _is_word(text: str) -> bool:
    return len(text) >= _SHORTEST and text.isalpha() and text.islower()
