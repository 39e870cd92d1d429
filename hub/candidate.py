"""What the counted updates of a version come to: their exact mean, and the server's step to it.

Runs in the hub's worker, so that the hub's own loop moves bytes and does nothing else.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import msgspec

from ffm_common.errors import UpdateInvalid
from ffm_common.task import Adapter
from ffm_common.tensors import Array, Tensors
from hub.aggregation import Contribution, aggregate
from hub.config import Server
from hub.ledger import LeftOut
from hub.opening import Opener
from hub.server_optimizer import load_moments, save_moments, step

log = logging.getLogger("ffm.hub")


class Start(msgspec.Struct, frozen=True):
    """An older version that an update was made from: its adapter folder and its digest.

    `staleness` is how many versions it lies behind the one that is open, at least 1.
    """

    adapter: str
    content: str
    staleness: int


class Counted(msgspec.Struct, frozen=True):
    """A counted update: whose, the file of its container, how many examples made it.

    `start` is None where it was made from the version that is open.
    """

    agent: str
    path: str
    examples: int
    start: Start | None = None


class Candidate(msgspec.Struct, frozen=True):
    """The tensors that a version is refreshed from.

    Parameters
    ----------
    tail
        Share of the LoRA products' energy lost by the cut to the rank.
    left_out
        Counted updates whose files are damaged or gone: they are in no version.
    """

    tensors: dict[str, Array]
    tail: float
    left_out: tuple[LeftOut, ...]


def add_up(
    version: Tensors,
    counted: Sequence[Counted],
    *,
    adapter: Adapter,
    base: str,
    server: Server,
    carried: Path | None,
    carry: Path,
) -> Candidate:
    """Add updates up and take the server's step; its moments are left in the folder `carry`.

    Parameters
    ----------
    version
        What the agents started from.
    adapter, base
        What updates are made of, and the digest of the base that they are made on.
    carried
        Folder with the moments of `version`; None lets them start anew.

    Raises
    ------
    UpdateInvalid
        An update has other names or shapes, or values that do not stay finite.
    PathUnwritable
        The disk does not take the moments.
    """
    opener = Opener(version, adapter, base)
    whole: dict[str, Contribution] = {}
    left_out: list[LeftOut] = []
    for one in counted:
        path = Path(one.path)
        try:
            whole[one.agent] = Contribution(
                partial(opener.read, path), one.examples, opener.rank(path)
            )
        except (UpdateInvalid, OSError) as error:
            log.error("the counted update of %s is left out: %s", one.agent, error)
            left_out.append(LeftOut(one.agent, f"damaged on the hub's disk: {error}"))
    mean, tail = dict(version), 0.0
    if whole:
        found = aggregate(version, whole, least=adapter.ranks[0])
        mean, tail = found.tensors, found.tail
    made, moments = step(server, version, mean, load_moments(carried, server, version))
    save_moments(carry, moments)
    return Candidate(made, tail, tuple(left_out))
