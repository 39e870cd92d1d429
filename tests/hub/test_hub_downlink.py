"""Versions as keyframes and deltas: agents hold what the hub holds, and errors do not pile up."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ffm_common.tensors import Array, Tensors, add, content_digest, subtract
from hub.making.downlink import RESIDUAL, Before, Sent, distances, encode
from quantization.updates.chain import decode
from quantization.updates.container import read_header, shapes_of

BASE = "b" * 64
A, B, HEAD = "layer.lora_A.weight", "layer.lora_B.weight", "head"
RANK = 4


def adapter(rng: np.random.Generator) -> dict[str, Array]:
    return {
        A: rng.standard_normal((RANK, 96)).astype(np.float32),
        B: rng.standard_normal((160, RANK)).astype(np.float32),
        HEAD: rng.standard_normal(96).astype(np.float32),
    }


def norm(tensors: Tensors) -> float:
    return math.sqrt(
        sum(float(np.square(array, dtype=np.float64).sum()) for array in tensors.values())
    )


class Line:
    """A hub's versions, one after the other."""

    def __init__(self, folder: Path, every: int = 10) -> None:
        self._folder = folder
        self._every = every
        self.before: Before | None = None
        self.chain: list[bytes] = []

    def send(self, wanted: Tensors) -> Sent:
        version = 0 if self.before is None else self.before.version + 1
        carry = self._folder / f"carried{version}"
        carry.mkdir(parents=True)
        sent = encode(
            wanted,
            self.before,
            version=version,
            base=BASE,
            codecs=("int8", "ecsq2"),
            keyframe=not 0 < len(self.chain) < self._every,
            seed=version,
            carry=carry,
        )
        self.chain = [sent.blob] if sent.kind == "version" else [*self.chain, sent.blob]
        self.before = Before(version, sent.truth, carry)
        return sent

    def moved(self, rng: np.random.Generator, share: float) -> dict[str, Array]:
        """Give the present truth, moved by a random step of that share of its length."""
        assert self.before is not None
        return {
            name: array
            + (share * array.std() * rng.standard_normal(array.shape)).astype(np.float32)
            for name, array in self.before.truth.items()
        }


def test_agents_decode_the_bits_that_the_hub_holds_across_keyframes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    line = Line(tmp_path)
    wanted = adapter(rng)
    layout, kinds = shapes_of(wanted), []
    for version in range(25):
        sent = line.send(wanted if version == 0 else line.moved(rng, 0.05))
        kinds.append(sent.kind)
        assert len(line.chain) == version % 10 + 1
        found, state = decode(line.chain, layout, base=BASE)
        assert found == version
        assert content_digest(state) == content_digest(sent.truth)
    assert [version for version, kind in enumerate(kinds) if kind == "version"] == [0, 10, 20]


def test_a_delta_takes_a_quarter_of_a_keyframes_bytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    line = Line(tmp_path)
    large = {A: rng.standard_normal((8, 2048)).astype(np.float32)}
    keyframe = line.send(large)
    delta = line.send(line.moved(rng, 0.1))
    assert (keyframe.kind, delta.kind) == ("version", "delta")
    assert 0.2 < len(delta.blob) / len(keyframe.blob) < 0.28
    header = read_header(delta.blob)
    assert (header.codec, header.from_version, header.version) == ("ecsq2", 0, 1)


def test_what_a_delta_missed_is_sent_with_the_next(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    line = Line(tmp_path)
    wanted = adapter(rng)
    line.send(wanted)
    target = line.moved(rng, 0.2)
    sent = line.send(target)
    missed = norm(subtract(target, sent.truth))
    sent = line.send(sent.truth)  # no agent has anything to add
    assert norm(subtract(target, sent.truth)) < 0.5 * missed


@settings(max_examples=6)
@given(seed=st.integers(0, 2**32), share=st.sampled_from([0.003, 0.03, 0.3]))
def test_after_25_versions_the_truth_is_as_near_as_after_one(
    tmp_path_factory: pytest.TempPathFactory, seed: int, share: float
) -> None:
    """What the hub wanted in all is the sum of all steps; what agents hold misses one error."""
    rng = np.random.default_rng(seed)
    line = Line(tmp_path_factory.mktemp("line"))
    intended = adapter(rng)
    line.send(intended)
    for _ in range(25):
        assert line.before is not None
        wanted = line.moved(rng, share)
        step = subtract(wanted, line.before.truth)
        intended = add(intended, step)
        truth = line.send(wanted).truth
        off = norm(subtract(intended, truth))
        assert off < 0.45 * norm(step) + 0.01 * norm(truth)


def test_a_hub_that_makes_a_version_again_makes_the_same_bytes(tmp_path: Path) -> None:
    made = []
    for attempt in ("first", "again"):
        rng = np.random.default_rng(3)
        line = Line(tmp_path / attempt)
        line.send(adapter(rng))
        line.send(line.moved(rng, 0.1))
        sent = line.send(line.moved(rng, 0.1))
        assert line.before is not None
        made.append((sent.blob, (line.before.carried / RESIDUAL).read_bytes()))
    assert made[0] == made[1]


def test_factors_in_another_basis_go_as_a_keyframe(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    line = Line(tmp_path)
    line.send(adapter(rng))
    moved = line.moved(rng, 0.02)
    turn, _ = np.linalg.qr(rng.standard_normal((RANK, RANK)))
    turned = {
        A: (turn @ moved[A]).astype(np.float32),
        B: (moved[B] @ turn.T).astype(np.float32),
        HEAD: moved[HEAD],
    }
    assert distances(moved, turned)[0] < 1e-5 * distances(moved, {})[0]
    sent = line.send(turned)
    assert sent.kind == "version"
    assert sent.refused is not None
    assert sent.refused > 1 > sent.error
    assert line.send(line.moved(rng, 0.02)).kind == "delta"


def test_nothing_new_costs_next_to_nothing(tmp_path: Path) -> None:
    line = Line(tmp_path)
    zeros = {A: np.zeros((RANK, 96), np.float32), B: np.zeros((160, RANK), np.float32)}
    assert line.send(zeros).error == 0
    sent = line.send(zeros)
    assert (sent.kind, sent.error) == ("delta", 0)
    assert len(sent.blob) < 200


def test_distances_are_those_of_products_and_of_everything_else() -> None:
    rng = np.random.default_rng(5)
    left, right = adapter(rng), adapter(rng)
    assert distances(left, right) == pytest.approx(
        (
            np.linalg.norm(left[B] @ left[A] - right[B] @ right[A]),
            np.linalg.norm(left[HEAD] - right[HEAD]),
        ),
        rel=1e-5,
    )
    products, rest = distances(left, {})
    assert products == pytest.approx(np.linalg.norm(left[B] @ left[A]), rel=1e-5)
    assert rest == pytest.approx(np.linalg.norm(left[HEAD]), rel=1e-5)
    assert distances(left, left)[0] < 1e-6 * products
