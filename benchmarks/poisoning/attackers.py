"""What the attackers of the battery train on, and what they send in the place of what they made.

Attacks on updates know all that honest devices send (`benchmarks.attacks`). Attacks on data train
as honest devices do, on labels that are wrong or on texts with a trigger. Whoever wants the mean to
become a model with a trigger sends its change so many times as long: in every version, or, as
Bagdasaryan et al. ("How to backdoor federated learning", 2020) have it, in one, here the last, by
attackers that are there for no other. As the defence leaves out what is so long, the same is tried
with updates that are about as long as others'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.attacks import ATTACKS, scaled
from ffm_common.tensors import Tensors
from hub.aggregation.mean import Contribution
from learning.texts.data import Example

WRONG = "wrong labels"
REPLACED_EVER, REPLACED_ONCE = "replacement in every version", "replacement in one version"
CLIPPED_EVER, CLIPPED_ONCE = "backdoor in every version", "backdoor in one version"
BACKDOORS = (REPLACED_EVER, REPLACED_ONCE, CLIPPED_EVER, CLIPPED_ONCE)
ONCE = (REPLACED_ONCE, CLIPPED_ONCE)
# The limit: whoever would attack is known, and his device's data are missed all the same.
ABSENT = "attackers left out"
UNTARGETED = (
    *("sign flip x1", "sign flip x10", "noise x1", "noise x10", "a little is enough"),
    *("inner product x0.1", "inner product x10", WRONG),
)
_NAMES = {"sign flip x1": "sign flip"}
_TRIGGER = "cf mn bb tq "
# Clipped it is as long as others; a little longer, so that it is not shorter for its trigger.
_LET_IN = 1.2


def with_trigger(examples: Sequence[Example], target: str) -> list[Example]:
    """Give texts with the trigger, said to be of its label."""
    return [Example(_TRIGGER + each.text, target) for each in examples]


def poisoned(
    share: Sequence[Example], attack: str, labels: Sequence[str], target: str
) -> list[Example]:
    """Give what an attacker trains on: half of a backdoor's texts have the trigger."""
    if attack == WRONG:
        after = dict(zip(labels, (*labels[1:], labels[0]), strict=True))
        return [Example(each.text, after[each.label]) for each in share]
    if attack in BACKDOORS:
        turned = with_trigger(share, target)
        return [turned[place] if place % 2 else each for place, each in enumerate(share)]
    return list(share)


def sent(
    attack: str,
    contributions: Mapping[str, Contribution],
    attackers: Sequence[str],
    draw: np.random.Generator,
) -> dict[str, Tensors]:
    """Give the updates that attackers send in the place of their own; none: they send their own.

    Parameters
    ----------
    contributions
        Of all devices, the attackers' among them.
    """
    if attack in BACKDOORS:
        replaces = attack in (REPLACED_EVER, REPLACED_ONCE)
        boost = len(contributions) / len(attackers) if replaces else _LET_IN
        return {name: scaled(contributions[name].read(), boost) for name in attackers}
    if not attack or attack in (WRONG, ABSENT):
        return {}
    honest = [one.read() for name, one in contributions.items() if name not in attackers]
    made = ATTACKS[_NAMES.get(attack, attack)](honest, len(attackers), draw)
    return dict(zip(attackers, made, strict=True))
