"""The hub of a simulated federation: the product's own step, on the simulation's engine."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from benchmarks.arena import Arena
from benchmarks.ffm.data import Dealt
from ffm_common.seeds import derive
from ffm_common.tensors import Array, Tensors
from hub.aggregation.mean import Contribution
from hub.aggregation.server_optimizer import load_moments, step
from hub.config import Server
from hub.robust.defence import Defence
from hub.switching.guard import guard
from hub.switching.policy import Policy
from hub.switching.pool import halves, pick
from hub.switching.public_step import PublicStep, take_public_step
from hub.switching.record import Decision, State
from hub.switching.step import take_step
from learning.texts.batches import Shard

_DEFENCE = Defence()


class Hub:
    """Makes each version from the one before and its updates, as a policy says.

    Parameters
    ----------
    steps
        Of the devices, which each half of the public data takes, too.
    defence
        What is done about harmful updates.
    """

    def __init__(
        self,
        arena: Arena,
        policy: Policy,
        dealt: Dealt,
        *,
        steps: int,
        seed: int,
        defence: Defence = _DEFENCE,
    ) -> None:
        self._arena = arena
        self._policy = policy
        self._steps = steps
        self._seed = seed
        self._defence = defence
        self._public = arena.shard(dealt.public)
        self._own = {f"{place}": arena.shard(part) for place, part in enumerate(dealt.own) if part}
        self._reports: dict[str, float] = {}
        self._state = State()
        self._medians: dict[str, float] = {}
        self._reputation: dict[str, float] = {}
        self._server = Server()
        self._moments = load_moments(None, self._server, arena.engine.read())
        self.decisions: list[Decision] = []

    def __call__(
        self, version: Tensors, contributions: Mapping[str, Contribution]
    ) -> dict[str, Array]:
        """Give what the hub holds next."""
        self._listen(version)
        found = take_step(
            version,
            contributions,
            self._train(version) if self._policy.mixes else None,
            policy=self._policy,
            defence=self._defence,
            state=self._state,
            medians=self._medians,
            reputation=self._reputation,
        )
        self._state, self._medians = found.state, found.medians
        self._reputation = found.reputation
        self.decisions.append(found.decision)
        made, self._moments = step(self._server, version, found.tensors, self._moments)
        return made

    def _train(self, version: Tensors) -> PublicStep:
        """Train on two halves of the public data, each as a device does."""
        seed = derive(self._seed, "hub", len(self.decisions))
        drawn = halves(
            len(self._public),
            0,
            size=self._steps * self._arena.task.training.batch_size,
            replay=0.0,
            seed=derive(seed, "halves"),
        )

        def train(start: Tensors, part: Shard, seed: int) -> dict[str, Array]:
            return self._arena.train(start, part, self._steps, seed)

        parts = (pick([self._public], places) for places in drawn)
        return take_public_step(version, parts, train, seed=seed)

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
