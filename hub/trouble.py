"""A disk that fails: contained, said, and shown for as long as it lasts.

What a full or broken disk hinders is left undone and tried again with the next turn of the hub's
loop; everything else goes on.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from typing import Final

from ffm_common.errors import PathUnwritable, StorageError

log = logging.getLogger("ffm.hub")

_SAY_AGAIN_S: Final = 60.0
_LASTS_S: Final = 30.0


class Trouble:
    """The last thing that the disk refused."""

    def __init__(self) -> None:
        self._line = ""
        self._met = self._said = float("-inf")

    @property
    def line(self) -> str:
        """What is wrong and what to do; "" when nothing has been refused for half a minute."""
        return self._line if time.monotonic() < self._met + _LASTS_S else ""

    @contextlib.contextmanager
    def contained(self) -> Iterator[None]:
        """End a piece of work that the disk refuses, and nothing else."""
        try:
            yield
        except StorageError as error:
            self.note(error)
        except OSError as error:
            self.note(PathUnwritable(f"the hub's disk: {error}"))

    def note(self, error: StorageError) -> None:
        """Keep what was refused; the log hears it once, and then once a minute."""
        self._met = time.monotonic()
        if error.line() != self._line or self._met >= self._said + _SAY_AGAIN_S:
            self._line, self._said = error.line(), self._met
            log.error("%s", self._line)
