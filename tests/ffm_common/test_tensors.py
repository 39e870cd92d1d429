from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ffm_common import tensors as shape
from ffm_common.errors import AdapterInvalid
from ffm_common.tensors import Array

NAMES = st.text("abcxyz.:_\n", min_size=1, max_size=8)
ARRAYS = arrays.arrays(
    np.float32,
    arrays.array_shapes(min_dims=0, max_dims=3, max_side=4),
    elements=st.floats(-1e6, 1e6, width=32),
)
TENSORS = st.dictionaries(NAMES, ARRAYS, max_size=5)


def small() -> dict[str, Array]:
    return {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.ones(2, np.float32)}


@given(TENSORS)
def test_what_is_saved_is_loaded_to_the_last_bit(
    tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, Array]
) -> None:
    path = tmp_path_factory.mktemp("t") / "x.safetensors"
    shape.save(path, tensors, {"note": "é"})
    found = shape.load(path)
    assert list(found) == sorted(tensors)
    assert shape.content_digest(found) == shape.content_digest(tensors)
    for name, array in tensors.items():
        np.testing.assert_array_equal(found[name], array)


@given(TENSORS, st.randoms())
def test_digests_do_not_depend_on_the_order_of_names(
    tensors: dict[str, Array], chance: object
) -> None:
    names = list(tensors)
    chance.shuffle(names)  # type: ignore[attr-defined]
    shuffled = {name: tensors[name] for name in names}
    assert shape.spec_digest(shuffled) == shape.spec_digest(tensors)
    assert shape.content_digest(shuffled) == shape.content_digest(tensors)


def test_one_changed_bit_is_another_content_but_the_same_spec() -> None:
    other = small()
    other["b"] = other["b"].copy()
    other["b"].view(np.uint32)[1, 2] ^= 1
    assert shape.spec_digest(other) == shape.spec_digest(small())
    assert shape.content_digest(other) != shape.content_digest(small())


def test_another_name_or_shape_is_another_spec() -> None:
    renamed = {"c": small()["b"], "a": small()["a"]}
    turned = small() | {"b": small()["b"].T}
    digests = {shape.spec_digest(t) for t in (small(), renamed, turned)}
    assert len(digests) == 3


def test_a_tensor_laid_out_otherwise_is_the_same_content() -> None:
    turned = small() | {"b": np.asfortranarray(small()["b"])}
    assert shape.content_digest(turned) == shape.content_digest(small())
    assert shape.ordered(turned)["b"].flags.c_contiguous


def test_sums_and_differences_undo_each_other() -> None:
    left, right = small(), {name: 2 * array for name, array in small().items()}
    back = shape.subtract(shape.add(left, right), right)
    assert shape.content_digest(back) == shape.content_digest(left)
    assert shape.count(left) == 8


@pytest.mark.parametrize("operation", [shape.add, shape.subtract])
def test_tensors_that_do_not_match_are_not_added_by_broadcasting(operation: object) -> None:
    thin = small() | {"b": np.ones((1, 3), np.float32)}
    with pytest.raises(AdapterInvalid):
        operation(small(), thin)  # type: ignore[operator]
    with pytest.raises(AdapterInvalid):
        operation(small(), {"a": small()["a"]})  # type: ignore[operator]


def test_a_file_that_is_not_there_broken_or_cut_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(AdapterInvalid, match=path.name):
        shape.load(path)
    path.write_bytes(b"not one")
    with pytest.raises(AdapterInvalid, match=path.name):
        shape.load(path)
    shape.save(path, small())
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(AdapterInvalid, match=path.name):
        shape.load(path)
    with pytest.raises(AdapterInvalid, match=str(tmp_path)):
        shape.load(tmp_path)


@pytest.mark.parametrize("kind", ["F16", "BF16", "F8_E4M3", "I64", "F64"])
def test_other_numbers_than_float32_are_refused(tmp_path: Path, kind: str) -> None:
    size = {"F16": 2, "BF16": 2, "F8_E4M3": 1, "I64": 8, "F64": 8}[kind]
    header = f'{{"a":{{"dtype":"{kind}","shape":[2],"data_offsets":[0,{2 * size}]}}}}'.encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(2 * size))
    with pytest.raises(AdapterInvalid, match="float32"):
        shape.load(path)
