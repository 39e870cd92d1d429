"""Seeds derived from names, so that no two draws of a federation share one and all repeat."""

from __future__ import annotations

import hashlib


def derive(*parts: object) -> int:
    """Give a seed in [0, 2**31) that depends on every part and on their order."""
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) >> 1
