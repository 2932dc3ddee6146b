"""LOTION: the loss smoothed by randomized rounding, to second order."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fobt
from experiments.methods.method import Hyperparameters, Method
from experiments.methods.registry import register


@register("LOTION", tuned={"LOTION": {"strength": 1e3}})
def lotion(hyper: Hyperparameters, quantizer: fobt.Quantizer, *, strength: float = 1e3) -> Method:
    """Adam on the `smoothed` loss: gradients at the latents, and evaluation at the loss-aware projection.

    The networks here have batch normalisation, whose running averages then belong to the latents;
    `--reestimate-batch-stats` takes them at the weights that are evaluated.
    """
    adam = hyper.bounded_adam(quantizer)
    optimizer = smoothed(adam, quantizer, hyper.b2, strength)
    return Method(optimizer, quantizer, lookahead=lambda params, state: params)


class SmoothedState(NamedTuple):
    """State of `smoothed`.

    Attributes:
        inner: State of the optimizer.
        fisher: Moving average of squared gradients of the loss.
        steps: Number of updates, int32.
    """

    inner: Any
    fisher: Any
    steps: jax.Array


def smoothed(
    optimizer: optax.GradientTransformation, quantizer: Any, decay: Any, strength: float
) -> optax.GradientTransformationExtraArgs:
    """The optimizer, fed with gradients of the loss at the latents and of the regularizer λ/2 Σ g σ².

    σ² = s² D (1 - D) is the variance of rounding w to the level below or above it with probabilities that keep the
    mean: s is the distance of the two levels, D that of w from the lower one in units of s. Scales and g are constants
    in the gradient λ/2 g s (1 - 2D). g is the second moment of the gradients of the loss, bias-corrected as in Adam. It
    is kept beside that of the optimizer, which sees the regularizer too: with that one in its place, a strong
    regularizer would feed on itself.

    Levels and scale are those of the projection, so that the regularizer vanishes at the weights that are evaluated.
    The publication takes the largest |w| for the scale, so that every weight is between two levels; here a weight
    beyond the outermost level has no regularizer. λ = 1 belongs to the Hessian in the place of g. The second moment of
    gradients of minibatches is about as many times smaller than that of single examples as a minibatch has examples,
    and so λ is an option.

    Args:
        optimizer: Keeps a second moment `nu`.
        quantizer: Gives codes and scales, one a tensor or one a sign, from parameters and state.
        decay: Of the average g, a number that may be traced.
        strength: λ.

    References:
        Kwun, Morwani, Su, Gil, Anand, Kakade, LOTION: Smoothing the Optimization Landscape for Quantized Training,
        2025, arXiv:2510.08757.
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def init(params: Any) -> SmoothedState:
        return SmoothedState(optimizer.init(params), optax.tree.zeros_like(params), jnp.zeros((), jnp.int32))

    def update(grads: Any, state: SmoothedState, params: Any = None, **extra_args: Any) -> tuple[Any, SmoothedState]:
        steps = state.steps + 1
        fisher = optax.tree.update_moment_per_elem_norm(grads, state.fisher, decay, 2)
        quantized = fobt.quantize(params, state.inner, quantizer)
        grads = jax.tree.map(
            lambda w, g, second, leaf: g + strength * regularizer_gradient(w, second, leaf),
            params,
            grads,
            optax.tree.bias_correction(fisher, decay, steps),
            quantized,
        )
        updates, inner = optimizer.update(grads, state.inner, params, **extra_args)
        return updates, SmoothedState(inner, fisher, steps)

    return optax.GradientTransformationExtraArgs(init, update)


def regularizer_gradient(weights: jax.Array, second: jax.Array, quantized: Any) -> jax.Array:
    """1/2 g s (1 - 2D), the gradient of 1/2 g s² D (1 - D); 0 for weights that are not quantized.

    Example:
        >>> quantized = fobt.binary()(jnp.array([[1.0, -1.0]]))  # levels -1 and 1
        >>> regularizer_gradient(jnp.array([[0.25, -0.5, 1.5]]), 2.0, quantized)
        Array([[-0.5,  1. ,  0. ]], dtype=float32)
    """
    if not isinstance(quantized, fobt.Quantized):
        return jnp.zeros_like(weights)
    positive = quantized.grid.positive_levels.astype(weights.dtype)
    zero = np.zeros(0 if quantized.grid.spacing == "binary" else 1, weights.dtype)
    scale = quantized.scale.reshape(-1)  # with two scales that of positive weights is first
    levels = jnp.concatenate([-scale[-1] * positive[::-1], zero, scale[0] * positive])
    above = jnp.clip(jnp.searchsorted(levels, weights), 1, len(levels) - 1)
    lower, upper = levels[above - 1], levels[above]
    between = (lower <= weights) & (weights <= upper)
    return jnp.where(between, second * (lower + upper - 2 * weights) / 2, 0)
