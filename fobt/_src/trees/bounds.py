"""Bounds for the latents of quantized leaves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fobt._src.quantizers.quantizer import Quantizer
from fobt._src.trees.leaves import TreeQuantizer, check_quantizer, leaf_quantizers


def bound_weights(weight_bounds: Sequence[float], quantizer: TreeQuantizer) -> optax.GradientTransformation:
    """Keeps the latents of quantized leaves within bounds: the last link of a chain.

    For a leaf w of params that `quantizer` quantizes, an update u that would take w + u out of [low, high] is replaced
    by the one that takes it to the nearer bound. `forward_backtrack` has this as its argument `weight_bounds`.

    Args:
      weight_bounds: (low, high), low < high; the code of LAB and LAQ uses (-1, 1).
      quantizer: what is quantized.

    Returns:
      A transformation without state.

    Raises:
      ValueError: the bounds are not two increasing numbers; at update, params are missing.

    Example:
      >>> import fobt, optax
      >>> import jax.numpy as jnp
      >>> tx = optax.chain(optax.adam(0.5), fobt.bound_weights((-1.0, 1.0), fobt.binary()))
      >>> params = jnp.array([[0.9, -0.2]])
      >>> updates, _ = tx.update(jnp.array([[-1.0, -1.0]]), tx.init(params), params)
      >>> optax.apply_updates(params, updates).round(3)
      Array([[1. , 0.3]], dtype=float32)
    """
    check_bounds(weight_bounds)
    check_quantizer(quantizer)

    def update(updates: optax.Updates, state: Any, params: optax.Params | None = None) -> tuple[optax.Updates, Any]:
        if params is None:
            raise ValueError("bound_weights: params must be given: update(updates, state, params), got None.")
        return clip_updates(updates, params, weight_bounds, leaf_quantizers(quantizer, params)), state

    return optax.GradientTransformation(optax.init_empty_state, update)


def clip_updates(
    updates: optax.Updates, params: optax.Params, weight_bounds: Sequence[float], quantizers: list[Quantizer | None]
) -> optax.Updates:
    """The updates, cut where they take a quantized leaf (one that has a quantizer) out of the bounds."""
    low, high = weight_bounds

    def clip(update: jax.Array, param: jax.Array) -> jax.Array:
        moved = param + update
        return jnp.where(moved > high, high - param, jnp.where(moved < low, low - param, update)).astype(update.dtype)

    leaves, structure = jax.tree.flatten(updates)
    return jax.tree.unflatten(
        structure,
        [
            update if quantize is None else clip(update, param)
            for update, param, quantize in zip(leaves, jax.tree.leaves(params), quantizers, strict=True)
        ],
    )


def check_bounds(weight_bounds: Sequence[float]) -> None:
    """Raises a ValueError unless `weight_bounds` is a pair of increasing numbers."""
    try:
        low, high = map(float, weight_bounds)
        ordered = low < high
    except (TypeError, ValueError):
        ordered = False
    if not ordered:
        raise ValueError(f"weight_bounds must be two increasing numbers (low, high), got {weight_bounds!r}.")
