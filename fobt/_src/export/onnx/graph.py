"""What an ONNX graph is built from: nodes, initializers, and the kinds of values."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np

from fobt._src.export.onnx.types import Unsupported, carrier
from fobt._src.export.weights import Weights

OPSET = 21  # the first one that casts 4-bit tensors


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

    @property
    def dtype(self) -> np.dtype:
        """Its dtype."""
        return self.array.dtype


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A value that the graph computes.

    Attributes:
      name: its name in the graph.
      shape: its shape there, whose dimensions are integers or symbolic; it has 1 where a broadcast was left to the
        operator that takes it.
      dtype: its dtype.
    """

    name: str
    shape: tuple[Any, ...]
    dtype: np.dtype


@dataclasses.dataclass(frozen=True)
class Codes:
    """Activations of 8 bits: scale · (code - zero point), float32 where an operator takes no codes.

    Attributes:
      codes: uint8, because onnxruntime multiplies by int8 activations many times slower on x86.
      scale: float32 scalar.
      zero: uint8 scalar.
    """

    codes: Tensor
    scale: np.ndarray
    zero: np.ndarray

    @property
    def shape(self) -> tuple[Any, ...]:
        """Their shape."""
        return self.codes.shape

    @property
    def dtype(self) -> np.dtype:
        """float32."""
        return np.dtype(np.float32)

    def moved(self, codes: Value) -> Codes:
        """The same with their codes in another order or shape, or only some of them."""
        assert isinstance(codes, Tensor)
        return dataclasses.replace(self, codes=codes)


@dataclasses.dataclass(frozen=True, eq=False)
class Pending:
    """The output of a convolution of codes that is not computed yet: in integers if it is rounded to codes itself.

    Attributes:
      shape: its shape, with channels last.
      images: the codes, with channels last.
      kernel: [outputs, inputs, ...].
      params: those of the convolution.
      make: puts it into the graph as floats.
      bias: what is added, for each channel, if anything.
      is_positive: whether what is negative then becomes 0.
      poolings: maxima over windows of each channel.
    """

    shape: tuple[Any, ...]
    images: Codes
    kernel: Weights
    params: Mapping[str, Any]
    make: Callable[[], Value]
    bias: np.ndarray | None = None
    is_positive: bool = False
    poolings: tuple[Callable[[Codes], Value], ...] = ()

    @property
    def dtype(self) -> np.dtype:
        """float32."""
        return np.dtype(np.float32)

    @functools.cached_property
    def value(self) -> Value:
        """The floats."""
        return self.make()


Value: TypeAlias = Constant | Weights | Tensor | Codes | Pending


class Form(Protocol):
    """How quantized weights are stored in a graph and multiplied by; `forms.py` has two."""

    def weights(self, graph: Graph, weights: Weights) -> Tensor:
        """The weights as an array of floats."""

    def product(
        self, graph: Graph, rows: Value, weights: Weights, axes: tuple[Sequence[int], Sequence[int]]
    ) -> Tensor | None:
        """The product of the last axis of `rows` and a matrix of weights, or None where it is one of floats."""

    def convolution(self, graph: Graph, params: Mapping[str, Any], images: Value, weights: Weights) -> Tensor | None:
        """A convolution of images with channels last, or None where it is one of floats."""

    def takes_codes(self, params: Mapping[str, Any], kernel: Weights) -> bool:
        """Whether a convolution of codes can be one of integers, for a kernel of outputs, inputs, ...."""

    def rounded(self, graph: Graph, pending: Pending, scale: np.ndarray, zero: np.ndarray) -> Codes | None:
        """The codes of a convolution, or None where it has to be one of floats."""


class Graph:
    """A graph under construction.

    Args:
      inputs: the inputs of the graph.
      outputs: the names of its outputs.
      leaves: the names of the quantized leaves.
      form: how quantized weights are stored and multiplied by.
    """

    def __init__(
        self,
        inputs: Sequence[Tensor],
        outputs: Sequence[str],
        leaves: Iterable[str],
        form: Form,
    ):
        self.onnx = import_onnx()
        self.opset = OPSET
        self._inputs = inputs
        self.outputs = outputs
        self.form = form
        self.nodes: list[Any] = []
        self.initializers: dict[Any, Any] = {}
        self.functions: dict[str, tuple[list[str], list[str], list[Any]]] = {}  # inputs, outputs and nodes
        self._taken = {*(tensor.name for tensor in inputs), *outputs}
        # Leaves first, because their names mean something to the user; then no other name can be one of them.
        self._leaf_names = {leaf: self._unique(leaf.encode("utf-8", "backslashreplace").decode()) for leaf in leaves}
        self._counter = itertools.count(1)
        self._used: set[str] = set()  # leaves and rows of leaves
        self._stored: dict[str, tuple[Weights, Tensor]] = {}
        self._rearranged: dict[Any, Tensor] = {}
        self._dequantized: dict[str, Tensor] = {}

    def _unique(self, wanted: str) -> str:
        """The name itself or, where it is in use or empty, with a number behind it."""
        candidates = itertools.chain([wanted], (f"{wanted}_{i}" for i in itertools.count(2)))
        name = next(name for name in candidates if name and name not in self._taken)
        self._taken.add(name)
        return name

    def fresh(self) -> str:
        """A name that is not in use; short, because names are a good part of a small file."""
        return self._unique(f"v{next(self._counter)}")

    def add(
        self,
        op: str,
        inputs: Sequence[Value | np.ndarray],
        shape: Sequence[Any],
        dtype: Any = None,
        domain: str | None = None,
        **attributes: Any,
    ) -> Tensor:
        """A node with one output of shape `shape`, by default in the dtype of the first input."""
        (tensor,) = self.add_many(
            op, inputs, [shape], [inputs[0].dtype if dtype is None else dtype], domain, **attributes
        )
        return tensor

    def add_many(
        self,
        op: str,
        inputs: Sequence[Value | np.ndarray],
        shapes: Sequence[Sequence[Any]],
        dtypes: Sequence[Any],
        domain: str | None = None,
        **attributes: Any,
    ) -> list[Tensor]:
        """A node with several outputs."""
        names = [self.name(value) for value in inputs]
        outputs = [self.fresh() for _ in shapes]
        self.nodes.append(self.onnx.helper.make_node(op, names, outputs, domain=domain, **attributes))
        return [
            Tensor(output, tuple(shape), np.dtype(dtype))
            for output, shape, dtype in zip(outputs, shapes, dtypes, strict=True)
        ]

    def compute(
        self,
        op: str,
        operands: Sequence[Value],
        shape: Sequence[Any],
        others: Sequence[np.ndarray | Value] = (),
        **attributes: Any,
    ) -> Value:
        """A node whose operands and output have one dtype, computed in one that the operator takes."""
        dtype = operands[0].dtype
        wide = carrier(op, dtype)
        output = self.add(op, [*(self.cast(value, wide) for value in operands), *others], shape, **attributes)
        return self.cast(output, dtype)

    def compare(self, op: str, operands: Sequence[Value], shape: Sequence[Any]) -> Value:
        """A node with an output of bool."""
        wide = carrier(op, operands[0].dtype)
        return self.add(op, [self.cast(value, wide) for value in operands], shape, bool)

    def cast(self, value: Value, dtype: Any) -> Value:
        """The value in another dtype, as C casts it."""
        dtype = np.dtype(dtype)
        if value.dtype == dtype:
            return value
        if isinstance(value, Constant):
            return Constant(value.array.astype(dtype))
        return self.add("Cast", [value], value.shape, dtype, to=self.data_type(dtype))

    def data_type(self, dtype: Any) -> int:
        """ONNX's number of a dtype."""
        return self.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))

    def add_outputs(self, results: Sequence[Value]) -> None:
        """Gives values the names of outputs of the graph; nothing can be added after that."""
        befores = [self.name(result) for result in results]
        produced = {output for node in self.nodes for output in node.output}
        renamed: dict[str, str] = {}
        copies = []
        for name, before in zip(self.outputs, befores, strict=True):
            if before in produced and before not in renamed:
                renamed[before] = name
            else:  # an input, a stored value, or twice an output
                copies.append((before, name))
        for node in self.nodes:
            node.input[:] = [renamed.get(used, used) for used in node.input]
            node.output[:] = [renamed.get(made, made) for made in node.output]
        for before, name in copies:
            self.nodes.append(self.onnx.helper.make_node("Identity", [renamed.get(before, before)], [name]))

    def unused_leaves(self) -> list[str]:
        """The quantized leaves that are not in the graph."""
        # A row of a leaf has a number behind the path; no other leaf has a path that begins with this one.
        used = {name for leaf in self._used for name in (leaf, leaf.rpartition("/")[0])}
        return [leaf for leaf in self._leaf_names if leaf not in used]

    def name(self, value: Value | np.ndarray) -> str:
        """The name of a value in the graph, into which it is put where it is not there yet."""
        if isinstance(value, Tensor):
            return value.name
        if isinstance(value, Weights):
            return self._emitted(value).name
        if isinstance(value, Pending):
            return self.name(value.value)
        if isinstance(value, Codes):
            if value.codes.name not in self._dequantized:
                inputs: list[Value | np.ndarray] = [value.codes, value.scale, value.zero]
                self._dequantized[value.codes.name] = self.add("DequantizeLinear", inputs, value.shape, np.float32)
            return self._dequantized[value.codes.name].name
        array = value.array if isinstance(value, Constant) else np.asarray(value)
        return self.store(self.data_type(array.dtype), array.shape, array.tobytes()).name

    def _emitted(self, weights: Weights) -> Tensor:
        """Weights in the graph; a leaf is stored once, as it is used first, and rearranged for other uses."""
        if weights.name not in self._stored:
            self._stored[weights.name] = weights, self.form.weights(self, weights)
        stored, tensor = self._stored[weights.name]
        key = weights.name, weights.order, weights.reversed_axes
        if key not in self._rearranged:
            backwards = sorted(stored.order.index(axis) for axis in stored.reversed_axes ^ weights.reversed_axes)
            order = [stored.order.index(axis) for axis in weights.order]
            rearranged = self.transpose(self.reverse(tensor, backwards), order)
            assert isinstance(rearranged, Tensor)
            self._rearranged[key] = rearranged
        return self._rearranged[key]

    def store(self, data_type: int, shape: Sequence[int], content: bytes, leaf: str | None = None) -> Tensor:
        """A stored tensor, by the name of a leaf or a fresh one; equal ones are stored once."""
        key = data_type, tuple(shape), content
        is_first = leaf not in self._used
        self._used |= set() if leaf is None else {leaf}
        if key not in self.initializers:
            known = self._leaf_names.get(leaf) if leaf is not None and is_first else None
            name = self.fresh() if leaf is None else known or self._unique(leaf)
            self.initializers[key] = self.onnx.TensorProto(data_type=data_type, dims=shape, raw_data=content, name=name)
        dtype = self.onnx.helper.tensor_dtype_to_np_dtype(data_type)
        return Tensor(self.initializers[key].name, tuple(shape), dtype)

    def reshape(self, value: Value, shape: Sequence[Any]) -> Value:
        """The value in another shape; at most one dimension that is not an integer can be left to the operator."""
        if tuple(value.shape) == tuple(shape):
            return value
        if isinstance(value, Constant):
            return Constant(value.array.reshape(shape))
        if isinstance(value, Codes):
            return value.moved(self.reshape(value.codes, shape))
        symbolic = [dimension for dimension in shape if not isinstance(dimension, int)]
        is_empty = 0 in shape  # a 0 would stand for the size before, and -1 would have no answer
        if len(symbolic) <= 1 and not is_empty:
            sizes: Any = np.array([size if isinstance(size, int) else -1 for size in shape], np.int64)
        else:
            sizes = self.sizes(shape)
        attributes: dict[str, Any] = {"allowzero": 1} if is_empty else {}
        return self.add("Reshape", [value, sizes], shape, **attributes)

    def transpose(self, value: Value, permutation: Sequence[int]) -> Value:
        """The value with its axes in another order; of stored values the stored form changes."""
        if list(permutation) == list(range(len(permutation))):
            return value
        if isinstance(value, Constant):
            return Constant(value.array.transpose(permutation))
        if isinstance(value, Weights):
            return value.transpose(permutation)
        if isinstance(value, Codes):
            return value.moved(self.transpose(value.codes, permutation))
        shape = [value.shape[axis] for axis in permutation]
        return self.add("Transpose", [value], shape, perm=list(permutation))

    def reverse(self, value: Value, axes: Sequence[int]) -> Value:
        """The value backwards along some axes; of stored values the stored form changes where it can."""
        axes = [axis for axis in axes if value.shape[axis] != 1]
        if not axes:
            return value
        if isinstance(value, Constant):
            return Constant(np.flip(value.array, tuple(axes)))
        if isinstance(value, Weights) and (backwards := value.reverse(axes)) is not None:
            return backwards
        ends = np.full(len(axes), np.iinfo(np.int64).min)  # beyond the first index
        minus = np.full(len(axes), -1)
        return self.add("Slice", [value, minus, ends, np.array(axes), minus], value.shape)

    def expand(self, value: Value, shape: Sequence[Any]) -> Value:
        """The value, broadcast to a shape."""
        if tuple(value.shape) == tuple(shape):
            return value
        return self.compute("Expand", [value], shape, [self.sizes(shape)])

    def sizes(self, shape: Sequence[Any]) -> Value:
        """A shape as a vector."""
        if all(isinstance(dimension, int) for dimension in shape):
            return Constant(np.array(shape, np.int64))
        parts = [
            Constant(np.array([size], np.int64)) if isinstance(size, int) else self._dimension(size) for size in shape
        ]
        return self.add("Concat", parts, (len(parts),), axis=0)

    def _dimension(self, dimension: Any) -> Value:
        """A dimension of an input, or one that is larger or smaller by a number, as a vector of one."""
        for tensor in self._inputs:
            for axis, size in enumerate(tensor.shape):
                difference = dimension - size
                if not isinstance(size, int) and isinstance(difference, int):
                    found = self.add("Shape", [tensor], (1,), np.int64, start=axis, end=axis + 1)
                    return found if difference == 0 else self.add("Add", [found, np.array([difference])], (1,))
        raise Unsupported(f"with a dimension of size {dimension}, which is no dimension of an input")
