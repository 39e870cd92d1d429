"""A graph reads the files beside it and no others, however the path is written."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from ffm_common.errors import ModelMissing
from learning.onnx import outside
from learning.onnx.runtime import Session


def tensor(location: str) -> Any:
    """Give a tensor of two numbers that lie in a file."""
    made = helper.make_tensor("w", TensorProto.FLOAT, [1, 2], [0.0, 0.0])
    made.ClearField("float_data")
    made.data_location = TensorProto.EXTERNAL
    for key, value in (("offset", "0"), ("location", location), ("length", "8")):
        entry = made.external_data.add()
        entry.key, entry.value = key, value
    return made


def model(*, weights: Any = (), nodes: Any = ()) -> bytes:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in "xy")
    add = helper.make_node("Add", ["x", "w"], ["y"])
    graph = helper.make_graph([*nodes, add], "g", [x], [y], list(weights))
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    raw: bytes = made.SerializeToString()
    return raw


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "secret.bin").write_bytes(np.array([7, 8], np.float32).tobytes())
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights.bin").write_bytes(np.array([1, 2], np.float32).tobytes())
    return tmp_path / "model"


def test_a_file_beside_the_graph_is_read(folder: Path) -> None:
    (folder / "m.onnx").write_bytes(model(weights=[tensor("weights.bin")]))
    found = np.zeros((1, 2), np.float32)
    Session(folder / "m.onnx", 1).run({"x": np.zeros((1, 2), np.float32)}, {"y": found})
    assert found.tolist() == [[1, 2]]


@pytest.mark.parametrize("path", ["../secret.bin", "{above}/secret.bin", "./weights.bin", "", ".."])
def test_a_path_out_of_the_folder_is_refused(folder: Path, path: str) -> None:
    location = path.format(above=folder.parent)
    (folder / "m.onnx").write_bytes(model(weights=[tensor(location)]))
    with pytest.raises(ModelMissing, match="no file beside it"):
        Session(folder / "m.onnx", 1)


def test_a_path_in_an_inner_graph_or_a_constant_is_found() -> None:
    inner = helper.make_graph([], "inner", [], [], [tensor("../a")])
    branch = helper.make_node("If", ["c"], ["d"], then_branch=inner, else_branch=inner)
    constant = helper.make_node("Constant", [], ["e"], value=tensor("../b"))
    raw = model(nodes=[branch, constant], weights=[tensor("../c")])
    assert list(outside.locations(memoryview(raw))) == ["../a", "../a", "../b", "../c"]


def test_a_path_is_found_in_whatever_order_and_spelling_its_parts_stand() -> None:
    entry = tensor("../secret.bin").external_data[1].SerializeToString()
    value, key = entry[10:], entry[:10]
    assert key == b"\x0a\x08location"
    longer = b"\x8a\x00\x88\x00location"  # the same two numbers in two bytes each
    twice = b"\x0a\x06offset" + key + b"\x12\x01x" + value
    for spelling in (value + key, longer + value, twice, b"\x18\x07" + key + value):
        graph = b"\x2a" + _sized(b"\x6a" + _sized(spelling))
        raw = b"\x3a" + _sized(graph)
        assert list(outside.locations(memoryview(raw))) == ["../secret.bin"]


def _sized(raw: bytes) -> bytes:
    assert len(raw) < 128
    return bytes([len(raw)]) + raw


def test_what_is_nested_without_end_is_no_graph(tmp_path: Path) -> None:
    raw = b""
    for _ in range(300):  # a graph in an attribute of a node of a graph ...
        for tag in (b"\x32", b"\x2a", b"\x0a"):
            raw = tag + _long(raw)
    (tmp_path / "deep.onnx").write_bytes(b"\x3a" + _long(raw))
    with pytest.raises(ModelMissing, match="nested too deeply"):
        outside.check(tmp_path / "deep.onnx")


def _long(raw: bytes) -> bytes:
    size, digits = len(raw), list[int]()
    while size or not digits:
        size, digit = size >> 7, size & 0x7F
        digits.append(digit | 0x80 * bool(size))
    return bytes(digits) + raw


@given(st.binary(max_size=60))
def test_any_bytes_have_paths_or_are_no_graph(raw: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert all(isinstance(name, str) for name in outside.locations(memoryview(raw)))
