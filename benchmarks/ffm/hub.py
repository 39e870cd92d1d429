"""The hub of a simulated federation: adds up, trains on public data, decides, mixes, steps."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np

from benchmarks.ffm.data import Dealt
from benchmarks.simulation import Arena
from ffm_common.seeds import derive
from ffm_common.tensors import Array, Tensors, subtract
from hub.aggregation import Contribution, aggregate, example_weights, hold
from hub.config import Server
from hub.server_optimizer import load_moments, step
from hub.switching.decision import decide
from hub.switching.guard import guard
from hub.switching.mixing import mix
from hub.switching.policy import Policy
from hub.switching.record import Decision, State
from hub.switching.scatter import Group, group, squares
from learning.texts.batches import Shard


class Hub:
    """Makes each version from the one before and its updates, as a policy says.

    Parameters
    ----------
    steps
        Of the devices, which each half of the public data takes, too.
    """

    def __init__(
        self, arena: Arena, policy: Policy, dealt: Dealt, *, steps: int, seed: int
    ) -> None:
        self._arena = arena
        self._policy = policy
        self._steps = steps
        self._seed = seed
        self._public = arena.shard(dealt.public)
        self._own = {f"{place}": arena.shard(part) for place, part in enumerate(dealt.own) if part}
        self._reports: dict[str, float] = {}
        self._state = State()
        self._server = Server()
        self._moments = load_moments(None, self._server, arena.engine.read())
        self.decisions: list[Decision] = []

    def __call__(
        self, version: Tensors, contributions: Mapping[str, Contribution]
    ) -> dict[str, Array]:
        """Give what the hub holds next."""
        self._listen(version)
        federated = aggregate(version, contributions).tensors
        noise = _scatter(version, federated, contributions)
        public, halves, apart = None, None, None
        if self._policy.mixes:
            public, halves = self._refresh(version)
            apart = squares(federated, public)
        decision, self._state = decide(
            self._policy, self._state, federated=noise, public=halves, apart=apart
        )
        self.decisions.append(decision)
        mixed, _ = mix(version, federated, public, decision)
        made, self._moments = step(self._server, version, mixed, self._moments)
        return made

    def _refresh(self, version: Tensors) -> tuple[dict[str, Array], Group]:
        """Train on two halves of the public data, each as a device does."""
        number = len(self.decisions)
        public = self._public
        assert public.targets is not None  # noqa: S101 - a classification
        order = np.random.default_rng(derive(self._seed, "halves", number)).permutation(len(public))
        parts: dict[str, Contribution] = {}
        for name, places in zip("ab", np.array_split(order, 2), strict=True):
            half = Shard(
                [public.ids[place] for place in places], public.targets[places], public.pad
            )
            seed = derive(self._seed, "public", name, number)
            trained = self._arena.train(version, half, self._steps, seed)
            delta = subtract(trained, version)
            parts[name] = Contribution(lambda delta=delta: delta, 1)  # type: ignore[misc]
        mean = aggregate(version, parts).tensors
        return mean, _scatter(version, mean, parts)

    def _listen(self, version: Tensors) -> None:
        """Hear the devices' own losses of a version, and what the guard makes of them."""
        if self._policy.kind != "adaptive":
            return
        told = {name: self._arena.score(version, own).loss for name, own in self._own.items()}
        if self.decisions:
            share = self.decisions[-1].share
            budget, _ = guard(self._state.budget, share, self._reports, told)
            self._state = msgspec.structs.replace(self._state, budget=budget)
        self._reports = told


def _scatter(version: Tensors, mean: Tensors, contributions: Mapping[str, Contribution]) -> Group:
    names = sorted(contributions)
    weights = example_weights([contributions[name].examples for name in names])
    return group(
        squares(mean, version),
        (
            (squares(hold(version, contributions[name].read(), name), version), weight)
            for name, weight in zip(names, weights, strict=True)
        ),
    )
