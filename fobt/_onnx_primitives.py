"""The primitives of JAX that inference of dense and convolutional networks uses, as ONNX operators.

A converter takes the graph, the equation and the values of its inputs, and returns the value of its output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np

from fobt._onnx_graph import Constant, Graph, Value
from fobt._onnx_windows import convolution, max_pooling, sum_pooling

Converter: TypeAlias = Callable[..., Value]


def broadcast_shape(shapes: Sequence[Sequence[Any]]) -> tuple[Any, ...]:
    """The shape of an elementwise result; NumPy's rule, with dimensions that may be symbolic."""
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(shape)) + tuple(shape) for shape in shapes]
    return tuple(next((size for size in sizes if size != 1), 1) for sizes in zip(*padded, strict=True))


def elementwise(op: str, **attributes: Any) -> Converter:
    """The operator of that name; its inputs may still have to be broadcast."""

    def convert(graph: Graph, eqn: Any, *inputs: Value) -> Value:
        del eqn
        return graph.add(op, inputs, broadcast_shape([value.shape for value in inputs]), **attributes)

    return convert


def chain(*ops: str) -> Converter:
    """Operators of one input, one after the other."""

    def convert(graph: Graph, eqn: Any, value: Value) -> Value:
        del eqn
        for op in ops:
            value = graph.add(op, [value], value.shape)
        return value

    return convert


def reduction(op: str) -> Converter:
    """The operator of that name over the axes of the equation."""

    def convert(graph: Graph, eqn: Any, value: Value) -> Value:
        axes = np.array(eqn.params["axes"], np.int64)
        return graph.add(op, [exact(graph, eqn, value), axes], eqn.outvars[0].aval.shape, keepdims=0)

    return convert


def arg_reduction(op: str) -> Converter:
    """The index of an extremum, the first one, along an axis."""

    def convert(graph: Graph, eqn: Any, value: Value) -> Value:
        (axis,) = eqn.params["axes"]
        shape = eqn.outvars[0].aval.shape
        found = graph.add(op, [exact(graph, eqn, value)], shape, axis=axis, keepdims=0)
        return cast(graph, eqn, found)

    return convert


def exact(graph: Graph, eqn: Any, value: Value, position: int = 0) -> Value:
    """The value in the shape that the equation sees."""
    return graph.expand(value, eqn.invars[position].aval.shape)


def cast(graph: Graph, eqn: Any, value: Value) -> Value:
    """The value with the dtype of the output."""
    dtype = np.dtype(eqn.outvars[0].aval.dtype)
    return graph.add("Cast", [value], value.shape, to=graph.onnx.helper.np_dtype_to_tensor_dtype(dtype))


def not_equal(graph: Graph, eqn: Any, *inputs: Value) -> Value:
    """Not, of Equal."""
    equal = elementwise("Equal")(graph, eqn, *inputs)
    return graph.add("Not", [equal], equal.shape)


def remainder(graph: Graph, eqn: Any, *inputs: Value) -> Value:
    """The remainder with the sign of the dividend."""
    return elementwise("Mod", fmod=1)(graph, eqn, *inputs)


def integer_power(graph: Graph, eqn: Any, value: Value) -> Value:
    """A power with a static integer exponent."""
    exponent = np.asarray(eqn.params["y"], eqn.outvars[0].aval.dtype)
    return graph.add("Pow", [value, exponent], value.shape)


def square(graph: Graph, eqn: Any, value: Value) -> Value:
    """The value times itself."""
    return elementwise("Mul")(graph, eqn, value, value)


def select(graph: Graph, eqn: Any, predicate: Value, *cases: Value) -> Value:
    """The second case where the predicate holds, otherwise the first one."""
    if len(cases) != 2 or eqn.invars[0].aval.dtype != bool:
        raise unsupported(eqn, "a choice between other than two cases")
    return elementwise("Where")(graph, eqn, predicate, cases[1], cases[0])


def clamp(graph: Graph, eqn: Any, low: Value, value: Value, high: Value) -> Value:
    """The value between two bounds."""
    return elementwise("Min")(graph, eqn, elementwise("Max")(graph, eqn, value, low), high)


def reshape(graph: Graph, eqn: Any, value: Value) -> Value:
    """Another shape; also squeeze and expand_dims."""
    return graph.reshape(exact(graph, eqn, value), eqn.outvars[0].aval.shape)


def transpose(graph: Graph, eqn: Any, value: Value) -> Value:
    """Another order of the axes."""
    return graph.transpose(value, eqn.params["permutation"])


def broadcast(graph: Graph, eqn: Any, value: Value) -> Value:
    """Axes of size 1 in the places of the new ones, which operators broadcast by themselves."""
    shape = [1] * len(eqn.outvars[0].aval.shape)
    for axis, size in zip(eqn.params["broadcast_dimensions"], value.shape, strict=True):
        shape[axis] = size
    return graph.reshape(value, shape)


def slice_(graph: Graph, eqn: Any, value: Value) -> Value:
    """A part; an axis that is taken as a whole may have any size."""
    params, sizes = eqn.params, eqn.invars[0].aval.shape
    steps = params["strides"] or (1,) * len(sizes)
    bounds = list(zip(params["start_indices"], params["limit_indices"], steps, strict=True))
    axes = [axis for axis, size in enumerate(sizes) if bounds[axis] != (0, size, 1)]
    if not all(isinstance(number, int) for axis in axes for number in bounds[axis]):
        raise unsupported(eqn, f"bounds {bounds} that are no integers")
    columns = [np.array([bounds[axis][i] for axis in axes], np.int64) for i in range(3)]
    starts, ends, strides = columns
    inputs = [exact(graph, eqn, value), starts, ends, np.array(axes, np.int64), strides]
    return graph.add("Slice", inputs, eqn.outvars[0].aval.shape)


def gather(graph: Graph, eqn: Any, value: Value, indices: Value) -> Value:
    """One window at a known place, or rows along one axis; indices out of range are the runtime's affair.

    JAX slices an array with symbolic dimensions, and looks up embeddings, with this primitive.
    """
    numbers, sizes, shape = eqn.params["dimension_numbers"], eqn.params["slice_sizes"], eqn.outvars[0].aval.shape
    value, axes = exact(graph, eqn, value), numbers.start_index_map
    if isinstance(indices, Constant) and indices.array.ndim == 1 and not numbers.operand_batching_dims:
        ends = [start + sizes[axis] for start, axis in zip(indices.array.tolist(), axes, strict=True)]
        if all(isinstance(end, int) for end in ends):
            bounds = [np.array(numbers, np.int64) for numbers in (indices.array, ends, axes)]
            window = graph.add("Slice", [value, *bounds], sizes)
            return graph.reshape(window, shape)
    rank = len(indices.shape) - 1
    if len(axes) == 1 and not numbers.operand_batching_dims and numbers.collapsed_slice_dims == axes:
        (axis,) = axes
        kept = tuple(i for i in range(len(shape)) if not axis <= i < axis + rank)
        others_whole = all(i == axis or size == value.shape[i] for i, size in enumerate(sizes))
        if others_whole and numbers.offset_dims == kept:
            rows = graph.reshape(exact(graph, eqn, indices, 1), eqn.invars[1].aval.shape[:-1])
            return graph.add("Gather", [value, rows], shape, axis=axis)
    raise unsupported(eqn, f"dimension_numbers {numbers}")


def dimension(graph: Graph, eqn: Any) -> Value:
    """A dimension of an input as a number."""
    return cast(graph, eqn, graph.reshape(graph.sizes([eqn.params["dim"]]), ()))


def concatenate(graph: Graph, eqn: Any, *inputs: Value) -> Value:
    """Arrays one after the other along an axis."""
    values = [exact(graph, eqn, value, position) for position, value in enumerate(inputs)]
    return graph.add("Concat", values, eqn.outvars[0].aval.shape, axis=eqn.params["dimension"])


def pad(graph: Graph, eqn: Any, value: Value, filler: Value) -> Value:
    """More rows at both ends of axes."""
    config = eqn.params["padding_config"]
    if any(low < 0 or high < 0 or interior for low, high, interior in config):
        raise unsupported(eqn, f"padding_config {config}, which is negative or inside")
    pads = np.array([[low, high] for low, high, _ in config], np.int64).T.ravel()
    return graph.add("Pad", [exact(graph, eqn, value), pads, filler], eqn.outvars[0].aval.shape)


def dot_general(graph: Graph, eqn: Any, left: Value, right: Value) -> Value:
    """A product of matrices, or a sum over axes of two tensors."""
    (left_axes, right_axes), (left_batch, right_batch) = eqn.params["dimension_numbers"]
    left, right = exact(graph, eqn, left, 0), exact(graph, eqn, right, 1)
    shape = eqn.outvars[0].aval.shape
    if len(right.shape) == 2 and not left_batch and list(left_axes) == [len(left.shape) - 1]:
        matrix = graph.transpose(right, (1, 0)) if right_axes[0] == 1 else right
        product = graph.add("MatMul", [left, matrix], shape)
    else:
        letters = iter("abcdefghijklmnopqrstuvwxyz")
        left_letters, right_letters = [""] * len(left.shape), [""] * len(right.shape)
        for i, j in [*zip(left_batch, right_batch, strict=True), *zip(left_axes, right_axes, strict=True)]:
            left_letters[i] = right_letters[j] = next(letters)
        batch = [left_letters[i] for i in left_batch]
        left_letters = [letter or next(letters) for letter in left_letters]
        right_letters = [letter or next(letters) for letter in right_letters]
        free = [letter for letter in left_letters if letter not in right_letters]
        free += [letter for letter in right_letters if letter not in left_letters]
        equation = f"{''.join(left_letters)},{''.join(right_letters)}->{''.join(batch + free)}"
        product = graph.add("Einsum", [left, right], shape, equation=equation)
    return product if eqn.outvars[0].aval.dtype == eqn.invars[0].aval.dtype else cast(graph, eqn, product)


def unsupported(eqn: Any, what: str) -> ValueError:
    """The error for a primitive that is known, with parameters that are not."""
    return ValueError(f"function has the primitive {eqn.primitive.name} with {what}, which to_onnx cannot convert.")


CONVERTERS: Mapping[str, Converter] = MappingProxyType(
    {
        "abs": elementwise("Abs"),
        "add": elementwise("Add"),
        "and": elementwise("And"),
        "argmax": arg_reduction("ArgMax"),
        "argmin": arg_reduction("ArgMin"),
        "broadcast_in_dim": broadcast,
        "ceil": elementwise("Ceil"),
        "clamp": clamp,
        "concatenate": concatenate,
        "conv_general_dilated": convolution,
        "convert_element_type": cast,
        "copy": chain(),
        "dim_as_value": dimension,
        "div": elementwise("Div"),
        "dot_general": dot_general,
        "eq": elementwise("Equal"),
        "erf": elementwise("Erf"),
        "exp": elementwise("Exp"),
        "expand_dims": reshape,
        "floor": elementwise("Floor"),
        "gather": gather,
        "ge": elementwise("GreaterOrEqual"),
        "gt": elementwise("Greater"),
        "integer_pow": integer_power,
        "le": elementwise("LessOrEqual"),
        "log": elementwise("Log"),
        "logistic": elementwise("Sigmoid"),
        "lt": elementwise("Less"),
        "max": elementwise("Max"),
        "min": elementwise("Min"),
        "mul": elementwise("Mul"),
        "ne": not_equal,
        "neg": elementwise("Neg"),
        "not": elementwise("Not"),
        "or": elementwise("Or"),
        "pad": pad,
        "pow": elementwise("Pow"),
        "reduce_max": reduction("ReduceMax"),
        "reduce_min": reduction("ReduceMin"),
        "reduce_prod": reduction("ReduceProd"),
        "reduce_sum": reduction("ReduceSum"),
        "reduce_window_max": max_pooling,
        "reduce_window_sum": sum_pooling,
        "rem": remainder,
        "reshape": reshape,
        "rsqrt": chain("Sqrt", "Reciprocal"),
        "select_n": select,
        "sign": elementwise("Sign"),
        "slice": slice_,
        "sqrt": elementwise("Sqrt"),
        "square": square,
        "squeeze": reshape,
        "stop_gradient": chain(),
        "sub": elementwise("Sub"),
        "tanh": elementwise("Tanh"),
        "transpose": transpose,
    }
)
