"""What a quantizer chooses for each leaf of a tree, before anything is trained."""

from __future__ import annotations

import jax
import optax

from fobt._src.packed.size_report import SizeReport, size_report
from fobt._src.trees.leaves import TreeQuantizer
from fobt._src.trees.params import quantize


def choices(quantizer: TreeQuantizer, params: optax.Params) -> SizeReport:
    """Which leaves a quantizer quantizes, to which grid, which weights share a scale, and the bytes that result.

    It is the `fobt.packed.size_report` of the weights that training ends with. Nothing is computed.

    Args:
      quantizer: what is quantized and how.
      params: full-precision weights, or their shapes as `jax.eval_shape` gives them.

    Returns:
      The choices; printed they are a table.

    Raises:
      ValueError: as for `fobt.quantize`.

    Example:
      >>> import fobt
      >>> import jax.numpy as jnp
      >>> params = {"kernel": jnp.ones((32, 10)), "bias": jnp.zeros(10)}
      >>> print(fobt.choices(fobt.linear(4, granularity=fobt.per_channel()), params))
      path       shape  stored as       scale for  scales  bytes  bits/weight  times smaller than float32
      bias          10  float32                               40       32.000                       1.000
      kernel     32×10  linear, 4 bits  axis 1         10    200        5.000                       6.400
      quantized    320                                 10    200        5.000                       6.400
      total        330                                 10    240        5.818                       5.500
    """
    return size_report(jax.eval_shape(lambda params: quantize(params, None, quantizer), params))
