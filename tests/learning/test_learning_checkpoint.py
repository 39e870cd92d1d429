from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from safetensors.numpy import load_file

from ffm_common.errors import AdapterInvalid
from learning.checkpoint import load, save

ARRAYS = arrays.arrays(
    st.sampled_from([np.float32, np.uint8, np.int8]),
    arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5),
)


@given(st.dictionaries(st.text(max_size=8), ARRAYS, max_size=4))
def test_every_state_comes_back_to_the_last_bit(
    tmp_path_factory: pytest.TempPathFactory, state: dict[str, NDArray[Any]]
) -> None:
    path = tmp_path_factory.mktemp("state") / "state"
    save(path, state)
    found = load(path)
    assert list(found) == list(state)
    for name, array in state.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()


def test_safetensors_reads_it_and_8_bits_take_one_byte(tmp_path: Path) -> None:
    state: dict[str, NDArray[Any]] = {
        "b": np.arange(6, dtype=np.float32).reshape(2, 3),
        "a": np.full(4096, 7, np.uint8),
    }
    save(tmp_path / "state", state)
    assert (tmp_path / "state").stat().st_size < 4096 + 24 + 300
    theirs = load_file(tmp_path / "state")
    for name, array in state.items():
        np.testing.assert_array_equal(theirs[name], array)


@pytest.mark.parametrize("size", [0, 5, 40, -1])
def test_a_file_cut_short_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "state"
    save(path, {"a": np.ones(9, np.float32)})
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(AdapterInvalid, match="state"):
        load(path)


@given(st.integers(0, 120), st.integers(0, 255))
def test_a_changed_byte_is_refused_or_changes_numbers_alone(
    tmp_path_factory: pytest.TempPathFactory, place: int, byte: int
) -> None:
    path = tmp_path_factory.mktemp("state") / "state"
    save(path, {"a": np.ones(9, np.float32)})
    raw = bytearray(path.read_bytes())
    raw[place % len(raw)] = byte
    path.write_bytes(raw)
    try:
        found = load(path)
    except AdapterInvalid:
        return
    assert sum(array.nbytes for array in found.values()) <= 36
