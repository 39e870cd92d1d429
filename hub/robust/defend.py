"""A robust mean of updates, in the place of `hub.aggregation.mean.aggregate`.

Two looks at all updates: at first come the inner products, from which everything is decided, then
the new tensors are made.

Where boards train different ranks, a range of slices is judged among those who have it, by all that
these have in common, so a small board is not an outlier for what it lacks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from ffm_common.errors import UpdateInvalid
from ffm_common.slices import pairs, rank_of
from ffm_common.tensors import Array, Tensors
from hub.aggregation.mean import Aggregate, Contribution, example_weights
from hub.aggregation.products import Exact
from hub.robust.combine import Ruled, combine_factors, combine_other
from hub.robust.defence import Defence
from hub.robust.geometry import Changes
from hub.robust.judgement import Judgement, Stage
from hub.robust.measured import OTHERS, Joint, Measured, Part, measure
from hub.robust.reputation import WORST, along, renewed, reputations_of, voices_of
from hub.robust.stacks import HELD_BYTES, Stacks
from hub.robust.verdict import Verdict, judge

_THREADS = 2
_FLAGGED = 0.25


class Length(msgspec.Struct, frozen=True):
    """An update as it counts, that is clipped: its weight, and squared lengths.

    Of slices that are clipped each for itself the squares are summed, as if they were orthogonal:
    `hub.aggregation.products.split` leaves rows of A so, and columns of B nearly.
    """

    weight: float
    products: float
    rest: float


class Defended(msgspec.Struct, frozen=True, kw_only=True):
    """The new tensors and how they came about.

    Parameters
    ----------
    judgements
        Agent id -> what was found.
    lengths
        Of the updates with a weight: how much they scatter follows from these.
    medians
        Part of an update -> running median of its norm, to be given to the next version.
    reputation
        Agent id -> whether it goes along with the others, to be given to the next version.
    notes
        Where something is not as the configuration asks, in words for a person.
    """

    aggregate: Aggregate
    judgements: dict[str, Judgement]
    lengths: tuple[Length, ...]
    medians: dict[str, float]
    reputation: dict[str, float]
    notes: tuple[str, ...]


def defend(
    version: Tensors,
    contributions: Mapping[str, Contribution],
    defence: Defence,
    *,
    least: int | None = None,
    public_step: Tensors | None = None,
    medians: Mapping[str, float] | None = None,
    reputation: Mapping[str, float] | None = None,
    held_bytes: int = HELD_BYTES,
) -> Defended:
    """Make one update of many, of which some may be harmful.

    Parameters
    ----------
    version, contributions, least
        As for `hub.aggregation.mean.aggregate`, and so is what comes out where nothing is defended.
    public_step
        What the hub's own training makes of the version, as a difference to it. Only its direction
        matters.
    medians, reputation
        What the version before left in `Defended`.
    held_bytes
        How much of decoded updates may be in memory.

    Raises
    ------
    UpdateInvalid
        There is none, or one has other names or shapes, or values that do not stay finite.
    """
    if not contributions:
        raise UpdateInvalid("no update to aggregate")
    stacks = Stacks(
        version,
        contributions,
        () if public_step is None else (public_step,),
        held_bytes=held_bytes,
    )
    seen = measure(version, stacks, medians or {}, clip=defence.clip)
    known, voices = reputation or {}, seen.sound.astype(np.float64)
    if defence.reputation:
        former = reputations_of(stacks.names, known)
        voices *= voices_of(former, defence.most(len(former)))
    examples = np.array(example_weights([contributions[name].examples for name in stacks.names]))
    notes: list[str] = []
    judged: dict[int, _Judged] = {}
    for part in seen.parts:
        if part.owners.size not in judged:
            found = _judge(part, seen, examples, defence, voices)
            judged[part.owners.size] = found
            notes += (f"{part.name}: {note}" for note in found.verdict.notes)
    ruled = {
        part.name: Ruled(part.slices, judged[part.owners.size].verdict, seen.scales[part.name])
        for part in seen.parts
    }
    made = _combine(version, stacks, ruled, least or rank_of(version))
    everybody = judged[len(stacks.names)]
    verdict, cosines = everybody.verdict, everybody.joint.cosines
    shortest = np.min(list(seen.scales.values()), axis=0)
    standing = verdict.standing * shortest
    left: dict[Stage, Exact] = {
        "rounding": seen.sound.astype(np.float64),
        **verdict.left,
        "clip": shortest,
    }
    judgements = {
        name: Judgement(
            norm=float(seen.longest[place]),
            cosine=None if cosines is None else float(cosines[place]),
            weight=float(verdict.weights[place]),
            standing=float(standing[place]),
            flagged=bool(standing[place] < _FLAGGED),
            why=_taken(left, place),
        )
        for place, name in enumerate(stacks.names)
    }
    return Defended(
        aggregate=made,
        judgements=judgements,
        lengths=_lengths(seen, verdict.weights),
        medians=seen.bounds,
        reputation=renewed(known, _conduct(stacks.names, everybody, seen.sound, defence)),
        notes=tuple(notes),
    )


class _Judged(msgspec.Struct, frozen=True):
    """What was found by a part and all that its owners have beside it, and in what."""

    verdict: Verdict
    joint: Joint


def _judge(part: Part, seen: Measured, examples: Exact, defence: Defence, voices: Exact) -> _Judged:
    """Judge a part's owners by all parts that they have."""
    count = len(examples)
    joint = seen.joint(part)
    cosines, owners = joint.cosines, part.owners
    found = judge(
        joint.gram[np.ix_(owners, owners)],
        examples[owners],
        defence,
        lengths=joint.lengths[owners],
        cosines=cosines[owners] if cosines is not None and defence.trust else None,
        voices=voices[owners],
    )
    verdict = msgspec.structs.replace(
        found,
        weights=_spread(found.weights, owners, count),
        left={stage: _spread(kept, owners, count) for stage, kept in found.left.items()},
        members=owners[found.members],
    )
    return _Judged(verdict, joint)


def _taken(left: Mapping[Stage, Exact], place: int) -> Stage | Literal[""]:
    """Name the stage that left least of an update, of equals the first; "" if all left it whole."""
    stage = min(left, key=lambda one: left[one][place])
    return stage if left[stage][place] < 1 else ""


def _conduct(
    names: Sequence[str], judged: _Judged, sound: NDArray[np.bool_], defence: Defence
) -> dict[str, float]:
    """Tell how far each agent went along with those that counted."""
    cosines = judged.joint.cosines if defence.trust else None
    seen = along(judged.joint.gram, judged.verdict.standing, cosines)
    told = {} if seen is None else dict(zip(names, map(float, seen), strict=True))
    # What their products look like is rounding.
    return told | {names[int(place)]: WORST for place in np.flatnonzero(~sound)}


def _lengths(seen: Measured, weights: Exact) -> tuple[Length, ...]:
    """Measure the updates that count."""
    products, rest = np.zeros(len(weights)), np.zeros(len(weights))
    for part in seen.parts:
        squares = np.maximum(np.diag(seen.grams[part.name])[: len(weights)], 0)
        (rest if part.name == OTHERS else products)[:] += seen.scales[part.name] ** 2 * squares
    return tuple(
        Length(float(weights[place]), float(products[place]), float(rest[place]))
        for place in np.flatnonzero(weights > 0)
    )


def _spread(values: Exact, places: NDArray[np.int64], count: int) -> Exact:
    found = np.zeros(count)
    found[places] = values
    return found


def _combine(version: Tensors, stacks: Stacks, ruled: Mapping[str, Ruled], least: int) -> Aggregate:
    """Make the new tensors, layer by layer, two at a time."""
    tiers = [one for name, one in ruled.items() if name != OTHERS]
    count = len(stacks.names)
    result: dict[str, Array] = {}
    lost = whole = 0.0
    with ThreadPoolExecutor(max_workers=_THREADS) as pool:
        for block in stacks.blocks():
            factors = pairs(block)

            def make(
                pair: tuple[str, str], block: Mapping[str, Array] = block
            ) -> tuple[Array, Array, float, float]:
                a, b = pair
                changes = Changes(version[a], version[b], block[a][:count], block[b][:count])
                return combine_factors(changes, tiers, least)

            for (a, b), made in zip(factors, pool.map(make, factors), strict=True):
                result[a], result[b] = made[:2]
                lost, whole = lost + made[2], whole + made[3]
            for key in sorted(block.keys() - result.keys()):
                result[key] = combine_other(version[key], block[key][:count], ruled[OTHERS])
    ordered = {key: result[key] for key in sorted(result)}
    return Aggregate(ordered, lost / whole if whole else 0.0)
