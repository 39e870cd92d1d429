"""A federation in one process, from the real parts, fast enough to compare many of them.

Every agent trains on the same engine, one after the other: write the version, take local steps,
subtract, encode, decode. Everything between the engine and the wire is the product's own code:
`Trainer`, containers, `ErrorFeedback`, aggregation. Bytes are those of the containers; what a
transport adds is measured elsewhere (`benchmarks.codecs.our_processes`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import msgspec
import numpy as np

from benchmarks.arena import ALPHA, Arena, deal, drawn
from benchmarks.tasks import TaskName, evaluation_set, training_set
from ffm_common import tensors as shape
from ffm_common.files import make_folder
from ffm_common.seeds import derive
from ffm_common.tensors import Array, Tensors
from fleet.partition import Split
from hub.aggregation import mean as aggregation
from hub.aggregation.mean import Contribution, example_weights
from hub.making.downlink import Before, encode
from learning.texts.data import Example
from quantization.updates.container import pack, shapes_of, unpack
from quantization.updates.feedback import ErrorFeedback
from quantization.updates.rates import KEYFRAME, KEYFRAME_EVERY, loses

Aggregator: TypeAlias = Callable[[Tensors, Mapping[str, Contribution]], dict[str, Array]]
"""(what the hub holds, agent id -> its update) -> what the hub holds next."""

_WHOLE = ("fp32", "int8")


class Federation(msgspec.Struct, frozen=True, kw_only=True):
    """What is simulated.

    Parameters
    ----------
    alpha
        How alike the agents' label mixtures are (Dirichlet): 30 nearly alike, below 1 unlike.
    participation
        Share of the agents that train from each version, drawn anew for each.
    up
        Codec of updates; one that is biased gets error feedback at the agent.
    down
        ``fp32`` or ``int8``: every version whole. Another codec: deltas in it between keyframes,
        as the hub does by default.
    keyframe, keyframe_every
        As in hub.toml; for deltas alone.
    test
        Test examples, drawn by the seed, that every version is measured on.
    judged
        Versions at the end that are measured on the whole test set, too.
    """

    task: TaskName
    agents: int = 6
    alpha: float = ALPHA
    participation: float = 1.0
    up: str = "eden1"
    down: str = "ecsq2"
    keyframe: str = KEYFRAME
    keyframe_every: int = KEYFRAME_EVERY
    seed: int = 0
    versions: int = 14
    local_steps: int = 10
    test: int = 1000
    judged: int = 3


class VersionRow(msgspec.Struct, frozen=True, kw_only=True):
    """One version: how good it is, and the bytes of all agents together since the beginning.

    `whole` is the accuracy on the whole test set, where it was measured; `movement` the norm of the
    step from the version before, as a share of that version's (0 where that is nothing).
    """

    version: int
    accuracy: float
    whole: float | None
    loss: float
    up_bytes: int
    down_bytes: int
    movement: float


class _Downlink:
    """What the hub publishes of each version, and what that costs an agent that holds an older one.

    Parameters
    ----------
    asked
        Its codec down and its seed matter here.
    carried
        Folder for what encoding a version lost, which is added to the next one.
    random
        Whether the first version is nothing but random numbers.
    """

    def __init__(self, asked: Federation, base_digest: str, carried: Path, *, random: bool) -> None:
        whole = asked.down in _WHOLE
        self._codecs = (asked.down if whole else asked.keyframe, asked.down)
        self._every = 1 if whole else asked.keyframe_every
        self._base = base_digest
        self._seed = asked.seed
        self._carried = carried
        self._random = random
        self._chain = 0  # the last keyframe and the deltas after it
        self._sent: list[tuple[str, int]] = []
        self.state: dict[str, Array] = {}

    def publish(self, wanted: Tensors) -> dict[str, Array]:
        """Encode the hub's tensors as the next version; give what everybody decodes."""
        version = len(self._sent)
        before = Before(version - 1, self.state, self._carried) if version else None
        sent = encode(
            wanted,
            before,
            version=version,
            base=self._base,
            codecs=self._codecs,
            keyframe=not 0 < self._chain < self._every,
            seed=derive(self._seed, "down", version),
            carry=self._carried,
            fresh=self._random and version == 0 and self._every > 1,
        )
        self._chain = 1 if sent.kind == "version" else self._chain + 1
        self._sent.append((sent.kind, len(sent.blob)))
        self.state = sent.truth
        return self.state

    @property
    def newest(self) -> int:
        """The number of what was published last."""
        return len(self._sent) - 1

    def cost(self, held: int | None) -> int:
        """Give the bytes from version `held` (None: nothing) to the newest."""
        total = 0
        missing = self._sent if held is None else self._sent[held + 1 :]
        for kind, size in reversed(missing):
            total += size
            if kind == "version":
                break
        return total


def simulate(
    arena: Arena,
    asked: Federation,
    aggregate: Aggregator | None = None,
    *,
    warm: Tensors | None = None,
    shares: Sequence[Sequence[Example]] | None = None,
) -> Iterator[VersionRow]:
    """Run a federation; give each version as it is made, version 0 first.

    Parameters
    ----------
    aggregate
        Exact aggregation if None. It is called once per version, in order, so it may keep state.
    warm
        What the hub has made of the fresh adapter before anybody trains; version 0 is that.
    shares
        The agents' examples; None: all training data, dealt out.
    """
    combine = aggregate or exact
    names = [f"agent-{place:02d}" for place in range(asked.agents)]
    with tempfile.TemporaryDirectory() as scratch:
        downlink = _Downlink(
            asked,
            arena.base,
            make_folder(Path(scratch) / "hub"),
            random=arena.task.starts_random,
        )
        state = downlink.publish(arena.start(asked.seed))
        if warm is not None:
            state = downlink.publish(warm)
        if shares is None:
            shares = arena.deal(asked.agents, asked.seed, asked.alpha)
        agents = [
            _Agent(name, arena, examples, asked, Path(scratch) / name)
            for name, examples in zip(names, shares, strict=True)
        ]
        up = down = 0
        movement = 0.0
        for version in range(asked.versions + 1):
            measure = arena.measure(state, asked.test, asked.seed)
            judged = version > asked.versions - asked.judged
            yield VersionRow(
                version=version,
                accuracy=measure.accuracy,
                whole=arena.measure(state).accuracy if judged else None,
                loss=measure.loss,
                up_bytes=up,
                down_bytes=down,
                movement=movement,
            )
            if version == asked.versions:
                return
            contributions = {}
            for agent in _present(agents, asked, version):
                down += downlink.cost(agent.holds)
                agent.holds = downlink.newest
                blob = agent.update(state, version)
                up += len(blob)
                contributions[agent.name] = arena.contribution(blob, state, agent.examples)
            before, state = state, downlink.publish(combine(state, contributions))
            moved, held = _norm(shape.subtract(state, before)), _norm(before)
            movement = moved / held if held else 0.0


class _Agent:
    """One agent: its data, the version it holds, its residual."""

    def __init__(
        self,
        name: str,
        arena: Arena,
        examples: Sequence[Example],
        asked: Federation,
        residual: Path,
    ) -> None:
        self.name = name
        self.holds: int | None = None
        self._arena = arena
        self._shard = arena.shard(examples)
        self.examples = arena.worth(self._shard)
        self._asked = asked
        self._feedback = ErrorFeedback(residual) if loses(asked.up) else None

    def update(self, state: Tensors, version: int) -> bytes:
        """Train from a version and give the update's container."""
        seed = derive(self._asked.seed, self.name, version)
        trained = self._arena.train(state, self._shard, self._asked.local_steps, seed)
        wanted = shape.subtract(trained, state)
        if self._feedback is not None:
            wanted = self._feedback.compensate(wanted, version)
        blob = pack(
            wanted,
            kind="update",
            version=version,
            base=self._arena.base,
            codec=self._asked.up,
            seed=seed,
        )
        if self._feedback is not None:
            _, sent = unpack(blob, shapes_of(state), base=self._arena.base)
            self._feedback.keep(wanted, sent, version)
        return blob


def _present(agents: list[_Agent], asked: Federation, version: int) -> list[_Agent]:
    """Draw who takes part in a version."""
    count = max(1, round(asked.participation * len(agents)))
    rng = np.random.default_rng(derive(asked.seed, "present", version))
    return [agents[place] for place in sorted(rng.permutation(len(agents))[:count])]


def _norm(tensors: Tensors) -> float:
    return float(np.sqrt(sum(float(np.vdot(array, array)) for array in tensors.values())))


def exact(version: Tensors, contributions: Mapping[str, Contribution]) -> dict[str, Array]:
    """Aggregate as the hub does: the exact mean of the LoRA products."""
    return aggregation.aggregate(version, contributions).tensors


def factors(version: Tensors, contributions: Mapping[str, Contribution]) -> dict[str, Array]:
    """Average A and B each for itself, as peers do."""
    names = sorted(contributions)
    weights = example_weights([contributions[name].examples for name in names])
    deltas = [contributions[name].read() for name in names]
    return {
        key: version[key]
        + sum(
            np.float32(weight) * delta[key] for weight, delta in zip(weights, deltas, strict=True)
        )
        for key in sorted(version)
    }


def deal_files(asked: Federation) -> Split:
    """Deal a task's data out for processes of their own, as the arena does."""
    train, test = training_set(asked.task), evaluation_set(asked.task)
    return Split(
        agents=deal(train, asked.agents, asked.seed, asked.alpha),
        public=list({example.label: example for example in train}.values()),
        test=[test[place] for place in drawn(len(test), asked.test, asked.seed)],
        duplicates=0,
    )
