"""What a decision leaves: for the ledger, for whoever looks, and for the next version."""

from __future__ import annotations

import msgspec


class Squares(msgspec.Struct, frozen=True):
    """Squared lengths: of LoRA products ``B A``, and of all the rest.

    They are kept apart because they have no common unit: `alpha` and the step sizes of heads
    stretch the one and not the other.
    """

    products: float
    rest: float


class Numbers(msgspec.Struct, frozen=True, kw_only=True):
    """What lambda is made of, as shares of |g_F|^2.

    Parameters
    ----------
    v_f, v_s
        Variance of the federated and of the public step.
    b2
        Squared bias of the public step; in what a single version shows it may be below 0.
    """

    v_f: float
    v_s: float
    b2: float


class State(msgspec.Struct, frozen=True, kw_only=True):
    """What a version hands to the next.

    Parameters
    ----------
    agent_noise, public_noise
        Variance of one agent's step, and of one public half's, as a share of its squared length:
        this hardly depends on how many agents a version has.
    bias
        As `Numbers.b2`, before it is cut at 0: cut first, its mean would be too high.
    seen
        Versions that these are the means of.
    budget
        Of the public data, from 0 to 1: `hub.switching.guard`.
    length
        Squared, of the last federated step; None before the first.
    alone
        How far the hub has gone without the federation since then, as a share of that step.
    """

    agent_noise: float | None = None
    public_noise: float | None = None
    bias: float | None = None
    seen: int = 0
    budget: float = 1.0
    length: Squares | None = None
    alone: float = 0.0


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What a version is mixed of, and why.

    Parameters
    ----------
    policy
        Its kind.
    share
        Lambda: 0 is the federated step alone, 1 the public one alone.
    scale
        What the public step is multiplied by before that: factors of the two spaces, not squared.
    used, seen
        The numbers that lambda follows from, which are means over versions, and what this version
        alone shows. None where there is nothing to compare.
    agents
        How many agents of like weight would give as quiet a mean; 0 without the federation.
    federated, public
        Lengths of the steps as they came, in the two spaces; not squared.
    budget
        As in `State`.
    why
        In words.
    """

    policy: str
    share: float
    scale: Squares = Squares(0.0, 0.0)
    used: Numbers | None = None
    seen: Numbers | None = None
    agents: float = 0.0
    federated: Squares | None = None
    public: Squares | None = None
    budget: float
    why: str
