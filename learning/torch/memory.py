"""Giving memory back: texts of unlike lengths leave glibc's heap in pieces that it keeps.

In 60 steps on banking77 (MiniLM, 16 questions a step) the process grew from 324 to 913 MB, of which
589 were free pieces; trimmed now and then it stays near what is in use. With tcmalloc in glibc's
place nothing piles up, and there is nothing to trim.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

# Trimming after each batch would have most pages mapped and faulted in anew. In CPU time of short
# steps: every 2nd 17 %, every 6th 10 %.
_EVERY = 4


class Trimmer:
    """Counts batches, and has the allocator give its free pages back after every few of them."""

    def __init__(self) -> None:
        self._batches = 0

    def after_batch(self) -> None:
        """Note that a batch is done."""
        self._batches += 1
        if self._batches % _EVERY == 0:
            _trim()(0)


@functools.cache
def _trim() -> Callable[[int], int]:
    """Find ``malloc_trim``, a function of glibc alone."""
    found = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return found if found is not None else lambda _: 0
