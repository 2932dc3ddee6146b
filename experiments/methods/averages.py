"""Averages of the latents along the training, projected in their place.

The average is Optax's exponential moving average with its bias corrected, so that it starts at the first latents.
Source: Polyak, Juditsky, Acceleration of Stochastic Approximation by Averaging, 1992, with exponential weights.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import fobt
from experiments.methods.method import Hyperparameters, Method
from experiments.methods.registry import register


@register("LAQ, average evaluated", tuned={"LAQ, average evaluated": {"decay": 0.9}})
def average_evaluated(hyper: Hyperparameters, quantizer: fobt.Quantizer, *, decay: float = 0.99) -> Method:
    """Loss-aware quantization, of which the projection of the averaged latents is evaluated.

    The curvature of both projections is that of the optimizer's present state.
    """
    method = average_trained(hyper, quantizer, decay=decay)
    return Method(
        method.optimizer,
        quantizer,
        lookahead=lambda params, state: fobt.quantized_params(params, state, quantizer),
        quantize=method.quantize,
    )


@register("LAQ, average trained", tuned={"LAQ, average trained": {"decay": 0.9}})
def average_trained(hyper: Hyperparameters, quantizer: fobt.Quantizer, *, decay: float = 0.9) -> Method:
    """Loss-aware quantization whose gradients are taken at the projection of the averaged latents, too."""

    def quantize(params: Any, state: Any) -> Any:
        return fobt.quantize(average(params, state, decay), state, quantizer)

    return Method(averaged(hyper.bounded_adam(quantizer), decay), quantizer, quantize=quantize)


class AveragedState(NamedTuple):
    """State of `averaged`.

    Attributes:
        inner: State of the optimizer.
        average: State of the average of parameters.
    """

    inner: Any
    average: optax.EmaState


def averaged(optimizer: optax.GradientTransformation, decay: float) -> optax.GradientTransformationExtraArgs:
    """The optimizer, with an average of the parameters after each of its steps beside it."""
    optimizer, ema = optax.with_extra_args_support(optimizer), optax.ema(decay)

    def init(params: Any) -> AveragedState:
        return AveragedState(optimizer.init(params), ema.init(params))

    def update(grads: Any, state: AveragedState, params: Any = None, **extra_args: Any) -> tuple[Any, AveragedState]:
        updates, inner = optimizer.update(grads, state.inner, params, **extra_args)
        _, average = ema.update(optax.apply_updates(params, updates), state.average)
        return updates, AveragedState(inner, average)

    return optax.GradientTransformationExtraArgs(init, update)


def average(params: Any, state: AveragedState, decay: float) -> Any:
    """The average of the parameters with its bias corrected; before the first step the parameters themselves."""
    count, total = state.average.count, state.average.ema
    corrected = optax.tree.bias_correction(total, decay, jnp.maximum(count, 1))
    return jax.tree.map(lambda w, mean: jnp.where(count == 0, w, mean), params, corrected)
