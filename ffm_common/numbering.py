"""Version numbers of software, and which of two is the newer (a part of PEP 440).

Taken are numbers with dots, and behind them a1, b1 or rc1, .post1, .dev1. Epochs and local parts
are not: what is released has none.
"""

from __future__ import annotations

import re
from typing import Final

NUMBER_PATTERN: Final = (
    r"[0-9]{1,9}(\.[0-9]{1,9}){0,4}((a|b|rc)[0-9]{1,6})?(\.post[0-9]{1,6})?(\.dev[0-9]{1,6})?"
)
WHEEL_PATTERN: Final = r"[A-Za-z0-9_.]+(-[A-Za-z0-9_.]+){4}\.whl"
"""What the file of a wheel may be called."""
_PARTS: Final = re.compile(
    r"(?P<release>\d+(?:\.\d+)*)(?:(?P<stage>a|b|rc)(?P<stage_number>\d+))?"
    r"(?:\.post(?P<post>\d+))?(?:\.dev(?P<dev>\d+))?"
)
_FINAL: Final = "z"
_END: Final = 1 << 30


def is_number(text: str) -> bool:
    """Tell whether a text is a version number as described."""
    return re.fullmatch(NUMBER_PATTERN, text) is not None


def newer(one: str, other: str) -> bool:
    """Tell whether `one` is newer than `other`; both are version numbers."""
    return _key(one) > _key(other)


def _key(number: str) -> tuple[tuple[int, ...], str, int, int, int]:
    """Give what sorts as PEP 440 does: 1.dev1 < 1a1.dev1 < 1a1 < 1rc1 < 1 < 1.post1."""
    found = _PARTS.fullmatch(number)
    if found is None:
        raise ValueError(f"{number!r} is no version number")
    release = tuple(map(int, found["release"].split(".")))
    while release and release[-1] == 0:
        release = release[:-1]
    stage, dev = found["stage"], found["dev"]
    if stage is None:  # a development version of a final one comes before its first alpha
        stage = "" if dev is not None and found["post"] is None else _FINAL
    post = -1 if found["post"] is None else int(found["post"])
    return release, stage, int(found["stage_number"] or 0), post, _END if dev is None else int(dev)
