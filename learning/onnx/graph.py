"""An ONNX graph under construction, whose values can be computed a second time where needed.

Nodes run in the order in which they are added (`learning.onnx.engine` sees to it), so this order
decides how long each value lives. A backward pass calls `Graph.recall` for what it needs from the
forward pass: the value itself where it was kept, else a fresh copy of the nodes that made it. That
is recomputation (Chen et al., "Training deep nets with sublinear memory cost", 2016) without any
support from the runtime.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 20
"""onnxruntime 1.17 and later run it; 20 is the first with Gelu."""
_IR_VERSION = 9

Dim: TypeAlias = int | str
Shape: TypeAlias = tuple[Dim, ...]


class Value(NamedTuple):
    """An edge of the graph: its name, shape (names stand for unknown sizes) and element type."""

    name: str
    shape: Shape
    type: int = TensorProto.FLOAT

    @property
    def features(self) -> int:
        """The size of the last axis, which is always known."""
        return int(self.shape[-1])


class Stored(NamedTuple):
    """Where a constant's bytes are, in a file beside the model."""

    file: str
    offset: int
    length: int
    shape: tuple[int, ...]
    type: int


class _Node(NamedTuple):
    kind: str
    inputs: tuple[Value | None, ...]
    outputs: tuple[Value, ...]
    attributes: dict[str, Any]
    fleeting: bool


class Graph:
    """Nodes in the order in which they run."""

    def __init__(self) -> None:
        self._nodes: list[_Node] = []
        self._inputs: list[Value] = []
        self._outputs: list[tuple[str, Value]] = []
        self._constants: dict[str, TensorProto] = {}
        self._known: dict[tuple[bytes, str, tuple[int, ...]], Value] = {}
        self._maker: dict[str, _Node] = {}
        self._kept: set[str] = set()
        self._copies: dict[str, Value] = {}
        self._keeping = False
        self._count = 0

    def input(self, name: str, shape: Shape, element: int = TensorProto.FLOAT) -> Value:
        """Declare an input."""
        value = Value(name, shape, element)
        self._inputs.append(value)
        return value

    def output(self, name: str, value: Value) -> None:
        """Declare an output."""
        self._outputs.append((name, value))

    def constant(self, array: np.ndarray[Any, Any] | np.generic | Sequence[int]) -> Value:
        """Put a small constant into the model file; equal ones share one place."""
        found = np.asarray(array)
        key = (found.tobytes(), found.dtype.str, found.shape)
        if key not in self._known:
            proto = numpy_helper.from_array(found, f"c{len(self._known)}")
            self._constants[proto.name] = proto
            self._known[key] = Value(proto.name, found.shape, proto.data_type)
        return self._known[key]

    def stored(self, name: str, place: Stored) -> Value:
        """Name a constant that lies in a file beside the model, to be mapped into memory."""
        if name not in self._constants:
            proto = TensorProto(
                name=name,
                data_type=place.type,
                dims=place.shape,
                data_location=TensorProto.EXTERNAL,
            )
            where = {"location": place.file, "offset": place.offset, "length": place.length}
            for key, entry in where.items():
                proto.external_data.add(key=key, value=str(entry))
            self._constants[name] = proto
        return Value(name, place.shape, place.type)

    def op(
        self,
        kind: str,
        *inputs: Value | None,
        shape: Shape,
        element: int = TensorProto.FLOAT,
        fleeting: bool = False,
        **attributes: Any,
    ) -> Value:
        """Add a node with one output.

        Parameters
        ----------
        kind
            The ONNX operator.
        inputs
            None stands for an optional input left out.
        shape, element
            Of the output.
        fleeting
            Never keep it: it is cheaper to make anew than to hold (a dequantized matrix).
        attributes
            Of the operator.
        """
        return self.ops(
            kind, *inputs, shapes=[shape], element=element, fleeting=fleeting, **attributes
        )[0]

    def ops(
        self,
        kind: str,
        *inputs: Value | None,
        shapes: Sequence[Shape],
        element: int = TensorProto.FLOAT,
        fleeting: bool = False,
        **attributes: Any,
    ) -> list[Value]:
        """Add a node with several outputs; see `op`."""
        outputs = [
            Value(f"v{self._count + place}", shape, element) for place, shape in enumerate(shapes)
        ]
        self._count += len(outputs)
        node = _Node(kind, inputs, tuple(outputs), attributes, fleeting)
        self._nodes.append(node)
        for output in outputs:
            self._maker[output.name] = node
            if self._keeping and not fleeting:
                self._kept.add(output.name)
        return outputs

    def keep(self, value: Value) -> Value:
        """Have the backward pass use `value` itself."""
        self._kept.add(value.name)
        return value

    @contextmanager
    def keeping(self, *, wanted: bool = True) -> Iterator[None]:
        """Keep every value made inside."""
        before, self._keeping = self._keeping, wanted
        try:
            yield
        finally:
            self._keeping = before

    def recall(self, value: Value) -> Value:
        """Give `value` for use in the backward pass: itself if it was kept, else made again."""
        maker = self._maker.get(value.name)
        if maker is None or value.name in self._kept:
            return value
        if value.name not in self._copies:
            copies = self.ops(
                maker.kind,
                *(None if part is None else self.recall(part) for part in maker.inputs),
                shapes=[output.shape for output in maker.outputs],
                element=maker.outputs[0].type,
                **maker.attributes,
            )
            made = dict(zip([output.name for output in maker.outputs], copies, strict=True))
            if maker.fleeting:
                return made[value.name]
            self._copies |= made
            self._kept |= {copy.name for copy in copies}
        return self._copies[value.name]

    def model(self, name: str) -> onnx.ModelProto:
        """Give the finished model, without nodes and constants that no output needs."""
        needed = {value.name for _, value in self._outputs}
        chosen: list[_Node] = []
        for node in reversed(self._nodes):
            if any(output.name in needed for output in node.outputs):
                chosen.append(node)
                needed.update(part.name for part in node.inputs if part is not None)
        renamed = {value.name: output for output, value in self._outputs}
        graph = helper.make_graph(
            [_proto(node, renamed) for node in reversed(chosen)],
            name,
            [_info(value, value.name) for value in self._inputs],
            [_info(value, output) for output, value in self._outputs],
            [proto for name, proto in self._constants.items() if name in needed],
        )
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=_IR_VERSION,
            producer_name="ffm-edge",
        )


def _info(value: Value, name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, value.type, list(value.shape))


def _proto(node: _Node, renamed: dict[str, str]) -> onnx.NodeProto:
    def called(value: Value | None) -> str:
        return "" if value is None else renamed.get(value.name, value.name)

    return helper.make_node(
        node.kind,
        [called(part) for part in node.inputs],
        [called(output) for output in node.outputs],
        **node.attributes,
    )
