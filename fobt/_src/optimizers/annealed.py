"""Training that goes from the latents to their projection: gradients at annealed weights, with any Optax optimizer."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fobt._src.optimizers.quantized_optimizer import QuantizedOptimizer
from fobt._src.trees.grad_fn import GradFn, is_quantized
from fobt._src.trees.leaves import TreeQuantizer, check_quantizer


class AnnealedState(NamedTuple):
    """State of `anneal`.

    Attributes:
      inner: state of the optimizer.
      steps: number of updates, int32.
      inverse_slope: ρ of the next forward pass, float32.
    """

    inner: Any
    steps: jax.Array
    inverse_slope: jax.Array


def anneal(
    optimizer: optax.GradientTransformation, quantizer: TreeQuantizer, inverse_slope: optax.Schedule
) -> optax.GradientTransformationExtraArgs:
    r"""An optimizer for training at weights that harden: PARQ with loss-aware scales.

    The forward pass runs at `fobt.annealed_params`, which go from the latents (inverse slope ρ = 1) to their projection
    (ρ = 0); the optimizer applies the gradient to the latents. From ρ = 0 on this is loss-aware training.

        weights = fobt.annealed_params(params, state, quantizer)
        loss, grads = jax.value_and_grad(loss_fn)(weights)
        updates, state = tx.update(grads, state, params)

    while `fobt.quantized_params(params, state, quantizer)` are the weights to evaluate and to ship. `fobt.Training`
    takes these steps. Let ρ reach 0 some time before the learning rate does: weights that are still soft when
    training ends have not adapted to their projection.

    Args:
      optimizer: any Optax optimizer that keeps a second moment.
      quantizer: what is quantized and how.
      inverse_slope: ρ in [0, 1] as a function of the number of updates before.

    Returns:
      A transformation with the state `AnnealedState`, two scalars more than that of `optimizer`.

    Raises:
      ValueError: at `update`, the gradients come with a `grad_fn` that `fobt.value_and_grad` has made, so that they are
        those of the quantized weights.

    Example:
      >>> import fobt, jax, optax
      >>> import jax.numpy as jnp
      >>> def loss_fn(weights, target):
      ...     return jnp.sum((weights - target) ** 2)
      >>> tx = fobt.anneal(optax.adam(0.1), fobt.binary(), optax.linear_schedule(1.0, 0.0, 24))
      >>> training = fobt.Training(tx)
      >>> step = jax.jit(training.step(loss_fn))
      >>> params, target = jnp.array([[0.3, 0.2, -0.1]]), jnp.array([[1.0, -2.0, 1.5]])
      >>> state = training.init(params)
      >>> for _ in range(30):
      ...     params, state, loss = step(params, state, target)
      >>> training.quantize(params, state).codes
      Array([[ 1, -1,  1]], dtype=int8)

    References:
      Jin, Ma, Liu, Gromov, Defazio, Xiao, PARQ: Piecewise-Affine Regularized Quantization, ICML 2025,
      arXiv:2503.15748.
    """
    check_quantizer(quantizer)
    if not callable(inverse_slope):
        raise ValueError(
            f"inverse_slope must be a function of the number of updates, such as optax.linear_schedule(1.0, 0.0, 800), "
            f"got {inverse_slope!r}."
        )
    inner_optimizer = optax.with_extra_args_support(optimizer)

    def slope(steps: jax.Array) -> jax.Array:
        return jnp.asarray(inverse_slope(steps), jnp.float32)

    def init(params: optax.Params) -> AnnealedState:
        steps = jnp.zeros((), jnp.int32)
        return AnnealedState(inner_optimizer.init(params), steps, slope(steps))

    def update(
        updates: optax.Updates,
        state: AnnealedState,
        params: optax.Params | None = None,
        *,
        grad_fn: GradFn | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, AnnealedState]:
        if is_quantized(grad_fn, params):
            raise ValueError(
                "grads must be taken at fobt.annealed_params(params, state, quantizer), got gradients at the quantized "
                "weights with the grad_fn of fobt.value_and_grad. Take grads = "
                "jax.grad(loss_fn)(fobt.annealed_params(params, state, quantizer)), then "
                "tx.update(grads, state, params) without grad_fn."
            )
        if grad_fn is not None:
            extra_args["grad_fn"] = grad_fn
        updates, inner = inner_optimizer.update(updates, state.inner, params, **extra_args)
        steps = optax.safe_increment(state.steps)
        return updates, AnnealedState(inner, steps, slope(steps))

    return QuantizedOptimizer(init, update, quantizer, gradients_at="annealed")
