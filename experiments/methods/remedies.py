"""Loss-aware quantization with the published remedies against oscillations, iterative freezing and dampening.

Both with the schedules of Nagel et al., Overcoming Oscillations in Quantization-Aware Training, ICML 2022.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import fobt
from experiments.methods.method import Hyperparameters, Method
from experiments.methods.registry import register


@register("LAQ with freezing")
def laq_freezing(hyper: Hyperparameters, quantizer: fobt.Quantizer, *, threshold: float) -> Method:
    """LAQ with `fobt.oscillations.freeze_oscillations`, whose threshold falls to the given one."""
    assert hyper.steps is not None
    # No frequency is above 1.
    schedule = after_a_quarter(hyper.steps, 1.0, 10 * threshold, threshold)
    return Method(fobt.oscillations.freeze_oscillations(hyper.bounded_adam(quantizer), quantizer, schedule), quantizer)


@register("LAQ with dampening")
def laq_dampening(hyper: Hyperparameters, quantizer: fobt.Quantizer, *, dampening: float) -> Method:
    """LAQ with `fobt.oscillations.dampening_loss`, whose weight rises to the given one."""
    assert hyper.steps is not None
    weight = after_a_quarter(hyper.steps, 0.0, 0.0, dampening)
    return Method(dampened(hyper.bounded_adam(quantizer), quantizer, weight), quantizer)


def after_a_quarter(steps: int, before: float, start: float, end: float) -> optax.Schedule:
    """`before` in the first quarter of the steps, then from `start` to `end` along half a cosine.

    Example:
        >>> schedule = after_a_quarter(400, 1.0, 0.1, 0.01)
        >>> [round(float(schedule(step)), 3) for step in (0, 99, 100, 250, 400)]
        [1.0, 1.0, 0.1, 0.055, 0.01]
    """
    quarter = steps // 4
    share = optax.cosine_decay_schedule(1.0, steps - quarter)
    return optax.join_schedules(
        [optax.constant_schedule(before), lambda count: end + (start - end) * share(count)], [quarter]
    )


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
