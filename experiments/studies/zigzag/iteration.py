"""The updates of the library, iterated on problems of one parameter array."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import fobt


def known_curvature(curvature_of_grads: Callable[[jax.Array], jax.Array]) -> fobt.Preconditioner:
    """Plain gradients as direction, and a curvature that is a known function of them, instead of Adam's moments.

    Args:
        curvature_of_grads: From gradients to curvature.

    Returns:
        A preconditioner for params that are one array. Its state is Adam's without a first moment: `count`, and in `nu`
        the square of the curvature.

    Example:
        >>> constant = gradient_descent()
        >>> direction, curvature, state = constant.update(jnp.array([3.0]), constant.init(jnp.ones(1)))
        >>> direction, curvature, state.count
        (Array([3.], dtype=float32), Array([1.], dtype=float32), Array(1, dtype=int32))
    """

    def update(grads: Any, state: Any) -> tuple[Any, Any, optax.ScaleByAdamState]:
        curvature = curvature_of_grads(grads)
        return grads, curvature, optax.ScaleByAdamState(state.count + 1, (), curvature**2)

    return fobt.Preconditioner(
        init=lambda params: optax.ScaleByAdamState(jnp.zeros((), jnp.int32), (), jnp.ones_like(params)),
        update=update,
        with_curvature=lambda state, curvature: (curvature, state._replace(nu=curvature**2)),
    )


def gradient_descent() -> fobt.Preconditioner:
    """Plain gradient steps: curvature 1."""
    return known_curvature(jnp.ones_like)


class Trajectory(NamedTuple):
    """What a run passes through; the leading axis of every array counts the steps.

    Attributes:
        latents: The full-precision weights before each step.
        quantized: The quantized ones, as codes and scales; the latents again where nothing is quantized.
        losses: The loss of the quantized weights.
    """

    latents: jax.Array
    quantized: Any
    losses: jax.Array

    @property
    def weights(self) -> jax.Array:
        """The quantized weights as numbers."""
        if isinstance(self.quantized, fobt.Quantized):
            return jax.vmap(fobt.Quantized.dequantize)(self.quantized)
        return self.quantized


def run(
    loss_fn: Callable[[jax.Array], jax.Array],
    start: jax.Array,
    steps: int,
    *,
    learning_rate: Any,
    a: Any,
    quantizer: Any,
    preconditioner: fobt.Preconditioner,
) -> Trajectory:
    """Minimises a loss with `fobt.forward_backtrack`, every step two-stage.

    Args:
        loss_fn: From weights to a scalar.
        start: The first latents.
        steps: How many steps.
        learning_rate: η, also traced.
        a: Backtracking coefficient, also traced; 1 is loss-aware quantization.
        quantizer: What is quantized and how.
        preconditioner: What turns gradients into direction and curvature.

    Returns:
        The trajectory.
    """
    optimizer = fobt.forward_backtrack(learning_rate, quantizer, a=a, preconditioner=preconditioner)
    loss_and_grads = fobt.value_and_grad(loss_fn, quantizer)

    def step(carry: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], Trajectory]:
        params, state = carry
        loss, grads, grad_fn = loss_and_grads(params, state)
        point = Trajectory(params, fobt.quantize(params, state, quantizer), loss)
        updates, state = optimizer.update(grads, state, params, grad_fn=grad_fn)
        return (optax.apply_updates(params, updates), state), point

    return jax.lax.scan(step, (start, optimizer.init(start)), length=steps)[1]
