"""Groups of weights in chunks that a CPU's caches hold, and sums over their rows in its registers.

A solver reads the weights of a group a dozen times. From memory each time takes as long as a good part of an Adam
update, from a cache hardly any. Other platforms read faster than they start loops, and where weights may be spread over
devices no loop may cut them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp

Arrays: TypeAlias = tuple[jax.Array, ...]

# Weights in a chunk: two arrays of them, in float32, are a MiB.
_CHUNK = 2**17
# The least length of the last axis of a chunk: a line of a cache.
_LANES = 16
# Rows that are added before their sum goes to memory.
_ROWS = 16


def fits_loops(x: jax.Array) -> bool:
    """Whether loops may cut an array: where all of it lies on one device, and 32 bits count its weights."""
    return jax.device_count() == 1 and x.size < 2**31 and not jax.typeof(x).sharding.mesh.explicit_axes


def project_in_chunks(
    project: Callable[..., Arrays], *arrays: jax.Array, axes: tuple[int, ...]
) -> Arrays:
    """project(*arrays, axes=axes, by_rows=True), chunk by chunk, where groups extend over some axes, but not all.

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

    return in_chunks(lambda *chunk: swap(*project(*swap(*chunk), axes=swapped, by_rows=True)), arrays, kept)


def in_chunks(function: Callable[..., Arrays], arrays: Sequence[jax.Array], axes: Sequence[int]) -> Arrays:
    """function(*arrays), computed chunk by chunk.

    Args:
      function: its results have the rank of the arrays, and depend along each of `axes` only on what is in the same
        place.
      arrays: of one rank, the first one of full size; others may have size 1 along an axis.
      axes: negative, the axes that may be cut.
    """
    whole = arrays[0]
    for axis in sorted(axes, key=lambda axis: whole.shape[axis], reverse=True):
        size = whole.shape[axis]
        length = max(_LANES if axis == -1 else 1, _CHUNK * size // max(1, whole.size))
        if length < size:
            rest = [other for other in axes if other != axis]
            return _along(lambda *chunk: in_chunks(function, chunk, rest), arrays, axis, length)
    return function(*arrays)


def _along(function: Callable[..., Arrays], arrays: Sequence[jax.Array], axis: int, length: int) -> Arrays:
    """The function of chunks of a length along one axis; the last one overlaps the one before it."""
    size = arrays[0].shape[axis]

    def results(start: jax.Array | int) -> Arrays:
        return function(
            *(
                x if x.shape[axis] == 1 else jax.lax.dynamic_slice_in_dim(x, start, length, x.ndim + axis)
                for x in arrays
            )
        )

    def step(i: jax.Array, done: Arrays) -> Arrays:
        start = jnp.minimum(i * length, size - length)
        return tuple(
            jax.lax.dynamic_update_slice_in_dim(whole, part, start, whole.ndim + axis)
            for whole, part in zip(done, results(start), strict=True)
        )

    def empty(part: jax.ShapeDtypeStruct) -> jax.Array:
        shape = list(part.shape)
        shape[axis] = size
        return jnp.zeros(shape, part.dtype)

    return jax.lax.fori_loop(0, -(-size // length), step, tuple(map(empty, jax.eval_shape(results, 0))))


def sums_of_rows(terms: Callable[..., Arrays], arrays: Sequence[jax.Array], axis: int) -> Arrays:
    """The sums of terms(*arrays) over one of the axes, negative and not the last one, which keeps size 1.

    Each number is read once for all terms, and the sums go to memory once for 16 rows.
    """
    size = arrays[0].shape[axis]
    steps, rest = divmod(size, _ROWS)

    def add(start: jax.Array | int, rows: int, sums: Arrays | None) -> Arrays:
        block = [jax.lax.dynamic_slice_in_dim(x, start, rows, x.ndim + axis) for x in arrays]
        for i in range(rows):
            row = terms(*(jax.lax.slice_in_dim(x, i, i + 1, axis=x.ndim + axis) for x in block))
            sums = row if sums is None else tuple(s + x for s, x in zip(sums, row, strict=True))
        assert sums is not None
        return sums

    if not steps:
        return add(0, rest, None)
    zeros = [jnp.zeros(x.shape, x.dtype) for x in jax.eval_shape(lambda: add(0, 1, None))]
    sums = jax.lax.fori_loop(0, steps, lambda i, sums: add(i * _ROWS, _ROWS, sums), tuple(zeros))
    return add(steps * _ROWS, rest, sums) if rest else sums
