"""What an agent must not forget when the power goes: its boot count and what it has trained.

A small JSON file, written whole a few times per version (SD cards wear by writes).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from ffm_common.errors import LedgerBroken
from ffm_common.files import write_atomic
from ffm_common.reading import Unreadable, read_json


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """The journal's content.

    Parameters
    ----------
    boot
        Starts of this agent so far; tells an old last will from a new one.
    since
        When this journal was begun, in seconds by a clock that may be wrong.
    trained
        The version whose update is already in the outbox or further, by its last blob; "" for none.
    data
        A mark of the data that this update was made of (`edge_agent.freshness`); "" for none.
    hub, issued
        The hub's public key, and the number of the last manifest acted on that it has signed.
    released
        The number of its last release that was heard of.
    """

    boot: Annotated[int, Meta(ge=0, lt=2**53)] = 0
    since: Annotated[int, Meta(ge=0, le=2**53)] = 0
    trained: Annotated[str, Meta(pattern=r"\A([0-9a-f]{64})?\Z")] = ""
    data: Annotated[str, Meta(pattern=r"\A([0-9a-f]{64})?\Z")] = ""
    hub: Annotated[str, Meta(pattern=r"\A([0-9a-f]{64})?\Z")] = ""
    issued: Annotated[int, Meta(ge=0, le=2**53)] = 0
    released: Annotated[int, Meta(ge=0, le=2**53)] = 0


class Journal:
    """Open the journal at `path`; LedgerBroken if it cannot be read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self.entry = read_json(path, Entry)
        except FileNotFoundError:
            self.entry = Entry()
        except (OSError, Unreadable) as error:
            raise LedgerBroken(f"{path}: {error}") from error

    def boot(self) -> int:
        """Count one more start and give the count."""
        since = self.entry.since or int(time.time())
        self._write(msgspec.structs.replace(self.entry, boot=self.entry.boot + 1, since=since))
        return self.entry.boot

    def set_trained(self, blob: str, data: str) -> None:
        """Note that the update made from the version that ends in `blob` is safe in the outbox."""
        self._write(msgspec.structs.replace(self.entry, trained=blob, data=data))

    def issued(self, hub: str) -> int:
        """Give the number of the last manifest of a hub that was acted on; 0 for another hub."""
        return self.entry.issued if self.entry.hub == hub else 0

    def set_issued(self, hub: str, number: int) -> None:
        """Note that number."""
        released = self.released(hub)
        self._write(msgspec.structs.replace(self.entry, hub=hub, issued=number, released=released))

    def released(self, hub: str) -> int:
        """Give the number of the last release of a hub that was heard of; 0 for another hub."""
        return self.entry.released if self.entry.hub == hub else 0

    def set_released(self, hub: str, number: int) -> None:
        """Note that number."""
        issued = self.issued(hub)
        self._write(msgspec.structs.replace(self.entry, hub=hub, issued=issued, released=number))

    def _write(self, entry: Entry) -> None:
        write_atomic(self._path, msgspec.json.encode(entry))
        self.entry = entry
