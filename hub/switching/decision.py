"""The switch between public data and federation: what share of a version's step each one gets.

The paper that this follows (arXiv 2305.11414) alternates the two and gives no rule. Here the
federated step g_F counts as noisy and the public step g_S as biased: the devices' data is what the
model is for. A public step that is longer than g_F is brought to its length; a shorter one stays,
since the length of a g_F that is mostly noise says little. With variances v_F and v_S and the
squared bias b2, the mixed step ``(1 - lambda) g_F + lambda g_S`` misses the devices' true step by
``(1 - lambda)^2 v_F + lambda^2 (v_S + b2)`` in the mean square. Noise is drawn anew for each
version, the bias is the same again: where a step lasts T versions, what T of them miss together is
``T ((1 - lambda)^2 v_F + lambda^2 (v_S + T b2))``, which is least at

    lambda = v_F / (v_F + v_S + T b2).

As ``E |g_F - g_S|^2 = v_F + v_S + b2``, the bias follows from what is seen. All numbers are shares
of |g_F|^2, the mean of its two spaces (`Squares`), so that no unit and no step size matters.

Momentum does not change lambda: it is a linear filter that both parts of the mix pass alike.
"""

from __future__ import annotations

import math

import msgspec

from hub.switching.policy import Policy
from hub.switching.record import Decision, Numbers, Squares, State
from hub.switching.scatter import Group, variance_of_one

LARGEST = 0.7
"""Of lambda: the federation always has a say."""

LASTING = 5.0
"""T: versions that a step lasts, until later ones have made it good.

T variances add up to T v, but T like biases to T b, that is T^2 b2 in squares: T times as much for
each. Five versions of 10 or 20 is what a first look at `benchmarks.ffm` found better than one.
"""

# A number is the plain mean of what was seen in the first versions, then mostly what it was.
_KEEP = 0.8
# Steps without the federation together go no farther than this part of its last step.
_TRUST = 0.5
_LEAST_ROOM = 0.05
_BOTH = Squares(1.0, 1.0)


def room(state: State) -> float:
    """Give how far the hub may go alone, as a share of the last federated step; 0: it waits."""
    found = _TRUST * state.budget - state.alone
    return found if state.length is not None and found >= _LEAST_ROOM else 0.0


def decide(
    policy: Policy,
    state: State,
    *,
    federated: Group | None,
    public: Group | None,
    apart: Squares | None,
) -> tuple[Decision, State]:
    """Decide what a version is mixed of; give the state that belongs to the version, too.

    Parameters
    ----------
    federated
        None where no update has come.
    public
        None where no step on public data was taken.
    apart
        Squared distance of the two mean steps, as they came; None where one is missing.

    Notes
    -----
    What public data costs is bounded three times: by `LARGEST`, by the length of the federated
    step, and by the budget that the guard cuts.
    """
    if federated is None:
        return _alone(policy, state, public)
    moved = msgspec.structs.replace(state, length=federated.mean, alone=0.0)
    said = Decision(
        policy=policy.kind,
        share=0.0,
        agents=1 / federated.crowding,
        federated=_roots(federated.mean),
        budget=state.budget,
        why="",
    )
    if public is None or apart is None:
        return msgspec.structs.replace(said, why=_WITHOUT[policy.mixes]), moved
    if not (_moves(federated.mean) and _moves(public.mean)):
        return msgspec.structs.replace(said, why="one of the two steps does not move"), moved
    scale = _scale(federated.mean, public.mean)
    gap = _gap(federated.mean, public.mean, apart, scale)
    used, seen, after = _weigh(moved, federated, public, scale, gap)
    share, why = policy.share, f"the policy is {policy.kind}"
    if policy.kind == "adaptive":
        share, why = _adapt(used, state.budget)
    said = msgspec.structs.replace(
        said,
        share=share,
        scale=scale,
        used=used,
        seen=seen,
        public=_roots(public.mean),
        why=why,
    )
    return said, after


_WITHOUT = {True: "no step on public data was taken", False: "the policy takes no public data now"}


def _adapt(used: Numbers | None, budget: float) -> tuple[float, str]:
    """Give lambda, and the number that it owes most to."""
    if used is None:
        return 0.0, "nothing is known yet of how much steps scatter"
    missed = LASTING * used.b2
    whole = used.v_f + used.v_s + missed
    best = used.v_f / whole if whole > 0 else 0.0
    share = min(best, LARGEST) * budget
    if budget < 1:
        why = "devices' own loss rose after public steps: the budget is cut"
    elif best > LARGEST:
        why = "the federated step is mostly noise: as much public data as is allowed"
    elif used.v_f >= max(used.v_s, missed):
        why = "the federated step's noise outweighs what the public step misses"
    elif missed >= used.v_s:
        why = "the public step leads elsewhere than the federation"
    else:
        why = "the public step is the noisier one"
    return share, why


def _alone(policy: Policy, state: State, public: Group | None) -> tuple[Decision, State]:
    """Decide on a version without updates: warm-up, or a step while the buffer waits."""
    said = Decision(policy=policy.kind, share=0.0, budget=state.budget, why="there is no step")
    if public is None:
        return said, state
    said = msgspec.structs.replace(said, public=_roots(public.mean))
    if state.length is None:
        if not policy.warms_up:
            return msgspec.structs.replace(said, why=_WITHOUT[False]), state
        why = "warm-up: no update has come yet"
        return msgspec.structs.replace(said, share=1.0, scale=_BOTH, why=why), state
    if policy.kind != "adaptive":
        return msgspec.structs.replace(said, why=f"the policy {policy.kind} waits"), state
    if not (free := room(state)):
        why = "the hub has gone as far alone as it may"
        return msgspec.structs.replace(said, why=why), state
    length = math.sqrt(_relative(public.mean, state.length)) if _moves(state.length) else 0.0
    if not length:
        return msgspec.structs.replace(said, why="one of the two steps does not move"), state
    factor = min(1.0, free / length)
    said = msgspec.structs.replace(
        said,
        share=1.0,
        scale=Squares(factor, factor),
        why="the buffer waits: a step alone, inside the trust region",
    )
    return said, msgspec.structs.replace(state, alone=state.alone + factor * length)


def _weigh(
    state: State, federated: Group, public: Group, scale: Squares, gap: float
) -> tuple[Numbers | None, Numbers | None, State]:
    """Give the numbers that lambda follows from, those of this version alone, and the state."""
    keep = min(_KEEP, state.seen / (state.seen + 1))
    now_agent, now_half = _noise(federated), _noise(public)
    agent_noise = _blend(state.agent_noise, now_agent, keep)
    public_noise = _blend(state.public_noise, now_half, keep)
    if public_noise is None:
        return None, None, msgspec.structs.replace(state, agent_noise=agent_noise)
    # Of a lone agent nothing tells the noise. It trains as a half of the public data does, and is
    # one of many that are unlike, so it is at least as noisy.
    noise = public_noise if agent_noise is None else agent_noise
    # What the variances of the two means are where a single step's is as long as it is.
    agents = federated.crowding * _relative(federated.each, federated.mean)
    halves = public.crowding * _relative(_scaled(public.each, scale), federated.mean)
    v_f, v_s = noise * agents, public_noise * halves
    now_f = v_f if now_agent is None else now_agent * agents
    now_s = v_s if now_half is None else now_half * halves
    bias = gap - now_f - now_s
    blended = bias if state.bias is None else keep * state.bias + (1 - keep) * bias
    after = msgspec.structs.replace(
        state,
        agent_noise=agent_noise,
        public_noise=public_noise,
        bias=blended,
        seen=state.seen + 1,
    )
    used = Numbers(v_f=v_f, v_s=v_s, b2=max(0.0, blended))
    return used, Numbers(v_f=now_f, v_s=now_s, b2=bias), after


def _noise(steps: Group) -> float | None:
    """Give the variance of one step as a share of its squared length; None: it tells nothing."""
    each = _relative(steps.each, steps.mean)
    # Steps that stand still have a mean all the same: of rounding alone.
    if steps.single or not each:
        return None
    return variance_of_one(each, 1.0, steps.crowding) / each


def _blend(before: float | None, now: float | None, keep: float) -> float | None:
    if before is None or now is None:
        return now if before is None else before
    return keep * before + (1 - keep) * now


def _moves(mean: Squares) -> bool:
    return mean.products > 0 or mean.rest > 0


def _relative(found: Squares, unit: Squares) -> float:
    """Give squared lengths as shares of `unit`: the mean of the spaces that it has a length in."""
    shares = [
        one / whole
        for one, whole in ((found.products, unit.products), (found.rest, unit.rest))
        if whole > 0
    ]
    return sum(shares) / len(shares)


def _roots(found: Squares) -> Squares:
    return Squares(math.sqrt(found.products), math.sqrt(found.rest))


def _scaled(found: Squares, scale: Squares) -> Squares:
    return Squares(found.products * scale.products**2, found.rest * scale.rest**2)


def _scale(federated: Squares, public: Squares) -> Squares:
    """Give the factors that make the public step no longer than the federated one."""
    return Squares(
        *(
            min(1.0, math.sqrt(one / other)) if other > 0 else 0.0
            for one, other in (
                (federated.products, public.products),
                (federated.rest, public.rest),
            )
        )
    )


def _gap(federated: Squares, public: Squares, apart: Squares, scale: Squares) -> float:
    """Give the squared distance of the federated and the scaled public step, as a share."""
    found = Squares(
        *(
            one + by**2 * other - by * (one + other - between)
            for one, other, between, by in (
                (federated.products, public.products, apart.products, scale.products),
                (federated.rest, public.rest, apart.rest, scale.rest),
            )
        )
    )
    return _relative(found, federated)
