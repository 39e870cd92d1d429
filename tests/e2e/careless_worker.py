"""The agent's worker with a bug that quotes the texts, as some library will have one some day."""

from __future__ import annotations

import sys
import warnings
from typing import Any

from edge_agent import worker
from learning.texts import pieces


def careless(texts: list[str], *_: Any, **__: Any) -> Any:
    """Say what is wrong by showing it."""
    try:
        return int(texts[0])
    except ValueError as error:
        raise KeyError(texts) from error


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    pieces._tokenize = careless
    sys.exit(worker.main())
