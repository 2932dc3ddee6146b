"""Primitives that combine many numbers, as ONNX operators: reductions, products, sums along an axis, sorting."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
import numpy as np

from fobt._src.export.onnx.elementwise import Converter, elementwise, number_like
from fobt._src.export.onnx.graph import Constant, Graph, Value
from fobt._src.export.onnx.shapes import exact, padded, window
from fobt._src.export.onnx.types import Unsupported, carrier
from fobt._src.export.weights import Weights


def reduction(op: str) -> Converter:
    """The operator of that name over the axes of the equation."""

    def convert(graph: Graph, eqn: Any, value: Value) -> Value:
        axes = np.array(eqn.params["axes"], np.int64)
        value = exact(graph, eqn, value)
        if not axes.size:  # to ONNX, no axes are all axes
            return value
        return graph.compute(op, [value], eqn.outvars[0].aval.shape, [axes], keepdims=0)

    return convert


def reduce_sum(graph: Graph, eqn: Any, value: Value) -> Value:
    """A sum; of integers in int64, because onnxruntime adds up doubles, and sums do not wrap around before they end."""
    dtype = value.dtype
    wide = graph.cast(value, np.int64) if jnp.issubdtype(dtype, jnp.integer) and dtype.itemsize <= 4 else value
    return graph.cast(reduction("ReduceSum")(graph, eqn, wide), dtype)


def reduce_prod(graph: Graph, eqn: Any, value: Value) -> Value:
    """A product; of integers by multiplications, which wrap around, while onnxruntime's multiplies doubles."""
    if not jnp.issubdtype(value.dtype, jnp.integer):
        return reduction("ReduceProd")(graph, eqn, value)
    value = exact(graph, eqn, value)
    for axis in eqn.params["axes"]:
        if not isinstance(value.shape[axis], int):
            raise Unsupported(f"of {value.dtype} along a dimension of size {value.shape[axis]}, which is no integer")
        while value.shape[axis] != 1:
            value = _halved(graph, eqn, value, axis)
    return graph.reshape(value, eqn.outvars[0].aval.shape)


def _halved(graph: Graph, eqn: Any, value: Value, axis: int) -> Value:
    """An axis of half the size, with the products of its numbers and those half an axis further; 1 where none are."""
    half = -(-value.shape[axis] // 2)
    shape = [half if i == axis else size for i, size in enumerate(value.shape)]
    one = number_like(value, 1)
    if half == 0:
        return graph.expand(graph.reshape(one, [1] * len(shape)), [1 if i == axis else s for i, s in enumerate(shape)])
    if value.shape[axis] % 2:
        value = padded(graph, value, [(0, int(i == axis)) for i in range(len(shape))], one)
    starts = [half if i == axis else 0 for i in range(len(shape))]
    ends = [2 * half if i == axis else size for i, size in enumerate(value.shape)]
    first = window(graph, value, [0] * len(shape), shape, shape)
    return elementwise("Mul")(graph, eqn, first, window(graph, value, starts, ends, shape))


def reduction_of_bools(op: str) -> Converter:
    """The reduction of that name, of bools only: of integers these are of bits."""

    def convert(graph: Graph, eqn: Any, value: Value) -> Value:
        if value.dtype != bool:
            raise Unsupported(f"of {value.dtype}")
        return reduction(op)(graph, eqn, value)

    return convert


def arg_reduction(op: str) -> Converter:
    """The index of an extremum, the first one, along an axis."""

    def convert(graph: Graph, eqn: Any, value: Value) -> Value:
        (axis,) = eqn.params["axes"]
        wide = graph.cast(exact(graph, eqn, value), carrier(op, value.dtype))
        found = graph.add(op, [wide], eqn.outvars[0].aval.shape, np.int64, axis=int(axis), keepdims=0)
        return graph.cast(found, eqn.outvars[0].aval.dtype)

    return convert


def cumulative_sum(graph: Graph, eqn: Any, value: Value) -> Value:
    """Sums of all numbers up to each one along an axis, or from each one on."""
    axis = Constant(np.array(eqn.params["axis"], np.int64))
    value = exact(graph, eqn, value)
    return graph.compute("CumSum", [value], value.shape, [axis], reverse=int(eqn.params["reverse"]))


def sort(graph: Graph, eqn: Any, *inputs: Value) -> list[Value]:
    """Numbers in ascending order along an axis, equal ones in the order that they have, and others along with them."""
    axis = eqn.params["dimension"]
    if eqn.params["num_keys"] != 1:
        raise Unsupported(f"by {eqn.params['num_keys']} keys")
    keys, *others = (exact(graph, eqn, value, position) for position, value in enumerate(inputs))
    ordered, indices = _largest(graph, keys, axis, graph.sizes([keys.shape[axis]]), keys.shape, largest=0)
    return [ordered, *(graph.add("GatherElements", [value, indices], value.shape, axis=axis) for value in others)]


def top_k(graph: Graph, eqn: Any, value: Value) -> list[Value]:
    """The largest numbers along an axis, in descending order, and their indices."""
    k, axis, shape = eqn.params["k"], eqn.params["axis"], eqn.outvars[0].aval.shape
    values, indices = _largest(graph, exact(graph, eqn, value), axis, Constant(np.array([k], np.int64)), shape)
    return [values, graph.cast(indices, eqn.outvars[1].aval.dtype)]


def _largest(
    graph: Graph, value: Value, axis: int, count: Value, shape: Any, *, largest: int = 1
) -> tuple[Value, Value]:
    wide = graph.cast(value, carrier("TopK", value.dtype))
    # Of equal numbers ONNX takes the first one first.
    values, indices = graph.add_many(
        "TopK", [wide, count], [shape, shape], [wide.dtype, np.int64], axis=int(axis), largest=largest
    )
    return graph.cast(values, value.dtype), indices


def dot_general(graph: Graph, eqn: Any, left: Value, right: Value) -> Value:
    """A product of matrices, or a sum over axes of two tensors."""
    (left_axes, right_axes), (left_batch, right_batch) = eqn.params["dimension_numbers"]
    left, right = exact(graph, eqn, left, 0), exact(graph, eqn, right, 1)
    out = eqn.outvars[0].aval
    if not left.shape or not right.shape:
        # Products are summed up in the dtype of the output where that is the wider one.
        return elementwise("Mul")(graph, eqn, *(graph.cast(value, out.dtype) for value in (left, right)))
    if left_axes and not left_batch:
        if _is_stored(right) or (len(right.shape) == 2 and list(left_axes) == [len(left.shape) - 1]):
            return _product_with_matrix(graph, left, right, left_axes, right_axes, out.dtype)
        if _is_stored(left):
            product = _product_with_matrix(graph, right, left, right_axes, left_axes, out.dtype)
            first = len(right.shape) - len(right_axes)  # the axes of the right one
            return graph.transpose(product, [*range(first, len(out.shape)), *range(first)])
    left, right = graph.cast(left, out.dtype), graph.cast(right, out.dtype)
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
    return graph.compute("Einsum", [left, right], out.shape, equation=equation)


def _is_stored(value: Value) -> bool:
    """Whether it is of sizes that are known, and rearranged when the graph is made, or when it is loaded."""
    return isinstance(value, Constant | Weights)


def _product_with_matrix(
    graph: Graph, left: Value, right: Value, left_axes: Sequence[int], right_axes: Sequence[int], dtype: Any
) -> Value:
    """The sum over axes of two tensors, the right one as a matrix: the free axes of the left one, then of the right."""
    left_free = [axis for axis in range(len(left.shape)) if axis not in left_axes]
    right_free = [axis for axis in range(len(right.shape)) if axis not in right_axes]
    inputs, outputs = (math.prod(right.shape[axis] for axis in axes) for axes in (right_axes, right_free))
    batch, columns = [left.shape[axis] for axis in left_free], [right.shape[axis] for axis in right_free]
    left = graph.transpose(left, [*left_free, *left_axes])
    product = None
    if isinstance(right, Weights) and np.dtype(dtype) == left.dtype:
        rows = graph.reshape(left, [*(batch or [1]), inputs])
        product = graph.form.product(graph, rows, right, (right_axes, right_free))
    if product is None:
        rows = graph.reshape(left, [*batch, inputs])
        matrix = graph.reshape(graph.transpose(right, [*right_axes, *right_free]), [inputs, outputs])
        # Products are summed up in the dtype of the output where that is the wider one.
        shape = [*batch, outputs]
        return graph.reshape(
            graph.compute("MatMul", [graph.cast(rows, dtype), graph.cast(matrix, dtype)], shape), [*batch, *columns]
        )
    return graph.reshape(product, [*batch, *columns])


REDUCTIONS: Mapping[str, Converter] = MappingProxyType(
    {
        "argmax": arg_reduction("ArgMax"),
        "argmin": arg_reduction("ArgMin"),
        "cumsum": cumulative_sum,
        "dot_general": dot_general,
        "reduce_and": reduction_of_bools("ReduceMin"),
        "reduce_max": reduction("ReduceMax"),
        "reduce_min": reduction("ReduceMin"),
        "reduce_or": reduction_of_bools("ReduceMax"),
        "reduce_prod": reduce_prod,
        "reduce_sum": reduce_sum,
        "sort": sort,
        "top_k": top_k,
    }
)
