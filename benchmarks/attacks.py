"""What harmful agents send: the attacks of the literature, made from honest updates.

The attackers here know everything: each attack is given what all honest agents send. They act on
the tensors that travel, LoRA factors or not, as an attacker must.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist
from typing import TypeAlias

import numpy as np

from ffm_common.tensors import Array, Tensors

Update: TypeAlias = dict[str, Array]
Attack: TypeAlias = Callable[[Sequence[Tensors], int, np.random.Generator], list[Update]]
"""(honest updates, number of attackers, draws) -> what the attackers send."""


def sign_flip(times: float) -> Attack:
    """Send the opposite of what an honest agent would, so many times as long."""

    def attack(
        honest: Sequence[Tensors], attackers: int, draw: np.random.Generator
    ) -> list[Update]:
        places = draw.integers(len(honest), size=attackers)
        return [scaled(honest[place], -times) for place in places]

    return attack


def gaussian(times: float) -> Attack:
    """Send noise, so many times as long as an honest update."""

    def attack(
        honest: Sequence[Tensors], attackers: int, draw: np.random.Generator
    ) -> list[Update]:
        spread = {key: times * np.sqrt(_mean_of(honest, key, 2)) for key in honest[0]}
        return [
            {
                key: (spread[key].mean() * draw.standard_normal(array.shape)).astype(np.float32)
                for key, array in honest[0].items()
            }
            for _ in range(attackers)
        ]

    return attack


def replacement(share: float = 1.0) -> Attack:
    """Send a model of one's own, so long that the mean becomes it.

    Bagdasaryan et al., "How to backdoor federated learning", 2020.
    """

    def attack(
        honest: Sequence[Tensors], attackers: int, draw: np.random.Generator
    ) -> list[Update]:
        target = _another(honest, draw)
        boost = share * (len(honest) + attackers) / attackers
        return [scaled(target, boost) for _ in range(attackers)]

    return attack


def little(honest: Sequence[Tensors], attackers: int, draw: np.random.Generator) -> list[Update]:
    """Move the mean as far as fits into the honest agents' own spread.

    Baruch et al., "A little is enough", 2019 (ALIE), with their z.
    """
    del draw
    n = len(honest) + attackers
    supporters = n // 2 + 1 - attackers
    z = NormalDist().inv_cdf((len(honest) - supporters) / len(honest))
    moved = {}
    for key in honest[0]:
        mean = _mean_of(honest, key, 1)
        spread = np.sqrt(np.maximum(_mean_of(honest, key, 2) - mean**2, 0))
        moved[key] = (mean - z * spread).astype(np.float32)
    return [moved] * attackers


def inner_product(times: float) -> Attack:
    """Send the honest mean turned round, so many times as long.

    Xie, Koyejo and Gupta, "Fall of empires", 2020 (inner-product manipulation).
    """

    def attack(
        honest: Sequence[Tensors], attackers: int, draw: np.random.Generator
    ) -> list[Update]:
        del draw
        turned = {key: (-times * _mean_of(honest, key, 1)).astype(np.float32) for key in honest[0]}
        return [turned] * attackers

    return attack


def collusion(honest: Sequence[Tensors], attackers: int, draw: np.random.Generator) -> list[Update]:
    """Train on another task together, as agents do whose labels are flipped.

    All go one way that is at right angles to the honest one, as far and with as much spread.
    """
    target = _another(honest, draw)
    mean = {key: _mean_of(honest, key, 1) for key in target}
    return [
        {key: (target[key] + honest[place][key] - mean[key]).astype(np.float32) for key in target}
        for place in draw.integers(len(honest), size=attackers)
    ]


ATTACKS: Mapping[str, Attack] = {
    "sign flip": sign_flip(1),
    "sign flip x10": sign_flip(10),
    "noise x1": gaussian(1),
    "noise x10": gaussian(10),
    "model replacement": replacement(),
    "a little is enough": little,
    "inner product x0.1": inner_product(0.1),
    "inner product x10": inner_product(10),
    "colluding labels": collusion,
}


def scaled(update: Tensors, times: float) -> Update:
    """Give an update so many times as long."""
    return {key: array * np.float32(times) for key, array in update.items()}


def _mean_of(honest: Sequence[Tensors], key: str, power: int) -> np.ndarray:
    stack = np.stack([update[key] for update in honest]).astype(np.float64)
    return np.asarray((stack**power).mean(axis=0))


def _another(honest: Sequence[Tensors], draw: np.random.Generator) -> Update:
    """Give a way as long as the honest mean, tensor by tensor, and at random."""
    target = {}
    for key in honest[0]:
        way = draw.standard_normal(honest[0][key].shape)
        length = np.linalg.norm(_mean_of(honest, key, 1)) / np.linalg.norm(way)
        target[key] = (length * way).astype(np.float32)
    return target
