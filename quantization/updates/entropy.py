"""Whole numbers to about as many bits as their entropy: the tANS coder of the pcodec library.

Coding and decoding are integer arithmetic, so the same on every machine. Of pcodec's format only
the plain part is let in: no transforms, whose parameters would let a few hostile bytes ask for
gigabytes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pcodec import ChunkConfig, DeltaSpec, ModeSpec, PagingSpec, wrapped

from ffm_common.errors import UpdateInvalid

Symbols = NDArray[np.uint16]

_CHUNK = 1 << 20
_LEVEL = 10  # higher changes nothing here, lower costs 1 % of the bytes
_HEADER = wrapped.FileCompressor().write_header()
# The first byte of a chunk names its mode (4 bits) and its delta encoding (4 bits).
_PLAIN = 0


def encode(symbols: Symbols) -> bytes:
    """Give the coded symbols, in chunks of 2**20."""
    config = ChunkConfig(
        compression_level=_LEVEL,
        mode_spec=ModeSpec.classic(),
        delta_spec=DeltaSpec.no_op(),
        paging_spec=PagingSpec.equal_pages_up_to(_CHUNK),
    )
    parts = []
    for start in range(0, symbols.size, _CHUNK):
        chunk = symbols[start : start + _CHUNK]
        compressor = wrapped.FileCompressor().chunk_compressor(chunk, config)
        parts += [compressor.write_meta(), compressor.write_page(0)]
    return b"".join(parts)


def decode(stream: bytes, count: int) -> Symbols:
    """Give `count` symbols.

    Raises
    ------
    UpdateInvalid
        The stream is not exactly what codes that many.
    """
    symbols = np.empty(count, np.uint16)
    decompressor, _ = wrapped.FileDecompressor.new(_HEADER)
    at = 0
    for start in range(0, count, _CHUNK):
        if at >= len(stream) or stream[at] != _PLAIN:
            raise UpdateInvalid("coded symbols are cut short or of an unknown form")
        chunk = symbols[start : start + _CHUNK]
        try:
            page, used = decompressor.chunk_decompressor(stream[at:], "u16")
            at += used
            progress, used = page.read_page_into(stream[at:], chunk.size, chunk)
            at += used
        except (RuntimeError, TypeError) as error:
            raise UpdateInvalid(f"coded symbols: {error}") from error
        if progress.n_processed != chunk.size:
            raise UpdateInvalid("coded symbols are cut short")
    if at != len(stream):
        raise UpdateInvalid(f"{len(stream) - at} bytes behind the coded symbols")
    return symbols
