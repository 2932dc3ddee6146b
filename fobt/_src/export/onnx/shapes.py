"""Primitives that move numbers and do not change them, as ONNX operators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from fobt._src.export.onnx.elementwise import Converter, elementwise, number_like
from fobt._src.export.onnx.graph import Constant, Graph, Value
from fobt._src.export.onnx.types import Unsupported, carrier


def exact(graph: Graph, eqn: Any, value: Value, position: int = 0) -> Value:
    """The value in the shape that the equation sees."""
    return graph.expand(value, eqn.invars[position].aval.shape)


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


def reverse(graph: Graph, eqn: Any, value: Value) -> Value:
    """Axes backwards."""
    return graph.reverse(exact(graph, eqn, value), eqn.params["dimensions"])


def window(
    graph: Graph,
    value: Value,
    starts: Sequence[Any],
    ends: Sequence[Any],
    shape: Sequence[Any],
    strides: Sequence[int] | None = None,
) -> Value:
    """A part of a value; an axis that is taken as a whole may have any size."""
    bounds = list(zip(starts, ends, strides or (1,) * len(starts), strict=True))
    axes = [axis for axis, size in enumerate(value.shape) if bounds[axis] != (0, size, 1)]
    if not axes:
        return value
    columns = [[bounds[axis][i] for axis in axes] for i in range(3)]
    if not all(isinstance(number, int | np.integer) for column in columns for number in column):
        raise Unsupported(f"with bounds {bounds} that are no integers")
    first, last, steps = (np.array(column, np.int64) for column in columns)
    return graph.add("Slice", [value, first, last, np.array(axes, np.int64), steps], shape)


def slice_(graph: Graph, eqn: Any, value: Value) -> Value:
    """A part."""
    params, shape = eqn.params, eqn.outvars[0].aval.shape
    value = exact(graph, eqn, value)
    return window(graph, value, params["start_indices"], params["limit_indices"], shape, params["strides"])


def split(graph: Graph, eqn: Any, value: Value) -> list[Value]:
    """Neighbouring parts along an axis."""
    value, axis = exact(graph, eqn, value), eqn.params["axis"]
    parts, begin = [], 0
    for size, var in zip(eqn.params["sizes"], eqn.outvars, strict=True):
        starts, ends = [0] * len(value.shape), list(value.shape)
        starts[axis], ends[axis] = begin, begin + int(size)
        parts.append(window(graph, value, starts, ends, var.aval.shape))
        begin += int(size)
    return parts


def unstack(graph: Graph, eqn: Any, value: Value) -> list[Value]:
    """The parts of size 1 along an axis, without the axis."""
    value, axis = exact(graph, eqn, value), eqn.params["axis"]
    parts: list[Value] = []
    for i, var in enumerate(eqn.outvars):
        index = Constant(np.array(i, np.int64))
        parts.append(graph.add("Gather", [value, index], var.aval.shape, axis=axis))
    return parts


def dynamic_slice(graph: Graph, eqn: Any, value: Value, *starts: Value) -> Value:
    """A part whose place the graph computes; it is moved where it would reach beyond the value."""
    sizes = eqn.params["slice_sizes"]
    value = exact(graph, eqn, value)
    if not all(isinstance(size, int) for size in (*value.shape, *sizes)):
        raise Unsupported("with dimensions that are no integers")
    begins = []
    for start, size, length in zip(starts, sizes, value.shape, strict=True):
        wide = graph.reshape(graph.cast(start, np.int64), (1,))
        begins.append(_bounded(graph, eqn, wide, length - size))
    begin = graph.add("Concat", begins, (len(begins),), axis=0) if begins else Constant(np.zeros(0, np.int64))
    end = elementwise("Add")(graph, eqn, begin, Constant(np.array(sizes, np.int64)))
    return graph.add("Slice", [value, begin, end, np.arange(len(sizes))], sizes) if begins else value


def _bounded(graph: Graph, eqn: Any, index: Value, highest: Any) -> Value:
    """An index of at least 0 and at most `highest`."""
    above = elementwise("Max")(graph, eqn, index, number_like(index, 0))
    return elementwise("Min")(graph, eqn, above, number_like(index, highest))


def gather(graph: Graph, eqn: Any, value: Value, indices: Value) -> Value:
    """A window at a known place, rows along one axis, single numbers, or numbers along an axis.

    JAX slices an array with symbolic dimensions, and looks up embeddings, with this primitive. Indices out of range are
    the runtime's affair, unless they are to be clipped.
    """
    numbers, sizes, shape = eqn.params["dimension_numbers"], eqn.params["slice_sizes"], eqn.outvars[0].aval.shape
    value, axes = exact(graph, eqn, value), numbers.start_index_map
    indices = exact(graph, eqn, indices, 1)
    if isinstance(indices, Constant) and indices.array.ndim == 1 and not numbers.operand_batching_dims:
        starts, ends = [0] * len(sizes), list(value.shape)
        for axis, start in zip(axes, indices.array.tolist(), strict=True):
            starts[axis], ends[axis] = start, start + sizes[axis]
            if start < 0 or (isinstance(value.shape[axis], int) and ends[axis] > value.shape[axis]):
                raise Unsupported(f"with the index {start} along a dimension of size {value.shape[axis]}")
        others_whole = all(axis in axes or size == value.shape[axis] for axis, size in enumerate(sizes))
        if others_whole and all(isinstance(sizes[axis], int) for axis in axes):
            return graph.reshape(window(graph, value, starts, ends, sizes), shape)
    if eqn.params["mode"] == jax.lax.GatherScatterMode.CLIP:
        highest = [value.shape[axis] - sizes[axis] for axis in axes]
        if not all(isinstance(number, int) for number in highest):
            raise Unsupported("that clips indices along a dimension that is no integer")
        bound = Constant(np.array(highest, indices.dtype).reshape((1,) * (len(indices.shape) - 1) + (-1,)))
        indices = elementwise("Max")(graph, eqn, indices, number_like(indices, 0))
        indices = elementwise("Min")(graph, eqn, indices, bound)
    batch = eqn.invars[1].aval.shape[:-1]
    wide = graph.cast(indices, np.int64)
    if numbers.collapsed_slice_dims == axes and not numbers.operand_batching_dims:
        others = [axis for axis in range(len(sizes)) if axis not in axes]
        if all(sizes[axis] == value.shape[axis] for axis in others):
            if len(axes) == 1 and numbers.offset_dims == tuple(_places(len(shape), axes[0], len(batch))):
                return graph.add("Gather", [value, graph.reshape(wide, batch)], shape, axis=axes[0])
            if axes == tuple(range(len(axes))) and numbers.offset_dims == tuple(range(len(batch), len(shape))):
                return graph.add("GatherND", [value, wide], shape)
    # One number for each index, in an array with the axes of the value: take_along_axis.
    (*others,) = numbers.operand_batching_dims
    if len(axes) == 1 and numbers.collapsed_slice_dims == axes and sorted((*others, *axes)) == list(range(len(sizes))):
        order = [i for i in range(len(batch)) if i not in numbers.start_indices_batching_dims]
        free = order[0] if len(order) == 1 else None
        expected = [*range(axes[0]), *range(axes[0] + 1, len(batch))]
        if free == axes[0] and list(numbers.start_indices_batching_dims) == expected == others:
            return graph.add("GatherElements", [value, graph.reshape(wide, batch)], shape, axis=axes[0])
    raise Unsupported(f"with dimension_numbers {numbers}")


def _places(rank: int, axis: int, count: int) -> list[int]:
    """The axes of an array of that rank, without `count` of them from `axis` on."""
    return [i for i in range(rank) if not axis <= i < axis + count]


def dimension(graph: Graph, eqn: Any) -> Value:
    """A dimension of an input as a number."""
    return graph.cast(graph.reshape(graph.sizes([eqn.params["dim"]]), ()), eqn.outvars[0].aval.dtype)


def iota(graph: Graph, eqn: Any, *sizes: Value) -> Value:
    """0, 1, 2, ... along an axis, whose size the graph computes."""
    del sizes
    shape, axis = eqn.params["shape"], eqn.params["dimension"]
    size = graph.reshape(graph.sizes([shape[axis]]), ())
    bounds = [Constant(np.array(0, np.int64)), size, Constant(np.array(1, np.int64))]
    numbers = graph.cast(graph.add("Range", bounds, (shape[axis],)), eqn.params["dtype"])
    return graph.reshape(numbers, [size if i == axis else 1 for i, size in enumerate(shape)])


def concatenate(graph: Graph, eqn: Any, *inputs: Value) -> Value:
    """Arrays one after the other along an axis."""
    values = [exact(graph, eqn, value, position) for position, value in enumerate(inputs)]
    return graph.add("Concat", values, eqn.outvars[0].aval.shape, axis=eqn.params["dimension"])


def stack(graph: Graph, eqn: Any, *inputs: Value) -> Value:
    """Arrays one after the other along a new axis."""
    axis, shape = eqn.params["axis"], eqn.outvars[0].aval.shape
    one = [1 if i == axis else size for i, size in enumerate(shape)]
    values = [graph.reshape(exact(graph, eqn, value, position), one) for position, value in enumerate(inputs)]
    return graph.add("Concat", values, shape, axis=axis)


def tile(graph: Graph, eqn: Any, value: Value) -> Value:
    """Copies beside each other."""
    shape, reps = eqn.outvars[0].aval.shape, eqn.params["reps"]
    value = graph.reshape(exact(graph, eqn, value), (1,) * (len(shape) - len(value.shape)) + tuple(value.shape))
    return graph.compute("Tile", [value], shape, [graph.sizes(reps)])


def pad(graph: Graph, eqn: Any, value: Value, filler: Value) -> Value:
    """More rows at both ends of axes or between rows; fewer where a number is negative."""
    value, config = exact(graph, eqn, value), eqn.params["padding_config"]
    for axis, (_, _, interior) in enumerate(config):
        value = _spread(graph, value, axis, interior, filler) if interior else value
    # Rows are taken away after others are added.
    value = padded(graph, value, [(max(low, 0), max(high, 0)) for low, high, _ in config], filler)
    starts = [max(-low, 0) for low, _, _ in config]
    ends = [size - max(-high, 0) for size, (_, high, _) in zip(value.shape, config, strict=True)]
    return window(graph, value, starts, ends, eqn.outvars[0].aval.shape)


def padded(graph: Graph, value: Value, pads: Sequence[tuple[int, int]], filler: Value) -> Value:
    """The value with rows of the filler at both ends of axes."""
    if not any(size for pair in pads for size in pair):
        return value
    shape = [size + low + high for size, (low, high) in zip(value.shape, pads, strict=True)]
    wide = carrier("Pad", value.dtype)
    inputs = [graph.cast(value, wide), Constant(np.array(pads, np.int64).T.ravel()), graph.cast(filler, wide)]
    return graph.cast(graph.add("Pad", inputs, shape), value.dtype)


def _spread(graph: Graph, value: Value, axis: int, interior: int, filler: Value) -> Value:
    """The value with `interior` rows of the filler between its rows along an axis."""
    shape = list(value.shape)
    size = shape[axis]
    if not isinstance(size, int):
        raise Unsupported(f"with rows between those of a dimension of size {size}, which is no integer")
    if size <= 1:
        return value
    apart = [*shape[: axis + 1], 1, *shape[axis + 1 :]]
    pads = [(0, interior if i == axis + 1 else 0) for i in range(len(apart))]
    value = padded(graph, graph.reshape(value, apart), pads, filler)
    joined = [*shape[:axis], size * (1 + interior), *shape[axis + 1 :]]
    ends = [*shape[:axis], size * (1 + interior) - interior, *shape[axis + 1 :]]
    return window(graph, graph.reshape(value, joined), [0] * len(shape), ends, ends)


SHAPES: Mapping[str, Converter] = MappingProxyType(
    {
        "broadcast_in_dim": broadcast,
        "concatenate": concatenate,
        "dim_as_value": dimension,
        "dynamic_slice": dynamic_slice,
        "expand_dims": reshape,
        "gather": gather,
        "iota": iota,
        "pad": pad,
        "reshape": reshape,
        "rev": reverse,
        "slice": slice_,
        "split": split,
        "squeeze": reshape,
        "stack": stack,
        "tile": tile,
        "transpose": transpose,
        "unstack": unstack,
    }
)
