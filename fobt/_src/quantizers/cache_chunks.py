"""Groups of weights projected in chunks that the caches of a CPU hold.

A solver reads the weights of a group a dozen times. From memory each time takes as long as a good part of an Adam
update, from a cache hardly any. Other platforms read faster than they start loops, and where weights may be spread over
devices no loop may cut them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp

Arrays: TypeAlias = tuple[jax.Array, ...]

# Weights in a chunk: two arrays of them, in float32, are a MiB.
_CHUNK = 2**17
# Weights in a line of a cache.
_LINE = 16


def fits_loops(x: jax.Array) -> bool:
    """Whether loops may cut an array: where all of it lies on one device, and 32 bits count its weights."""
    return jax.device_count() == 1 and x.size < 2**31 and not jax.typeof(x).sharding.mesh.explicit_axes


def project_in_chunks(project: Callable[..., Arrays], *arrays: jax.Array, axes: tuple[int, ...]) -> Arrays:
    """project(*arrays, axes=axes), chunk by chunk, where groups extend over some axes, but not all.

    Args:
      project: gives codes in the shape of the arrays, and one scale or more for each group, `keepdims`.
      arrays: in grouped form.
      axes: the axes over which a group extends.
    """
    ndim = arrays[0].ndim
    kept = [axis - ndim for axis in range(ndim) if axis not in axes]
    # The last axis, whose numbers a CPU takes several at a time, must be one along which there are many groups.
    last = -1 if -1 in kept else max(kept, key=lambda axis: arrays[0].shape[axis])
    swapped = tuple({last + ndim: ndim - 1, ndim - 1: last + ndim}.get(axis, axis) for axis in axes)

    def swap(*chunk: jax.Array) -> Arrays:
        return tuple(jnp.swapaxes(x, last, -1) for x in chunk)

    return in_chunks(lambda *chunk: swap(*project(*swap(*chunk), axes=swapped)), arrays, kept)


def in_chunks(function: Callable[..., Arrays], arrays: Sequence[jax.Array], axes: Sequence[int]) -> Arrays:
    """function(*arrays), computed chunk by chunk.

    Args:
      function: its results have the rank of the arrays, and depend along each of `axes` only on what is in the same
        place.
      arrays: of one rank, the first one of full size; others may have size 1 along an axis.
      axes: negative, the axes that may be cut.
    """
    shape, lengths = arrays[0].shape, {}
    size = arrays[0].size
    for axis in sorted(axes):
        length = _CHUNK * shape[axis] // max(1, size)
        if axis == -1:  # An odd number of lines: rows would compete for the same ones if they were a power of 2 apart.
            length = (length // _LINE | 1) * _LINE
        length = max(1, length)
        if length < shape[axis]:
            lengths[axis], size = length, size // shape[axis] * length
    if not lengths:
        return function(*arrays)
    counts = {axis: -(-shape[axis] // length) for axis, length in lengths.items()}

    def starts(i: jax.Array | int) -> dict[int, jax.Array | int]:
        """Where the chunk begins; slices move the last one along an axis back so that it fits."""
        places = {}
        for axis, count in counts.items():
            places[axis] = i % count * lengths[axis]
            i = i // count
        return places

    def results(i: jax.Array | int) -> Arrays:
        chunks = list(arrays)
        for axis, start in starts(i).items():
            chunks = [
                x if x.shape[axis] == 1 else jax.lax.dynamic_slice_in_dim(x, start, lengths[axis], x.ndim + axis)
                for x in chunks
            ]
        return function(*chunks)

    def step(i: jax.Array, done: Arrays) -> Arrays:
        places = starts(i)

        def insert(whole: jax.Array, part: jax.Array) -> jax.Array:
            start = [places.get(axis - whole.ndim, 0) for axis in range(whole.ndim)]
            return jax.lax.dynamic_update_slice(whole, part, start)

        return tuple(map(insert, done, results(i)))

    def empty(part: jax.ShapeDtypeStruct) -> jax.Array:
        whole = [shape[axis] if axis in lengths else part.shape[axis] for axis in range(-part.ndim, 0)]
        return jnp.zeros(whole, part.dtype)

    return jax.lax.fori_loop(0, math.prod(counts.values()), step, tuple(map(empty, jax.eval_shape(results, 0))))
