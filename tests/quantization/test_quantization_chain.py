"""The way down: a keyframe and deltas give one state, the same bits for everybody, or an error."""

from __future__ import annotations

import numpy as np
import pytest

from ffm_common.errors import UpdateInvalid
from ffm_common.tensors import Array, Tensors, add, content_digest
from quantization.updates.chain import decode
from quantization.updates.container import Kind, pack, shapes_of, unpack

BASE = "b" * 64


def tensors(seed: int, scale: float = 1.0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {
        name: (scale * rng.standard_normal(shape)).astype(np.float32)
        for name, shape in (("a", (8, 96)), ("b", (96, 8)), ("head", (7,)))
    }


LAYOUT = shapes_of(tensors(0))


def container(kind: Kind, version: int, values: Tensors, from_version: int | None = None) -> bytes:
    return pack(
        values,
        kind=kind,
        version=version,
        from_version=from_version,
        base=BASE,
        codec="int8" if kind == "version" else "ecsq2",
        seed=version,
    )


def chain(first: int, last: int) -> list[bytes]:
    deltas = [
        container("delta", version, tensors(version, 0.01), version - 1)
        for version in range(first + 1, last + 1)
    ]
    return [container("version", first, tensors(first)), *deltas]


def test_a_chain_gives_the_keyframe_and_all_that_was_added_to_it() -> None:
    blobs = chain(3, 7)
    parts = [unpack(blob, LAYOUT, base=BASE)[1] for blob in blobs]
    wanted = parts[0]
    for part in parts[1:]:
        wanted = add(wanted, part)
    version, state = decode(iter(blobs), LAYOUT, base=BASE)
    assert version == 7
    assert content_digest(state) == content_digest(wanted)


def test_a_keyframe_alone_is_a_chain() -> None:
    (blob,) = chain(5, 5)
    version, state = decode([blob], LAYOUT, base=BASE)
    assert version == 5
    assert content_digest(state) == content_digest(unpack(blob, LAYOUT, base=BASE)[1])


WHOLE = chain(3, 6)


@pytest.mark.parametrize(
    "blobs",
    [
        [],
        WHOLE[1:],
        [WHOLE[0], WHOLE[2]],
        [WHOLE[0], WHOLE[1], WHOLE[1]],
        [WHOLE[0], WHOLE[2], WHOLE[1]],
        [WHOLE[0], WHOLE[0]],
        [container("update", 3, tensors(3))],
        [WHOLE[0], container("update", 3, tensors(3))],
        [WHOLE[0], WHOLE[1][:-1]],
    ],
    ids=[
        "empty",
        "without its keyframe",
        "with a gap",
        "with one twice",
        "out of order",
        "of two keyframes",
        "of an update",
        "with an update",
        "cut short",
    ],
)
def test_a_chain_that_does_not_hold_together_is_refused(blobs: list[bytes]) -> None:
    with pytest.raises(UpdateInvalid):
        decode(blobs, LAYOUT, base=BASE)


def test_a_chain_for_another_base_is_refused() -> None:
    with pytest.raises(UpdateInvalid, match="base"):
        decode(WHOLE, LAYOUT, base="c" * 64)
