"""What an ONNX graph is built from: nodes, initializers, and three kinds of values."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from fobt._exported import Weights
from fobt._onnx_weights import emit

OPSET = 21  # the first one whose DequantizeLinear takes 4-bit tensors and blocks


def import_onnx() -> Any:
    """The package onnx, imported only where a graph is made."""
    try:
        import onnx
        import onnx.helper
    except ImportError as error:
        raise ImportError("to_onnx needs the package onnx: pip install 'fobt[export]'.") from error
    return onnx


@dataclasses.dataclass(frozen=True)
class Constant:
    """An array that is known when the graph is made."""

    array: np.ndarray

    @property
    def shape(self) -> tuple[Any, ...]:
        """Its shape."""
        return self.array.shape


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A value that the graph computes.

    Attributes:
      name: its name in the graph.
      shape: its shape there, whose dimensions are integers or symbolic; it has 1 where a broadcast was left to the
        operator that takes it.
    """

    name: str
    shape: tuple[Any, ...]


Value: TypeAlias = Constant | Weights | Tensor


class Graph:
    """A graph under construction."""

    def __init__(self, inputs: Sequence[Tensor], *, base3: bool):
        self.onnx = import_onnx()
        self.opset = OPSET
        self._inputs = inputs
        self._base3 = base3
        self.nodes: list[Any] = []
        self.initializers: dict[Any, Any] = {}
        self.functions: dict[str, Any] = {}
        self._weights: dict[int, tuple[Weights, Tensor]] = {}
        self._count = 0

    def fresh(self) -> str:
        """A name that is not in use; short, because names are a good part of a small file."""
        self._count += 1
        return f"v{self._count}"

    def add(
        self,
        op: str,
        inputs: Sequence[Value | np.ndarray],
        shape: Sequence[Any],
        domain: str | None = None,
        **attributes: Any,
    ) -> Tensor:
        """A node with one output of shape `shape`."""
        names = [self.name(value) for value in inputs]
        output = self.fresh()
        self.nodes.append(self.onnx.helper.make_node(op, names, [output], domain=domain, **attributes))
        return Tensor(output, tuple(shape))

    def add_outputs(self, names: Sequence[str], results: Sequence[Value]) -> None:
        """Gives values the names of outputs of the graph; nothing can be added after that."""
        befores = [self.name(result) for result in results]
        produced = {output for node in self.nodes for output in node.output}
        renamed: dict[str, str] = {}
        copies = []
        for name, before in zip(names, befores, strict=True):
            if before in produced and before not in renamed:
                renamed[before] = name
            else:  # an input, a stored value, or twice an output
                copies.append((before, name))
        for node in self.nodes:
            node.input[:] = [renamed.get(used, used) for used in node.input]
            node.output[:] = [renamed.get(made, made) for made in node.output]
        for before, name in copies:
            self.nodes.append(self.onnx.helper.make_node("Identity", [renamed.get(before, before)], [name]))

    def name(self, value: Value | np.ndarray) -> str:
        """The name of a value in the graph, into which it is put where it is not there yet."""
        if isinstance(value, Tensor):
            return value.name
        if isinstance(value, Weights):
            if id(value) not in self._weights:
                # The weights are kept so that no other ones get their id.
                self._weights[id(value)] = value, emit(value, self, base3=self._base3)
            return self._weights[id(value)][1].name
        array = value.array if isinstance(value, Constant) else np.asarray(value)
        dtype = self.onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        return self.store(dtype, array.shape, array.tobytes()).name

    def store(self, data_type: int, shape: Sequence[int], content: bytes, name: str | None = None) -> Tensor:
        """A stored tensor; equal ones are stored once."""
        key = data_type, tuple(shape), content
        if key not in self.initializers:
            self.initializers[key] = self.onnx.TensorProto(
                data_type=data_type, dims=shape, raw_data=content, name=name or self.fresh()
            )
        return Tensor(self.initializers[key].name, tuple(shape))

    def reshape(self, value: Value, shape: Sequence[Any]) -> Value:
        """The value in another shape; at most one dimension that is not an integer can be left to the operator."""
        if tuple(value.shape) == tuple(shape):
            return value
        if isinstance(value, Constant):
            return Constant(value.array.reshape(shape))
        symbolic = [dimension for dimension in shape if not isinstance(dimension, int)]
        if len(symbolic) <= 1:
            sizes: Any = np.array([size if isinstance(size, int) else -1 for size in shape], np.int64)
        else:
            sizes = self.sizes(shape)
        return self.add("Reshape", [value, sizes], shape)

    def transpose(self, value: Value, permutation: Sequence[int]) -> Value:
        """The value with its axes in another order; of stored values the stored form changes."""
        if list(permutation) == list(range(len(permutation))):
            return value
        if isinstance(value, Constant):
            return Constant(value.array.transpose(permutation))
        if isinstance(value, Weights):
            return value.transpose(permutation)
        shape = [value.shape[axis] for axis in permutation]
        return self.add("Transpose", [value], shape, perm=list(permutation))

    def expand(self, value: Value, shape: Sequence[Any]) -> Value:
        """The value, broadcast to a shape."""
        if tuple(value.shape) == tuple(shape):
            return value
        return self.add("Expand", [value, self.sizes(shape)], shape)

    def sizes(self, shape: Sequence[Any]) -> Value:
        """A shape as a vector."""
        if all(isinstance(dimension, int) for dimension in shape):
            return Constant(np.array(shape, np.int64))
        parts = [
            Constant(np.array([size], np.int64)) if isinstance(size, int) else self._dimension(size) for size in shape
        ]
        return self.add("Concat", parts, (len(parts),), axis=0)

    def _dimension(self, dimension: Any) -> Tensor:
        for tensor in self._inputs:
            if dimension in tensor.shape:
                axis = tensor.shape.index(dimension)
                return self.add("Shape", [tensor], (1,), start=axis, end=axis + 1)
        raise ValueError(f"function has a dimension of size {dimension}, which is no dimension of an input.")
