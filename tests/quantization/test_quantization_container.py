"""The container: what it carries, and that nothing but exactly that is taken."""

from __future__ import annotations

import hashlib
import struct
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ffm_common.errors import UpdateInvalid
from ffm_common.tensors import Array, content_digest
from quantization.updates.container import Header, pack, read_header, shapes_of, unpack

BASE = "0f" * 32
HEAD = 110


def tensors(seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    shapes = {"z.lora_B": (40, 8), "a.lora_A": (8, 24), "head.bias": (3,), "one": ()}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def update(codec: str = "int8", version: int = 5, seed: int = 9) -> bytes:
    return pack(tensors(), kind="update", version=version, base=BASE, codec=codec, seed=seed)


def seal(body: bytes) -> bytes:
    return body + hashlib.sha256(body).digest()


@pytest.mark.parametrize("codec", ["fp32", "int8", "eden1", "eden4", "ecsq0.5"])
def test_tensors_come_back_under_their_names_and_shapes(codec: str) -> None:
    sent = tensors()
    header, back = unpack(update(codec), shapes_of(sent), base=BASE)
    assert header == Header(
        kind="update",
        version=5,
        from_version=5,
        base=BASE,
        spec=shapes_of(sent).spec,
        codec=codec,
        seed=9,
    )
    assert list(back) == sorted(sent)
    assert {name: array.shape for name, array in back.items()} == {
        name: array.shape for name, array in sent.items()
    }
    if codec == "fp32":
        assert content_digest(back) == content_digest(sent)


def test_two_receivers_hold_the_same_version_to_the_last_bit() -> None:
    blob = pack(tensors(), kind="version", version=3, base=BASE, codec="eden2", seed=1)
    first, second = (unpack(blob, shapes_of(tensors()), base=BASE)[1] for _ in range(2))
    assert content_digest(first) == content_digest(second)


def test_a_delta_says_from_which_version_to_which() -> None:
    blob = pack(
        tensors(), kind="delta", from_version=7, version=9, base=BASE, codec="eden2", seed=1
    )
    header = read_header(blob)
    assert (header.kind, header.from_version, header.version) == ("delta", 7, 9)


@pytest.mark.parametrize(
    ("kind", "from_version"), [("delta", 5), ("delta", 6), ("update", 4), ("version", 6)]
)
def test_versions_that_make_no_sense_are_refused(
    kind: Literal["update", "version", "delta"], from_version: int
) -> None:
    blob = pack(
        tensors(), kind=kind, from_version=from_version, version=5, base=BASE, codec="int8", seed=1
    )
    with pytest.raises(UpdateInvalid, match=f"a {kind} from version {from_version} to 5"):
        read_header(blob)


def test_the_envelope_is_142_bytes() -> None:
    values = sum(array.size for array in tensors().values())
    assert len(update("fp32")) == 4 * values + 142


def test_no_byte_can_change_unseen() -> None:
    blob = update("eden1")
    for index in range(len(blob)):
        changed = bytearray(blob)
        changed[index] ^= 0x10
        with pytest.raises(UpdateInvalid):
            unpack(bytes(changed), shapes_of(tensors()), base=BASE)


def test_a_blob_cut_at_any_place_is_refused() -> None:
    blob = update()
    for length in range(len(blob)):
        with pytest.raises(UpdateInvalid):
            unpack(blob[:length], shapes_of(tensors()), base=BASE)


@pytest.mark.parametrize(
    ("offset", "field", "says"),
    [
        (0, b"FFMX", "format known here"),
        (4, b"\x01", "format known here"),
        (5, b"\x03", "unknown kind"),
        (6, b"jpeg".ljust(12, b"\0"), "unknown codec"),
        (6, b"\xff" * 12, "not a name"),
        (6, b"eden2".ljust(12, b"\0"), "eden2 stream of"),
        (106, struct.pack("<I", 2**32 - 1), "length"),
        (106, struct.pack("<I", 0), "length"),
        (42, bytes(32), "another base"),
        (74, bytes(32), "names or shapes"),
    ],
)
def test_a_field_that_is_wrong_is_named_even_if_the_digest_fits(
    offset: int, field: bytes, says: str
) -> None:
    body = bytearray(update()[:-32])
    body[offset : offset + len(field)] = field
    with pytest.raises(UpdateInvalid, match=says):
        unpack(seal(bytes(body)), shapes_of(tensors()), base=BASE)


def test_another_base_or_adapter_is_refused() -> None:
    with pytest.raises(UpdateInvalid, match="another base"):
        unpack(update(), shapes_of(tensors()), base="00" * 32)
    other = {**tensors(), "one": np.zeros(2, np.float32)}
    with pytest.raises(UpdateInvalid, match="names or shapes"):
        unpack(update(), shapes_of(other), base=BASE)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400), st.booleans())
def test_any_bytes_are_refused_and_nothing_else_happens(data: bytes, sealed: bool) -> None:
    blob = seal(data) if sealed else data
    with pytest.raises(UpdateInvalid):
        unpack(blob, shapes_of(tensors()), base=BASE)


@settings(max_examples=300, deadline=None)
@given(
    codec=st.sampled_from(["fp32", "int8", "eden0.5", "eden1", "eden3", "ecsq0.5"]),
    stream=st.binary(max_size=2300),
    seed=st.integers(0, 2**64 - 1),
)
def test_any_stream_under_a_true_header_is_refused_or_decodes_to_finite_values(
    codec: str, stream: bytes, seed: int
) -> None:
    head = bytearray(update(codec, seed=seed)[:HEAD])
    head[106:110] = struct.pack("<I", len(stream))
    try:
        _, back = unpack(seal(bytes(head) + stream), shapes_of(tensors()), base=BASE)
    except UpdateInvalid:
        return
    assert all(np.isfinite(array).all() for array in back.values())
