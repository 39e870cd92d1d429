"""How far each attack moves each rule: `python -m benchmarks.robustness`, seconds, no training.

Honest agents go a common way, each with a way of its own and noise beside it. What is told is the
error of the new version: its distance from what the honest agents alone would make by a plain mean,
in the space of LoRA products and of the head, in units of that mean's own step.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

import numpy as np
from msgspec.structs import replace

from benchmarks.attacks import ATTACKS, Attack, Update
from ffm_common.slices import pairs
from ffm_common.tensors import Array, Tensors
from hub.aggregation.mean import Contribution, aggregate
from hub.robust.defence import PLAIN, Defence
from hub.robust.defend import defend

AGENTS = 20
_SHARE = 0.4
_BARE = replace(PLAIN, attackers=_SHARE)
_CLIPPED = replace(_BARE, clip=True)
RULES: Mapping[str, Defence] = {
    "default": Defence(attackers=_SHARE),
    "clip + company + trust": Defence(threshold=False, attackers=_SHARE),
    "clip + company": replace(_CLIPPED, company=True),
    "clip + trust": replace(_CLIPPED, trust=True),
    "threshold + clip": replace(_CLIPPED, threshold=True),
    "clip": _CLIPPED,
    "clip + mixing + trimmed mean": replace(_CLIPPED, mix=True, rule="trimmed-mean"),
    "clip + company + mixing + trimmed mean": replace(
        _CLIPPED, company=True, mix=True, rule="trimmed-mean"
    ),
    "trimmed mean": replace(_BARE, rule="trimmed-mean"),
    "median": replace(_BARE, rule="median"),
    "geometric median": replace(_BARE, rule="geometric-median"),
    "centred clipping": replace(_BARE, rule="centred-clipping"),
    "krum": replace(_BARE, rule="krum"),
    "multi-krum": replace(_BARE, rule="multi-krum"),
}


class Fleet:
    """An imagined federation.

    Parameters
    ----------
    agents
        How many, attackers included.
    attackers
        How many of them are.
    seed
        Of everything that is drawn.
    spread
        How long an agent's own way is, in units of the common one; half of its square is noise
        of its own, half is shared by a quarter of the agents, whose data are alike.
    bias
        The same of the hub's public step.
    """

    def __init__(
        self, agents: int, attackers: int, seed: int, *, spread: float = 1.5, bias: float = 1.5
    ) -> None:
        self.draw = np.random.default_rng(seed)
        self.version = {
            f"layer-{layer}.{name}": array
            for layer in range(2)
            for name, array in self._layer().items()
        } | {"classifier.weight": self._random((5, 64), 1.0)}
        self._lengths = {
            key: 0.1 * float(np.linalg.norm(array)) for key, array in self.version.items()
        }
        common = self._way()
        kinds = [self._way() for _ in range(4)]
        share = spread / np.sqrt(2)
        self.honest = [
            self._sum(common, share, kinds[place % 4], share, self._way())
            for place in range(agents - attackers)
        ]
        self.public = self._sum(common, bias, self._way(), 0.0, common)
        self.attackers = attackers

    def _random(self, shape: tuple[int, ...], length: float) -> Array:
        found = self.draw.standard_normal(shape)
        return np.asarray(length * found / np.sqrt(shape[-1]), np.float32)

    def _layer(self) -> Update:
        return {
            "lora_A.weight": self._random((4, 64), 1.0),
            "lora_B.weight": self._random((48, 4), 0.5),
        }

    def _way(self) -> Update:
        found = {key: self.draw.standard_normal(array.shape) for key, array in self.version.items()}
        return {
            key: np.asarray(self._lengths[key] * array / np.linalg.norm(array), np.float32)
            for key, array in found.items()
        }

    @staticmethod
    def _sum(common: Tensors, one: float, first: Tensors, other: float, second: Tensors) -> Update:
        return {
            key: common[key] + np.float32(one) * first[key] + np.float32(other) * second[key]
            for key in common
        }

    def under(self, attack: Attack | None) -> dict[str, Contribution]:
        """Give everybody's updates; without an attack, those of the honest agents alone."""
        updates: Sequence[Tensors] = self.honest
        if attack is not None and self.attackers:
            updates = [*updates, *attack(self.honest, self.attackers, self.draw)]
        # Who attacks is not to be told by the order of names.
        places = self.draw.permutation(len(updates))
        return {
            f"agent-{place:03d}": _contribution(update)
            for place, update in zip(places, updates, strict=True)
        }

    def error(self, found: Tensors) -> float:
        """Give the distance from the honest agents' plain mean, in units of its step."""
        wanted = aggregate(self.version, self.under(None)).tensors
        return _distance(found, wanted) / _distance(self.version, wanted)


def _contribution(update: Tensors) -> Contribution:
    return Contribution(lambda: update, 10)


def _distance(one: Tensors, other: Tensors) -> float:
    """Give the distance of two versions: of the products of LoRA factors, and of what is none."""
    factors = pairs(one)
    paired = {key for pair in factors for key in pair}
    ways = [one[b] @ one[a] - other[b] @ other[a] for a, b in factors]
    ways += [one[key] - other[key] for key in one if key not in paired]
    return float(np.sqrt(sum(float((way**2).sum()) for way in ways)))


def errors(attack: Attack | None, attackers: int, seeds: int) -> dict[str, float]:
    """Give each rule's error under an attack, the mean over seeds; the plain mean comes first."""
    found: dict[str, list[float]] = {"plain mean": [], **{name: [] for name in RULES}}
    for seed in range(seeds):
        fleet = Fleet(AGENTS, attackers, seed)
        updates = fleet.under(attack)
        found["plain mean"].append(fleet.error(aggregate(fleet.version, updates).tensors))
        for name, defence in RULES.items():
            step = fleet.public if defence.trust else None
            made = defend(fleet.version, updates, defence, public_step=step)
            found[name].append(fleet.error(made.aggregate.tensors))
    return {name: float(np.mean(all_seeds)) for name, all_seeds in found.items()}


def main() -> int:
    """Print the tables of docs/robustness.md."""
    for attackers in (0, AGENTS // 5, 2 * AGENTS // 5):
        attacks = ATTACKS if attackers else {"nobody attacks": None}
        rows = {name: errors(attack, attackers, seeds=5) for name, attack in attacks.items()}
        print(f"\n{attackers} of {AGENTS} agents attack\n")
        print("| | " + " | ".join(rows) + " |")
        print("|---" * (len(rows) + 1) + "|")
        for rule in ("plain mean", *RULES):
            print(f"| {rule} | " + " | ".join(f"{row[rule]:.2f}" for row in rows.values()) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
