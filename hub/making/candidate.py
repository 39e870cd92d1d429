"""What the counted updates and the public step come to: one step, and the server's along it.

Runs in the hub's worker, so that the hub's own loop moves bytes and does nothing else.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

import msgspec

from ffm_common.errors import AdapterInvalid, UpdateInvalid
from ffm_common.task import Adapter
from ffm_common.tensors import Array, Tensors
from hub.aggregation.mean import Contribution
from hub.aggregation.opening import Opener
from hub.aggregation.rebase import discount, rebase
from hub.aggregation.server_optimizer import load_moments, save_moments, step
from hub.config import Gate, Server
from hub.robust.defence import Defence
from hub.switching.policy import policy_of
from hub.switching.public_step import PublicStep
from hub.switching.step import Step, take_step
from hub.versions.ledger import LeftOut
from hub.versions.record import Record
from learning.adapter import load_tensors

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


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What of hub.toml matters here: see `hub.config`."""

    adapter: Adapter
    server: Server = Server()
    defence: Defence = Defence()
    gate: Gate = Gate()
    policy: str = "adaptive"


class Candidate(msgspec.Struct, frozen=True):
    """The tensors of a version before they are encoded.

    Parameters
    ----------
    step
        How they came about.
    left_out
        Counted updates whose files, or the files of the versions that they were made from, are
        damaged or gone: they are in no version.
    """

    tensors: dict[str, Array]
    step: Step
    left_out: tuple[LeftOut, ...]


def add_up(
    version: Tensors,
    counted: Sequence[Counted],
    *,
    settings: Settings,
    base: str,
    record: Record,
    carried: Path | None,
    carry: Path,
    public: PublicStep | None = None,
) -> Candidate:
    """Make one step of all updates, and of the hub's own, and take the server's step along it.

    Parameters
    ----------
    version
        What the agents started from, those apart whose updates name an older one: these are turned
        into updates to this one (`hub.aggregation.rebase`).
    base
        Digest of the base that updates are made on.
    record
        What `version` hands over: the state of the switch, the usual norms.
    carried
        Folder with the moments of `version`; None lets them start anew.
    carry
        Folder that gets the moments of the new version.
    public
        What public data leads to; None where nothing was trained.

    Raises
    ------
    UpdateInvalid
        An update has other names or shapes, or values that do not stay finite.
    PathUnwritable
        The disk does not take the moments.
    """
    opener = Opener(version, settings.adapter, base)
    starts = cache(_tensors)  # several updates may come from one
    whole: dict[str, Contribution] = {}
    left_out: list[LeftOut] = []
    for one in counted:
        try:
            rank = opener.rank(Path(one.path))
            read: Callable[[], Tensors] = partial(opener.read, Path(one.path))
            kept = 1.0
            if one.start is not None:
                read = partial(
                    _rebased,
                    read,
                    version,
                    starts(one.start),
                    one.start.staleness,
                    rank=rank,
                    least=settings.adapter.ranks[0],
                    agent=one.agent,
                )
                kept = discount(one.start.staleness)
            whole[one.agent] = Contribution(read, one.examples, rank, kept)
        except (AdapterInvalid, UpdateInvalid, OSError) as error:
            log.error("the counted update of %s is left out: %s", one.agent, error)
            left_out.append(LeftOut(one.agent, f"damaged on the hub's disk: {error}"))
    found = take_step(
        version,
        whole,
        public,
        policy=policy_of(settings.policy),
        defence=settings.defence,
        state=record.state,
        medians=record.medians,
        reputation=record.reputation,
        least=settings.adapter.ranks[0],
    )
    moments = load_moments(carried, settings.server, version)
    made, moments = step(settings.server, version, found.tensors, moments)
    save_moments(carry, moments)
    return Candidate(made, found, tuple(left_out))


def _rebased(
    read: Callable[[], Tensors],
    version: Tensors,
    start: Tensors,
    staleness: int,
    *,
    rank: int,
    least: int,
    agent: str,
) -> Tensors:
    """Decode an update to an older version, as one to this version."""
    return rebase(version, start, read(), staleness, rank=rank, least=least, agent=agent).delta


def _tensors(start: Start) -> Tensors:
    """Read an older version, as it was published and nothing else."""
    return load_tensors(Path(start.adapter), start.content)
