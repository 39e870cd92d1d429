"""The frozen weights of an exported training step: one file that boards map into memory.

The bits are those of the base folder: an NF4 matrix goes over as it is, so that a board without
torch trains on the very weights that bitsandbytes gives the others. Every use of a quantized
matrix gets dequantizing nodes of its own, whose result dies with that use.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import msgspec
import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from ffm_common.errors import ModelUnsupported
from ffm_common.tensors import Array
from learning.onnx.folder import Format, Lookup
from learning.onnx.graph import Graph, Stored, Value
from quantization.weights_int8 import Int8Rows, int8_rows

_BLOCK = 64
_ALIGNMENT = 64
_INLINE_BYTES = 4096
_QUANT_STATE = ".quant_state.bitsandbytes__nf4"


class _Packed(NamedTuple):
    """An NF4 matrix: codes (blocks, 32), two to a byte; scales (blocks, 1); the 16 values."""

    codes: NDArray[np.uint8]
    scales: Array
    levels: Array
    shape: tuple[int, int]

    def dequantize(self) -> Array:
        pairs = np.stack([self.levels[self.codes >> 4], self.levels[self.codes & 15]], axis=-1)
        return (pairs.reshape(-1, _BLOCK) * self.scales).reshape(self.shape)


class BaseTensors:
    """The tensors of a base folder, read one at a time and without torch.

    Raises
    ------
    ModelUnsupported
        A tensor is missing, or is kept in a way that this program does not write.
    """

    def __init__(self, folder: Path) -> None:
        from safetensors import safe_open

        path = folder / "model.safetensors"
        if not path.is_file():
            raise ModelUnsupported(f"{folder} does not keep its weights in one {path.name}")
        opener: Any = safe_open
        self._file = opener(path, framework="numpy")
        self._names = set(self._file.keys())
        self.quantized = any(name.endswith(".scales") for name in self._names)

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def array(self, name: str) -> Array:
        """Give a tensor as float32, dequantized if need be."""
        packed = self.packed(name) or self.int8(name)
        if packed is not None:
            return packed.dequantize()
        found = self._raw(name)
        if found.dtype != np.float32:
            raise ModelUnsupported(f"{name} is kept as {found.dtype}")
        return found

    def packed_shape(self, name: str) -> tuple[int, int]:
        """Give a quantized matrix's shape, as it was before."""
        rows, columns = self._state(name)["shape"]
        return int(rows), int(columns)

    def packed(self, name: str) -> _Packed | None:
        """Give a matrix as bitsandbytes keeps it, or None if it is not quantized.

        The scales of the scales (double quantization) are resolved: that is 4 bytes for 64
        weights, and the arithmetic is bitsandbytes' own.
        """
        if name + _QUANT_STATE not in self._names:
            return None
        state = self._state(name)
        rows, columns = self.packed_shape(name)
        if state["blocksize"] != _BLOCK or rows * columns % _BLOCK:
            raise ModelUnsupported(f"{name} is not kept in blocks of {_BLOCK}")
        scales = self._raw(name + ".absmax")
        if scales.dtype == np.uint8:
            coarse = np.repeat(self._raw(name + ".nested_absmax"), state["nested_blocksize"])
            fine = self._raw(name + ".nested_quant_map")[scales]
            scales = fine * coarse[: fine.size] + np.float32(state["nested_offset"])
        return _Packed(
            codes=self._raw(name).reshape(-1, _BLOCK // 2),
            scales=scales.reshape(-1, 1),
            levels=self._raw(name + ".quant_map"),
            shape=(rows, columns),
        )

    def int8(self, name: str) -> Int8Rows | None:
        """Give a matrix of an int8 base as it is, or None if it is not quantized."""
        scales = name.removesuffix("weight") + "scales"
        if scales not in self._names:
            return None
        return Int8Rows(self._raw(name), self._raw(scales))

    def _state(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = msgspec.json.decode(self._raw(name + _QUANT_STATE).tobytes())
        return found

    def _raw(self, name: str) -> NDArray[Any]:
        if name not in self._names:
            raise ModelUnsupported(f"the base holds no {name}")
        try:
            found: NDArray[Any] = self._file.get_tensor(name)
        except (AttributeError, TypeError) as error:  # numpy has no bfloat16
            raise ModelUnsupported(f"{name} is kept in a way that needs torch: {error}") from error
        return found


class Weights:
    """Writes weights into one file, once each, and names them in any number of graphs.

    Parameters
    ----------
    tensors
        The base's own.
    path
        The file to write; graphs name it by its last part.
    form
        How matrices are kept. ``int8``: those of an int8 base as they are, or all of an fp32 base.
    """

    def __init__(self, tensors: BaseTensors, path: Path, form: Format) -> None:
        self._tensors = tensors
        self._form = form
        self._name = path.name
        self._file = path.open("wb")
        self._places: dict[str, dict[str, Stored]] = {}
        self._levels: Array | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def vector(self, graph: Graph, name: str) -> Value:
        """Name a tensor that is never quantized: a bias, a norm, a table of positions."""
        return self.table(graph, name, self._tensors.array(name))

    def table(self, graph: Graph, name: str, array: Array) -> Value:
        """Name any array."""
        if array.nbytes < _INLINE_BYTES:
            return graph.constant(array)
        if name not in self._places:
            self._places[name] = {"": self._write(array)}
        return graph.stored(name, self._places[name][""])

    def matrix(self, graph: Graph, name: str) -> Value:
        """Give a linear layer's matrix, shape (outputs, inputs), for one use."""
        places = self._matrix(name)
        if "" in places:
            return graph.stored(name, places[""])
        codes = graph.stored(f"{name}.codes", places["codes"])
        scales = graph.stored(f"{name}.scales", places["scales"])
        if self._form == "int8":
            return _dequantized(graph, codes, scales)
        return self._unpacked(graph, codes, scales, self._tensors.packed_shape(name))

    def lookup(self, name: str) -> Lookup:
        """Say where the rows of an embedding matrix are, for a program that reads the file."""
        places = self._matrix(name)
        rows = places.get("") or places["codes"]
        scales = places.get("scales")
        return Lookup(
            offset=rows.offset,
            rows=rows.shape[0],
            width=rows.shape[1],
            scales=None if scales is None else scales.offset,
        )

    def slab(self, graph: Graph, name: str, rows: range) -> Value:
        """Give some rows of a large matrix, for one use, as if they were a matrix of their own."""
        places = self._matrix(name)
        label = f"{name}[{rows.start}:{rows.stop}]"
        if "" in places:
            return graph.stored(label, _part(places[""], rows))
        return _dequantized(
            graph,
            graph.stored(f"{label}.codes", _part(places["codes"], rows)),
            graph.stored(f"{label}.scales", _part(places["scales"], rows)),
        )

    def _matrix(self, name: str) -> dict[str, Stored]:
        if name not in self._places:
            self._places[name] = {
                part: self._write(array) for part, array in self._parts(name).items()
            }
        return self._places[name]

    def _parts(self, name: str) -> dict[str, NDArray[Any]]:
        packed = self._tensors.packed(name) if self._form == "nf4" else None
        if packed is not None:
            if self._levels is None:
                self._levels = packed.levels
            if not np.array_equal(self._levels, packed.levels):
                raise ModelUnsupported(f"{name} has other levels than the rest")
            return {"codes": packed.codes, "scales": packed.scales[:, :, None]}
        if self._form == "int8" and not self._tensors.quantized:
            return int8_rows(self._tensors.array(name))._asdict()
        found = self._tensors.int8(name) if self._form == "int8" else None
        return {"": self._tensors.array(name)} if found is None else found._asdict()

    def _write(self, array: NDArray[Any]) -> Stored:
        self._file.write(b"\0" * (-self._file.tell() % _ALIGNMENT))
        offset = self._file.tell()
        self._file.write(np.ascontiguousarray(array).data)
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        return Stored(self._name, offset, array.nbytes, array.shape, kind)

    def _unpacked(self, graph: Graph, codes: Value, scales: Value, shape: tuple[int, int]) -> Value:
        """Look up two levels for each byte, as bitsandbytes orders them, and scale each block."""
        if self._levels is None:
            raise ValueError("no NF4 matrix has been written")
        high, low = np.divmod(np.arange(256), 16)
        pairs = graph.constant(np.stack([self._levels[high], self._levels[low]], axis=1))
        index = graph.op(
            "Cast",
            codes,
            shape=codes.shape,
            element=TensorProto.INT32,
            to=TensorProto.INT32,
            fleeting=True,
        )
        shape3 = (codes.shape[0], _BLOCK // 2, 2)
        found = graph.op("Gather", pairs, index, shape=shape3, fleeting=True)
        scaled = graph.op("Mul", found, scales, shape=shape3, fleeting=True)
        return graph.op("Reshape", scaled, graph.constant(shape), shape=shape, fleeting=True)


def _dequantized(graph: Graph, codes: Value, scales: Value) -> Value:
    return graph.op("DequantizeLinear", codes, scales, shape=codes.shape, axis=0, fleeting=True)


def _part(place: Stored, rows: range) -> Stored:
    each = place.length // place.shape[0]
    return place._replace(
        offset=place.offset + rows.start * each,
        length=len(rows) * each,
        shape=(len(rows), *place.shape[1:]),
    )
