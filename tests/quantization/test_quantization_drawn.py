"""A fresh adapter travels as the sizes of its tensors; both ends draw the rest."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffm_common.errors import UpdateInvalid
from ffm_common.tensors import Array, content_digest
from quantization.updates.codec import by_name
from quantization.updates.container import pack, shapes_of, unpack
from quantization.updates.drawn import NAME, redraw

BASE = "ab" * 32


def fresh(rank: int = 8) -> dict[str, Array]:
    """Give what LoRA starts from."""
    draws = np.random.default_rng(0).uniform(-1, 1, (rank, 384)) / 384**0.5
    return {
        "layer.lora_A.weight": draws.astype(np.float32),
        "layer.lora_B.weight": np.zeros((1536, rank), np.float32),
        "nothing": np.zeros((0, 3), np.float32),
    }


def packed(tensors: dict[str, Array], seed: int = 7) -> bytes:
    return pack(tensors, kind="version", version=0, base=BASE, codec=NAME, seed=seed)


def test_it_takes_two_bytes_a_tensor_and_every_tensor_keeps_its_size() -> None:
    tensors = fresh()
    blob = packed(tensors)
    assert len(blob) == 142 + 2 * 2
    state = unpack(blob, shapes_of(tensors), base=BASE)[1]
    a = state["layer.lora_A.weight"]
    assert np.linalg.norm(a) == pytest.approx(
        np.linalg.norm(tensors["layer.lora_A.weight"]), rel=0.004
    )
    assert abs(a.mean()) < 0.05 * a.std()
    assert np.abs(a).max() == pytest.approx(3**0.5 * a.std(), rel=0.05)  # uniform, as PEFT draws it
    assert not state["layer.lora_B.weight"].any()


@given(seed=st.integers(0, 2**64 - 1))
def test_what_has_been_redrawn_comes_back_to_the_last_bit(seed: int) -> None:
    drawn = redraw(fresh(2), seed)
    state = unpack(packed(drawn, seed), shapes_of(drawn), base=BASE)[1]
    assert content_digest(state) == content_digest(drawn)


def test_each_seed_draws_anew() -> None:
    one, other = (redraw(fresh(), seed)["layer.lora_A.weight"].ravel() for seed in (1, 2))
    cosine = one @ other / (np.linalg.norm(one) * np.linalg.norm(other))
    assert abs(cosine) < 0.08


def test_it_draws_the_same_bits_for_ever() -> None:
    drawn = redraw({"a": np.full((100, 100), 0.5, np.float32)}, 42)["a"]
    digest = hashlib.sha256(drawn.astype("<f4").tobytes()).hexdigest()
    assert digest == "58107d28ee89b9b12dc5ccf60848f30dc73fa3451616497b663dd7140984243f"


def test_no_update_and_no_keyframe_is_coded_so_by_configuration() -> None:
    with pytest.raises(UpdateInvalid, match="unknown codec"):
        by_name(NAME)


def test_a_stream_that_does_not_fit_is_refused() -> None:
    tensors = fresh()
    blob = packed(tensors)
    with pytest.raises(UpdateInvalid):
        unpack(blob, shapes_of({**tensors, "more": np.ones(1, np.float32)}), base=BASE)
