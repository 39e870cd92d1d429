"""Whole models between hub and agents: codecs, chains, aggregation and rules take them as any."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from ffm_common.config import convert
from ffm_common.seeds import derive
from ffm_common.task import Adapter, Task, Training
from ffm_common.tensors import Array, Tensors, content_digest, subtract
from hub.aggregation.mean import Contribution, aggregate
from hub.making.downlink import Before, encode
from hub.robust.defence import Defence
from hub.robust.defend import defend
from learning import base, scratch
from learning.bench import shapes
from learning.texts.batches import Shard
from learning.torch.engine import TorchEngine
from learning.trainer import Trainer, evaluate
from quantization.updates.chain import decode
from quantization.updates.container import pack, shapes_of, unpack

TASK = Task(
    kind="causal-lm",
    adapter=Adapter(kind="full"),
    training=Training(batch_size=8, max_length=16, learning_rate=1e-2),
)
LLAMA = {
    "model_type": "llama",
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "tie_word_embeddings": True,
    "initializer_range": 0.1,
}


class Place:
    """An engine with the data of three agents and of a hub: after a number comes its triple."""

    def __init__(self, folder: Path) -> None:
        shapes.tokenizer().save_pretrained(folder / "words")
        scratch.new(folder / "base", LLAMA, tokenizer=folder / "words")
        self.digest = base.describe(folder / "base").digest
        self.engine = TorchEngine(folder / "base", TASK)
        draw = np.random.default_rng(0)

        def shard() -> Shard:
            starts = draw.integers(0, 37, 24)
            rows = [[(start * pow(3, n, 37)) % 37 + 3 for n in range(16)] for start in starts]
            return Shard([np.array(row, np.int32) for row in rows], None, 0)

        self.own, self.test = [shard() for _ in range(3)], shard()

    def train(self, state: Tensors, agent: int, version: int) -> dict[str, Array]:
        self.engine.write(state)
        seed = derive(agent, version)
        Trainer(self.engine, self.own[agent], TASK.training, micro_batch=8, seed=seed).run(12)
        return subtract(self.engine.read(), state)

    def loss(self, state: Tensors) -> float:
        self.engine.write(state)
        return evaluate(self.engine, self.test).loss


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("place"))


def update(place: Place, state: Tensors, agent: int, version: int, codec: str) -> Contribution:
    blob = pack(
        place.train(state, agent, version),
        kind="update",
        version=version,
        base=place.digest,
        codec=codec,
        seed=derive("up", agent, version),
    )
    return Contribution(lambda: unpack(blob, shapes_of(state), base=place.digest)[1], 24)


def test_a_federation_learns_from_nothing_and_all_hold_the_same_bits(
    place: Place, tmp_path: Path
) -> None:
    sent = partial(encode, base=place.digest, codecs=("int8", "ecsq2"), carry=tmp_path)
    first = sent(place.engine.read(), None, version=0, keyframe=True, seed=1, fresh=True)
    assert len(first.blob) < 300
    state, chain, losses = first.truth, [first.blob], [place.loss(first.truth)]
    for version in range(3):
        updates = {f"{n}": update(place, state, n, version, "eden1") for n in range(3)}
        made = aggregate(state, updates)
        assert made.tail == 0.0  # nothing is cut: there are no factors
        before = Before(version, state, tmp_path)
        got = sent(made.tensors, before, version=version + 1, keyframe=False, seed=version)
        chain.append(got.blob)
        number, held = decode(iter(chain), shapes_of(state), base=place.digest)
        assert number == version + 1
        assert content_digest(held) == content_digest(got.truth)
        state = got.truth
        losses.append(place.loss(state))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.parametrize("codec", ["fp32", "int8", "eden2", "eden0.5", "ecsq1"])
def test_every_codec_carries_a_whole_model(place: Place, codec: str) -> None:
    start = {name: 0 * array for name, array in place.engine.read().items()}
    wanted = place.train(start, 0, 0)
    got = update(place, start, 0, 0, codec).read()
    both = sum(float(np.vdot(got[name], wanted[name])) for name in wanted)
    lengths = [sum(float(np.vdot(a, a)) for a in each.values()) for each in (got, wanted)]
    assert both / np.sqrt(lengths[0] * lengths[1]) > 0.5


@pytest.mark.parametrize("rule", ["trimmed-mean", "median", "krum", "geometric-median"])
def test_robust_rules_hold_off_a_model_that_is_not_learned(place: Place, rule: str) -> None:
    start = {name: 0 * array for name, array in place.engine.read().items()}
    honest = [place.train(start, agent, 0) for agent in (0, 1, 2)] * 2
    updates = {
        f"honest-{n}": Contribution(partial(dict, each), 24) for n, each in enumerate(honest)
    }
    bad = {name: np.full_like(array, 5) for name, array in start.items()}
    updates["bad"] = Contribution(partial(dict, bad), 24)
    defence = convert({"rule": rule, "trust": False}, Defence, source="test")
    made = defend(start, updates, defence).aggregate.tensors
    wanted = aggregate(start, {n: c for n, c in updates.items() if n != "bad"}).tensors
    gap = sum(float(np.square(made[n] - wanted[n]).sum()) for n in start)
    step = sum(float(np.square(wanted[n]).sum()) for n in start)
    assert gap < step
