"""CAGE: after the step of any optimizer, latents are drawn towards their projection."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import fobt
from experiments.methods.method import Hyperparameters, Method
from experiments.methods.registry import register


@register("CAGE", tuned={"CAGE": {"strength": 1.0}})
def cage(hyper: Hyperparameters, quantizer: fobt.Quantizer, *, strength: float = 10.0, silent: float = 0.8) -> Method:
    """Adam at the loss-aware projection, `corrected` towards it, with `strength` λ after a `silent` share of the steps.

    The defaults are those of the published scripts. Learning rates are higher here, so that λ η may be near 1.
    """
    assert hyper.steps is not None
    weight = linear_ramp(hyper.steps, strength, silent)
    adam = optax.adam(hyper.learning_rate, **hyper.moments)
    optimizer = corrected(adam, quantizer, hyper.learning_rate, weight)
    return Method(hyper.bounded(optimizer, quantizer), quantizer)


def linear_ramp(steps: int, strength: float, silent: float) -> optax.Schedule:
    """0 in the silent share of the steps, then linearly to `strength` at their end.

    Example:
        >>> weight = linear_ramp(100, 10.0, 0.8)
        >>> [round(float(weight(step)), 3) for step in (0, 80, 90, 100)]
        [0.0, 0.0, 5.0, 10.0]
    """
    start = round(silent * steps)
    return optax.linear_schedule(0.0, strength, steps - start, start)


class CorrectedState(NamedTuple):
    """State of `corrected`.

    Attributes:
        inner: State of the optimizer.
        steps: Number of updates, int32.
    """

    inner: Any
    steps: jax.Array


def corrected(
    optimizer: optax.GradientTransformation, quantizer: Any, learning_rate: Any, weight: optax.Schedule
) -> optax.GradientTransformationExtraArgs:
    """The step of the optimizer and -η λ (w - ŵ): decoupled, so that no moment of the optimizer sees the correction.

    Both are taken from the same w, and ŵ is the projection at which the gradient was taken.

    Args:
        optimizer: Keeps a second moment `nu`.
        quantizer: Gives ŵ from parameters and state.
        learning_rate: η, a number or a function of the minibatches seen before; that of the optimizer.
        weight: λ as a function of the minibatches seen before.

    References:
        Tabesh, Safaryan, Panferov, Volkova, Alistarh, CAGE: Curvature-Aware Gradient Estimation for Accurate
        Quantization-Aware Training, 2025, arXiv:2510.18784, the decoupled variant.
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def init(params: Any) -> CorrectedState:
        return CorrectedState(optimizer.init(params), jnp.zeros((), jnp.int32))

    def update(grads: Any, state: CorrectedState, params: Any = None, **extra_args: Any) -> tuple[Any, CorrectedState]:
        quantized = fobt.quantized_params(params, state.inner, quantizer)
        rate = learning_rate(state.steps) if callable(learning_rate) else learning_rate
        factor = rate * weight(state.steps)
        updates, inner = optimizer.update(grads, state.inner, params, **extra_args)
        updates = jax.tree.map(lambda u, w, w_hat: u - factor * (w - w_hat), updates, params, quantized)
        return updates, CorrectedState(inner, state.steps + 1)

    return optax.GradientTransformationExtraArgs(init, update)
