"""Weighted histograms, each platform with the formulation that is fast there."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

# On a GPU: the most copies, which together have at most a sixteenth of the size of the tensor, and neighbouring weights
# that add to the same one.
_COPIES, _WEIGHTS_PER_BIN, _RUN = 128, 16, 1024
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
    # No reshape: under sharding only histograms then travel, never the tensor. Explicit axes want to be told so.
    mesh = jax.typeof(x).sharding.mesh
    out_sharding = NamedSharding(mesh, PartitionSpec(None)) if mesh.explicit_axes else None
    return jnp.zeros(bins, x.dtype).at[index].add(x, mode="drop", out_sharding=out_sharding)


def by_scatter_to_copies(index: jax.Array, x: jax.Array, bins: int) -> jax.Array:
    """By additions to copies, one per run of neighbours: for GPUs, where additions to one bin wait for each other."""
    copies = min(_COPIES, x.size // (_WEIGHTS_PER_BIN * bins))
    if copies <= 1:
        return by_scatter(index, x, bins)
    # The place of a weight in the tensor, modulo 2³²; a reshape would move the tensor between devices.
    strides = [np.uint32(math.prod(x.shape[axis + 1 :]) % 2**32) for axis in range(x.ndim)]
    iotas = [jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) for axis in range(x.ndim)]
    place = sum((iota * stride for iota, stride in zip(iotas, strides, strict=True)), start=jnp.uint32(0))
    copy = (place // _RUN % copies).astype(index.dtype)
    index = jnp.where(index < bins, copy * bins + index, copies * bins)
    return jnp.sum(by_scatter(index, x, copies * bins).reshape(copies, bins), 0)


def by_comparing(index: jax.Array, x: jax.Array, bins: int) -> jax.Array:
    """By comparisons with some bins at a time: for TPUs, which can only add one after another."""

    def sums_of(some_bins: jax.Array) -> jax.Array:
        is_inside = index[..., None] == jnp.expand_dims(some_bins, range(x.ndim))
        return jnp.sum(jnp.where(is_inside, x[..., None], 0), range(x.ndim))

    return jax.lax.map(sums_of, jnp.arange(bins).reshape(-1, math.gcd(bins, _LANES))).reshape(bins)
