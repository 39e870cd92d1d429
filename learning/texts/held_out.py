"""Which of a board's texts are never trained on, so that it can say what a version is worth.

A text's own hash decides: no list is kept, no text changes sides when the file grows or its lines
are moved, and a text that stands there twice, or on two boards, is on one side everywhere.

A file with fewer than `FEWEST` held-out texts has none: all are trained on. With fewer, one text
that turns moves the accuracy by more than ten points, and where data are few a tenth of them is
missed most.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import TypeVar

from learning.texts.data import Example, Part

FEWEST, MOST = 10, 200
UNIT_CHARACTERS = 2048
"""A text file is no list of texts: pieces of at most this length are held out or not."""
_LONGEST = 2 * UNIT_CHARACTERS

T = TypeVar("T", Example, Part)


class TooFew(Exception):
    """A file has fewer than `FEWEST` texts to hold out."""


def place(text: str) -> float:
    """Give where a text falls from 0 to 1: anywhere alike, and at the same place on all boards."""
    digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64


def trained(examples: Iterable[Example], share: float) -> Iterator[Example]:
    """Leave out the examples that are held out."""
    return (example for example in examples if place(example.text) >= share)


def trained_parts(parts: Iterable[Part], share: float) -> Iterator[Part]:
    """Leave out the parts that are held out; what stands before one of them ends a document."""
    before: Part | None = None
    for part in parts:
        if place(part.text) >= share:
            if before is not None:
                yield before
            before = part
        elif before is not None:
            yield before._replace(last=True)
            before = None
    if before is not None:
        yield before


def held(examples: Iterable[Example], share: float) -> list[Example]:
    """Give the examples that are held out, each once, `MOST` at most: those of the lowest places.

    So they are of the whole file, and one that is new to it drives out one at most: two versions
    are measured on nearly the same.

    Raises
    ------
    TooFew
        There are fewer than `FEWEST`.
    """
    return _lowest(examples, share)


def held_parts(parts: Iterable[Part], share: float) -> list[Part]:
    """Give the parts that are held out, each a document, as `held` does; long ones are cut."""
    return [Part(part.text[:_LONGEST], last=True) for part in _lowest(parts, share)]


def _lowest(texts: Iterable[T], share: float) -> list[T]:
    found: dict[float, T] = {}
    below = share
    for text in texts:
        at = place(text.text)
        if at < below and text.text:
            found.setdefault(at, text)
        if len(found) > MOST:
            below = max(found)
            del found[below]
    if len(found) < FEWEST:
        raise TooFew
    return [found[at] for at in sorted(found)]
