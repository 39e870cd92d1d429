"""The budget ledger: bytes and energy of each local day, on disk, through restarts.

One small JSON file, replaced atomically. Memory cards wear out with writes, so an entry is written
only when a day's figures have grown by a step, or a minute has passed; a power cut loses no more
than that. Each calendar date has one row and keeps it: a clock that jumps back and forth (a board
without a clock chip starts in the past) finds what was spent that day, never a fresh budget.
"""

from __future__ import annotations

import datetime as dt
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Annotated, Self

import msgspec
from msgspec import Meta

from ffm_common.errors import PathUnwritable
from ffm_common.files import write_atomic
from ffm_common.reading import Unreadable, read_json

_KEPT_DAYS = 32
_STEP_BYTES = 1 << 20
_STEP_JOULES = 1000.0
_WAIT_S = 60.0


class Spent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one day has cost: bytes sent and received, and joules for training."""

    bytes: Annotated[int, Meta(ge=0)] = 0
    joules: Annotated[float, Meta(ge=0)] = 0.0


class Ledger:
    """What was spent on each day, kept in the file `path`; safe to use from several threads.

    A file that cannot be read (a dying card) is set aside as ``<name>.broken``, and counting starts
    anew: the agent must live.

    Raises
    ------
    PathUnwritable
        When the folder takes no file; from `add`, `flush` and `close` too.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.set_aside: Path | None = None
        self._lock = threading.Lock()
        self._days = self._read()
        self._unwritten = Spent()
        self._written_at = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def add(self, day: dt.date, *, count: int = 0, joules: float = 0.0) -> None:
        """Count `count` bytes and `joules` to a local day."""
        with self._lock:
            self._days[day.isoformat()] = _sum(self._row(day), count, joules)
            self._unwritten = _sum(self._unwritten, count, joules)
            due = time.monotonic() - self._written_at >= _WAIT_S
            grown = self._unwritten.bytes >= _STEP_BYTES or self._unwritten.joules >= _STEP_JOULES
            if due or grown:
                self._write()

    def spent(self, day: dt.date) -> Spent:
        """Give what a local day has cost so far."""
        with self._lock:
            return self._row(day)

    def flush(self) -> None:
        """Write what is not yet on disk."""
        with self._lock:
            if self._unwritten != Spent():
                self._write()

    def close(self) -> None:
        """Write the rest; the same as `flush`."""
        self.flush()

    def _row(self, day: dt.date) -> Spent:
        return self._days.get(day.isoformat(), Spent())

    def _read(self) -> dict[str, Spent]:
        try:
            return read_json(self.path, dict[str, Spent])
        except FileNotFoundError:
            return {}
        except (OSError, Unreadable):
            self.set_aside = self.path.with_name(f"{self.path.name}.broken")
            try:
                self.path.replace(self.set_aside)
            except OSError as error:
                raise PathUnwritable(f"cannot set {self.path} aside: {error.strerror}") from error
            return {}

    def _write(self) -> None:
        kept = sorted(self._days)[-_KEPT_DAYS:]
        self._days = {day: self._days[day] for day in kept}
        write_atomic(self.path, msgspec.json.encode(self._days))
        self._unwritten = Spent()
        self._written_at = time.monotonic()


def _sum(spent: Spent, count: int, joules: float) -> Spent:
    return Spent(spent.bytes + count, spent.joules + joules)
