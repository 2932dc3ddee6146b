"""The clipping value that minimises the Lp norm of the quantization error."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from fobt._src.quantizers import solvers
from fobt._src.quantizers.granularity import PerTensor
from fobt._src.quantizers.quantizer import Quantizer

# Candidates per octave are as many as this many roundings of a weight pay for. Few weights make an objective with many
# local minima and are cheap, many weights a smooth one.
_ROUNDINGS_PER_OCTAVE = 2**20
_LEAST_PER_OCTAVE, _MOST_PER_OCTAVE = 8, 512
# Each zoom looks at so many steps to both sides of the best candidate, with steps that are as many times shorter.
_ZOOMS, _ZOOM = 3, 8
# Roundings in one step of the loop over candidates, where a tensor has fewer weights.
_BATCH = 2**16


@functools.partial(jax.jit, static_argnames="quantizer")
def lp_clipping_values(weights: jax.Array, quantizer: Quantizer, norm: ArrayLike) -> jax.Array:
    """The `lp_clipping_value` of the tensor or of each channel, in the shape of the scale.

    A channel of zeros, for which every value is as good, has the scale of its projection.
    """
    if isinstance(quantizer.granularity, PerTensor):
        return lp_clipping_value(weights, quantizer, norm)
    summed = quantizer.granularity.axes(weights.ndim)
    kept = [axis for axis in range(weights.ndim) if axis not in summed]
    channels = weights.transpose(*kept, *summed).reshape(math.prod(weights.shape[axis] for axis in kept), -1)
    of_one = dataclasses.replace(quantizer, granularity=PerTensor(), stacked=0)
    values = jax.vmap(lambda channel: lp_clipping_value(channel, of_one, norm))(channels)
    values = values.reshape([weights.shape[axis] if axis in kept else 1 for axis in range(weights.ndim)])
    return jnp.where(values == 0, quantizer(weights).scale, values)


@functools.partial(jax.jit, static_argnames="quantizer")
def lp_clipping_value(weights: jax.Array, quantizer: Quantizer, norm: ArrayLike) -> jax.Array:
    """The c > 0 that minimises Σᵢ |wᵢ - ŵᵢ(c)|ᵖ, where ŵ(c) is w rounded to the grid with scale c.

    It is searched for among candidates that are equally spaced in log c, whose best one is then refined. They reach
    from 2 M, with M = max|w| (with a larger c no weight takes the upper half of the levels of a grid with several, so
    that c/2 does as well), down to M/(2n) for n weights (for p = 2 a best c is at least M/√n, or M/n on the binary
    grid, where it is the mean; a larger p gives more weight to the largest error).

    Args:
      weights: w, of any shape; where all are zero, or there is none, every c is as good, and the result is 0.
      quantizer: one with one scale per tensor.
      norm: p ≥ 1.

    Returns:
      c, shape (), in the dtype of the scale.
    """
    magnitudes = jnp.abs(weights.astype(np.promote_types(weights.dtype, jnp.float32)))
    largest = jnp.max(magnitudes, initial=0)
    r = solvers.normalise(magnitudes, largest)

    def error(octave: jax.Array) -> jax.Array:
        rounded = quantizer.round_to_nearest(r, 2.0**octave).dequantize()
        errors = jnp.maximum(jnp.abs(r - rounded), jnp.finfo(r.dtype).tiny)  # log(0) is -inf
        # On CPU a power takes four times as long as exp and log.
        return jnp.sum(jnp.exp(norm * jnp.log(errors)))

    size = max(weights.size, 1)

    def best_of(candidates: jax.Array) -> jax.Array:
        errors = jax.lax.map(error, candidates, batch_size=max(1, _BATCH // size))
        return candidates[jnp.argmin(errors)]

    below = math.ceil(math.log2(size)) + 1
    per_octave = max(_LEAST_PER_OCTAVE, min(_ROUNDINGS_PER_OCTAVE // size, _MOST_PER_OCTAVE))
    best = best_of(jnp.arange(-below * per_octave, per_octave + 1).astype(r.dtype) / per_octave)
    steps = jnp.arange(-_ZOOM, _ZOOM + 1).astype(r.dtype) / per_octave
    best = jax.lax.fori_loop(1, _ZOOMS + 1, lambda zoom, best: best_of(best + steps / float(_ZOOM) ** zoom), best)
    return 2.0**best * largest
