"""Loss-aware quantization with the dampening of oscillations: its loss beside that of the network."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import fobt


class DampenedState(NamedTuple):
    """State of `dampened`.

    Attributes:
        inner: State of the optimizer.
        steps: Number of updates, int32.
    """

    inner: Any
    steps: jax.Array


def dampened(
    optimizer: optax.GradientTransformation, quantizer: Any, weight: optax.Schedule
) -> optax.GradientTransformationExtraArgs:
    """The optimizer, fed with the gradients and λ times those of the dampening loss at the latents.

    Args:
        optimizer: Keeps a second moment `nu`.
        quantizer: Gives the quantized weights from parameters and state.
        weight: λ as a function of the minibatches seen before.
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def init(params: Any) -> DampenedState:
        return DampenedState(optimizer.init(params), jnp.zeros((), jnp.int32))

    def update(grads: Any, state: DampenedState, params: Any = None, **extra_args: Any) -> tuple[Any, DampenedState]:
        damping = jax.grad(fobt.oscillations.dampening_loss)(params, state.inner, quantizer)
        grads = jax.tree.map(lambda g, d: g + weight(state.steps) * d, grads, damping)
        updates, inner = optimizer.update(grads, state.inner, params, **extra_args)
        return updates, DampenedState(inner, state.steps + 1)

    return optax.GradientTransformationExtraArgs(init, update)
