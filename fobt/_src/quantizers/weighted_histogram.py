"""Weighted histograms, each platform with the formulation that is fast there."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

# The most additions to one sum: float32 loses what is less than 2⁻²⁴ of a sum.
_MOST_ADDITIONS = 2**18
# On a GPU: the most copies, which together have at most a sixteenth of the size of the tensor.
_COPIES, _WEIGHTS_PER_BIN = 128, 16
_RUN = 1024  # Neighbouring weights that add to the same copy.
_LANES = 128  # On a TPU: bins that are compared at a time.


def weighted_histogram(index: jax.Array, x: jax.Array, bins: int) -> jax.Array:
    """For each bin the sum of x where `index` is that bin.

    Args:
      index: int32, of any shape, from 0 to bins - 1, or `bins` for what is in no bin.
      x: what is summed, in that shape.
      bins: number of bins.

    Returns:
      The sums, shape (bins,). On GPUs they are not added in the same order every time.
    """
    to_copies = partial(by_scatter_to_copies, bins=bins)
    return jax.lax.platform_dependent(
        index,
        x,
        tpu=partial(by_comparing, bins=bins),
        cuda=to_copies,
        rocm=to_copies,
        default=partial(by_scatter, bins=bins),
    )


def by_scatter(index: jax.Array, x: jax.Array, bins: int) -> jax.Array:
    """By additions, one after another: for CPUs."""
    return _scatter(index, x, bins, -(-x.size // _MOST_ADDITIONS))


def by_scatter_to_copies(index: jax.Array, x: jax.Array, bins: int) -> jax.Array:
    """By additions to more copies: for GPUs, where atomic adds to one bin serialise."""
    copies = min(_COPIES, x.size // (_WEIGHTS_PER_BIN * bins))
    return _scatter(index, x, bins, max(copies, -(-x.size // _MOST_ADDITIONS)))


def copy_of_each(shape: tuple[int, ...], copies: int) -> jax.Array:
    """For each weight of a tensor the copy to which it is added: the next one after every run of neighbours, uint32."""
    # The place of a weight in the tensor, modulo 2³²; a reshape would move the tensor between devices.
    strides = [np.uint32(math.prod(shape[axis + 1 :]) % 2**32) for axis in range(len(shape))]
    iotas = [jax.lax.broadcasted_iota(jnp.uint32, shape, axis) for axis in range(len(shape))]
    place = sum(
        (iota * stride for iota, stride in zip(iotas, strides, strict=True)), start=jnp.zeros(shape, jnp.uint32)
    )
    return place // np.uint32(_RUN) % np.uint32(copies)


def _scatter(index: jax.Array, x: jax.Array, bins: int, copies: int) -> jax.Array:
    """The sums by additions to so many copies of the histogram."""
    copies = max(1, copies)
    if copies > 1:
        of_copy = copy_of_each(x.shape, copies).astype(index.dtype) * bins + index
        index = jnp.where(index < bins, of_copy, copies * bins)
    # No reshape: under sharding only histograms then travel, never the tensor. Explicit axes want to be told so.
    mesh = jax.typeof(x).sharding.mesh
    out_sharding = NamedSharding(mesh, PartitionSpec(None)) if mesh.explicit_axes else None
    sums = jnp.zeros(copies * bins, x.dtype).at[index].add(x, mode="drop", out_sharding=out_sharding)
    return jnp.sum(sums.reshape(-1, bins), 0) if copies > 1 else sums


def by_comparing(index: jax.Array, x: jax.Array, bins: int) -> jax.Array:
    """By comparisons with some bins at a time: for TPUs, which can only add one after another."""

    def sums_of(some_bins: jax.Array) -> jax.Array:
        is_inside = index[..., None] == jnp.expand_dims(some_bins, range(x.ndim))
        return jnp.sum(jnp.where(is_inside, x[..., None], 0), range(x.ndim))

    return jax.lax.map(sums_of, jnp.arange(bins, dtype=index.dtype).reshape(-1, math.gcd(bins, _LANES))).reshape(bins)
