"""Policies by name: what share of a version's step comes from public data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from ffm_common.errors import ConfigInvalid

Kind = Literal["adaptive", "never", "always", "warmup-then-federated", "fixed"]

_FIXED = "fixed:"
_PATIENCE = 2
_BETTER = 0.99
_NAMES = "adaptive, never, always, warmup-then-federated or fixed:r, r from 0 to 1"


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """A policy.

    Parameters
    ----------
    kind
        ``adaptive``: decided for each version (`hub.switching.decision`); ``never``: no public data
        at all; ``always``: as much from the one as from the other; ``fixed``: a share of one's own;
        ``warmup-then-federated``: public data before the first update, none after it.
    share
        What it always is; of an adaptive one it is decided.
    """

    kind: Kind
    share: float = 0.0

    @property
    def warms_up(self) -> bool:
        """Whether public data is used before the federation begins."""
        return self.kind != "never"

    @property
    def mixes(self) -> bool:
        """Whether public data is used after the federation has begun."""
        return self.kind == "adaptive" or self.share > 0


def policy_of(name: str) -> Policy:
    """Give the policy of a name.

    Raises
    ------
    ConfigInvalid
        There is none, or its share is not from 0 to 1.
    """
    match name:
        case "adaptive" | "never" | "warmup-then-federated":
            return Policy(kind=name)
        case "always":
            return Policy(kind=name, share=0.5)
    try:
        share = float(name.removeprefix(_FIXED)) if name.startswith(_FIXED) else -1.0
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise ConfigInvalid(f"{name!r} is no policy, it must be {_NAMES}")
    return Policy(kind="fixed", share=share)


def flat(losses: Sequence[float]) -> bool:
    """Tell whether a warm-up is over: its validation loss has stopped falling.

    Parameters
    ----------
    losses
        On public data that is held out, one after each stretch of the warm-up.
    """
    if len(losses) <= _PATIENCE:
        return False
    best = min(losses[:-_PATIENCE])
    return min(losses[-_PATIENCE:]) > _BETTER * best
