"""Weights between the latents and their projection: a piecewise-affine map that hardens during training."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from fobt._src.base.checks import check_number
from fobt._src.base.tree_paths import state_field
from fobt._src.quantizers.quantized import Quantized
from fobt._src.quantizers.quantizer import Quantizer
from fobt._src.trees.leaves import TreeQuantizer, leaf_quantizers
from fobt._src.trees.params import leaves_of_quantized, quantize


def annealed_params(
    params: optax.Params,
    state: optax.OptState | None,
    quantizer: TreeQuantizer,
    inverse_slope: ArrayLike | None = None,
) -> optax.Params:
    r"""The weights of the forward pass in piecewise-affine regularized quantization (PARQ).

    Each quantized leaf w is drawn towards the levels of its projection. Let q₁ < q₂ be the neighbouring levels, times
    the scale, between which a weight lies, c = (q₁ + q₂)/2, h = (q₂ - q₁)/2, and ρ the inverse slope. It becomes

        c + clip((w - c)/ρ, -h, h)      between two levels
        q + ρ (w - q)                   beyond the outermost level q, to either side

    which is continuous in w and does not decrease. ρ = 1 gives the latents and ρ = 0 `fobt.quantized_params`, both
    exactly. Training goes from 1 to 0: gradients are taken at these weights, any optimizer applies them to the latents,
    and the projection is what is evaluated and shipped. The inverse slope is a function of the step, such as
    `optax.cosine_decay_schedule(1.0, steps)`; the code of the authors has a sigmoid.

    The code of the authors, `ProxPARQ` of torchao, puts weights beyond the outermost level on it as soon as ρ < 1; here
    they are drawn there as ρ falls, so that training departs from plain training without a jump.

    Args:
      params: full-precision weights.
      state: as for `fobt.quantize`; the scales are those of its projection, so None gives scales without curvature.
      quantizer: what is quantized and how.
      inverse_slope: ρ in [0, 1], a scalar; a traced value beyond these counts as the nearer one. By default that of
        `state`, which then is one of `fobt.anneal`.

    Returns:
      A tree with the structure, shapes and dtypes of `params`.

    Raises:
      ValueError: `inverse_slope` is not in [0, 1], or is not given and not in `state`, or as for `fobt.quantize`.

    Example:
      >>> import fobt, jax, optax
      >>> import jax.numpy as jnp
      >>> params, quantizer = jnp.array([[1.75, -1.0, 0.25]]), fobt.binary()
      >>> fobt.annealed_params(params, None, quantizer, 0.5)  # the levels are -1 and 1
      Array([[ 1.375, -1.   ,  0.5  ]], dtype=float32)
      >>> def loss_fn(weights):
      ...     return jnp.sum((weights - jnp.array([[1.5, -2.0, 1.5]])) ** 2)
      >>> tx, inverse_slope = optax.adam(0.1), optax.cosine_decay_schedule(1.0, 30)
      >>> state = tx.init(params)
      >>> for step in range(30):
      ...     grads = jax.grad(loss_fn)(fobt.annealed_params(params, state, quantizer, inverse_slope(step)))
      ...     updates, state = tx.update(grads, state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> fobt.quantize(params, state, quantizer).codes
      Array([[ 1, -1,  1]], dtype=int8)

    References:
      Jin, Ma, Liu, Gromov, Defazio, Xiao, PARQ: Piecewise-Affine Regularized Quantization, ICML 2025,
      arXiv:2503.15748.
    """
    if inverse_slope is None:
        inverse_slope = inverse_slope_of(state)
    check_number("inverse_slope", inverse_slope, "in [0, 1]", lambda value: 0 <= value <= 1)
    leaves, structure = jax.tree.flatten(params)
    projections = leaves_of_quantized(quantize(params, state, quantizer))
    annealed = [
        leaf if leaf_quantizer is None else _anneal(leaf, projection, leaf_quantizer, inverse_slope)
        for leaf, projection, leaf_quantizer in zip(
            leaves, projections, leaf_quantizers(quantizer, params), strict=True
        )
    ]
    return jax.tree.unflatten(structure, annealed)


def inverse_slope_of(state: optax.OptState | None) -> jax.Array:
    """The inverse slope in a state of `fobt.anneal`."""
    found = state_field(state, "inverse_slope", None)
    if found is None:
        raise ValueError(
            "inverse_slope must be given where state is none of fobt.anneal, got a state of type "
            f"{type(state).__name__}: fobt.annealed_params(params, state, quantizer, inverse_slope)."
        )
    return found


def _anneal(weights: ArrayLike, projection: Quantized, quantizer: Quantizer, inverse_slope: ArrayLike) -> jax.Array:
    weights = jnp.asarray(weights)
    w = weights.astype(np.promote_types(weights.dtype, jnp.float32))
    rho = jnp.asarray(inverse_slope, w.dtype)

    def value(codes: jax.Array) -> jax.Array:
        return dataclasses.replace(projection, codes=codes, dtype=w.dtype).dequantize()

    # A projection fits its scale to its codes last, so that its code need not be that of the nearest level any more.
    codes = quantizer.round_to_nearest(weights, projection.scale).codes.astype(jnp.int32)
    level = value(codes)
    n = projection.grid.max_code
    step = 2 if projection.grid.spacing == "binary" else 1
    neighbour_codes = jnp.clip(codes + jnp.where(w > level, step, -step), -n, n)
    neighbour = value(neighbour_codes)
    centre, half = (level + neighbour) / 2, jnp.abs(level - neighbour) / 2
    between = centre + jnp.clip((w - centre) / jnp.where(rho <= 0, 1, rho), -half, half)
    annealed = jnp.where(neighbour_codes == codes, level + rho * (w - level), between).astype(weights.dtype)
    # Exactly the ends, whatever the arithmetic above rounds.
    return jnp.where(rho <= 0, projection.dequantize(), jnp.where(rho >= 1, weights, annealed))
