"""Quantized weights: integer codes, scales, and how the weights follow from them."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from fobt._src.base.flax_serialization import FlaxSerializable
from fobt._src.quantizers.granularity import Granularity
from fobt._src.quantizers.grid import Grid


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quantized(FlaxSerializable):
    """Weights ŵ = α β: integer codes, which stand for levels β in [-1, 1], and scales α.

    A registered dataclass: codes and scale are its leaves, so it passes through `jax.jit`, `jax.vmap` and checkpoints.
    A quantizer makes it; the invariants below are not checked again.

    Attributes:
      codes: int8, the shape of the weights; -1 and +1 on the binary grid, otherwise -n to n with n = 2^(bits-1) - 1.
      scale: α, float32, or float64 for float64 weights: the magnitude that the largest code stands for. Its shape is
        () for one scale per tensor; for kept axes the shape of the weights with 1 on the other axes; for blocks the
        shape of the weights with the axis divided by the block size, rounded up. With two scales there is a leading
        axis of size 2: the scale of positive codes, then that of negative ones. α > 0, except that a binary group whose
        weights are all zero has α = 0. A channel into which `fold_batch_norm` has folded a gain may have α ≤ 0.
      grid: the grid, static: `spacing`, `bits`, and the levels.
      granularity: which weights share a scale, static.
      scales: 1, or 2 where positive and negative weights have a scale each, static.
      dtype: what `dequantize` returns, the dtype of the weights that were quantized, static.

    Example:
      >>> import fobt
      >>> quantized = fobt.ternary()([4.0, -5.0, 0.1])
      >>> quantized.codes, quantized.scale
      (Array([ 1, -1,  0], dtype=int8), Array(4.5, dtype=float32))
      >>> quantized.dequantize()
      Array([ 4.5, -4.5,  0. ], dtype=float32)
    """

    codes: jax.Array
    scale: jax.Array
    grid: Grid = dataclasses.field(metadata={"static": True})
    granularity: Granularity = dataclasses.field(metadata={"static": True})
    scales: int = dataclasses.field(metadata={"static": True})
    dtype: jnp.dtype = dataclasses.field(metadata={"static": True})

    @jax.jit
    def dequantize(self) -> jax.Array:
        """The weights α β, in the shape of the codes and the dtype of the weights that were quantized.

        On linear grids this is codes · (α/n), each a rounded floating-point operation in the dtype of the scale.
        """
        split, ndim = self.granularity, self.codes.ndim
        codes = split.group(self.codes.astype(self.scale.dtype))
        scale = scale_of_each(self.scale, codes, split, self.scales, ndim)
        return split.ungroup(self.grid.dequantize(codes, scale), self.codes.shape).astype(self.dtype)


def scale_of_each(scale: jax.Array, signed: jax.Array, split: Granularity, scales: int, ndim: int) -> jax.Array:
    """The stored scale, so that it broadcasts to a rank-`ndim` tensor in grouped form.

    With two scales the signs of `signed`, codes or weights in grouped form, say which one is whose.
    """
    if scales == 1:
        return split.unsqueeze(scale, ndim)
    positive, negative = (split.unsqueeze(scale[i], ndim) for i in range(2))
    return jnp.where(signed < 0, negative, positive)
