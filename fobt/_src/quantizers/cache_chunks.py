"""Groups of weights projected in chunks that the caches of a CPU hold.

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
_CHUNK = 2**16
# The least length of the last axis of a chunk: a line of a cache.
_LANES = 16


def fits_loops(x: jax.Array) -> bool:
    """Whether loops may cut an array: where all of it lies on one device, and 32 bits count its weights."""
    return jax.device_count() == 1 and x.size < 2**31 and not jax.typeof(x).sharding.mesh.explicit_axes


def project_in_chunks(
    project: Callable[..., Arrays], *arrays: jax.Array, axes: tuple[int, ...]
) -> Arrays:
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
    whole = arrays[0]
    for axis in sorted(axes):
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
