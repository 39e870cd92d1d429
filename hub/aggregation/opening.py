"""Opening updates: which rank an update has is told by its spec digest, so nothing else says it."""

from __future__ import annotations

from pathlib import Path

from ffm_common.errors import UpdateInvalid
from ffm_common.slices import rank_of, take_slices
from ffm_common.task import Adapter
from ffm_common.tensors import Array, Tensors
from quantization.updates.container import Header, read_header, unpack
from quantization.updates.layout import Layout


class Opener:
    """Opens the updates to one version, of every rank that its federation lets in.

    Parameters
    ----------
    version
        The version's tensors.
    adapter
        The task's; says which ranks there may be.
    base
        Digest of the base that updates must be made on.
    """

    def __init__(self, version: Tensors, adapter: Adapter, base: str) -> None:
        self._base = base
        self._known: dict[str, tuple[int, Layout]] = {}
        most = rank_of(version)
        for rank in adapter.ranks if most else (0,):
            layout = Layout.of(take_slices(version, rank) if most else version)
            self._known[layout.spec] = rank, layout

    def open(self, blob: bytes) -> tuple[Header, dict[str, Array]]:
        """Decode a container.

        Raises
        ------
        UpdateInvalid
            It is broken, or made for another base or adapter.
        """
        return unpack(blob, self._find(blob)[1], base=self._base)

    def rank_of(self, header: Header) -> int:
        """Give the rank of the LoRA factors of a container that was opened, 0 if there are none."""
        return self._known[header.spec][0]

    def read(self, path: Path) -> dict[str, Array]:
        """Decode the container in a file."""
        return self.open(path.read_bytes())[1]

    def rank(self, path: Path) -> int:
        """Give the rank of the LoRA factors of a container in a file, 0 if there are none."""
        return self._find(path.read_bytes())[0]

    def _find(self, blob: bytes) -> tuple[int, Layout]:
        found = self._known.get(read_header(blob).spec)
        if found is None:
            raise UpdateInvalid("made for an adapter of other names or shapes")
        return found
