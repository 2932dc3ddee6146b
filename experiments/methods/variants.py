"""Loss-aware quantization with one thing changed: the curvature that weights the projection, or the schedule's end."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import fobt
from experiments.methods.method import Hyperparameters, Method
from experiments.methods.registry import register


@register(tuned={f"LAQ, curvature to the power {p:g}": {"power": p} for p in (0.25, 0.5)})
def powered_curvature(hyper: Hyperparameters, quantizer: fobt.Quantizer, *, power: float) -> Method:
    """A projection weighted by a power of the curvature: 1 is LAQ, 0 curvature 1 everywhere."""

    def quantize(params: Any, state: Any) -> Any:
        powered = jax.tree.map(lambda nu: nu**power, optax.tree.get(state, "nu"))
        return fobt.quantize(params, optax.tree.set(state, nu=powered), quantizer)

    return Method(hyper.bounded_adam(quantizer), quantizer, quantize=quantize)


class SlowState(NamedTuple):
    """State of an optimizer and a slower average of squared gradients.

    Attributes:
        inner: State of the optimizer.
        slow: Count and the average `nu`, for the projection alone.
    """

    inner: Any
    slow: optax.ScaleByRmsState


@register(tuned={f"LAQ, curvature averaged with {decay:g}": {"decay": decay} for decay in (0.99, 0.999)})
def slow_curvature(hyper: Hyperparameters, quantizer: fobt.Quantizer, *, decay: float) -> Method:
    """A projection weighted by an average of its own of squared gradients, which Adam's steps do not use."""
    adam, slow = hyper.bounded_adam(quantizer), optax.scale_by_rms(decay)

    def init(params: Any) -> SlowState:
        return SlowState(adam.init(params), slow.init(params))

    def update(grads: Any, state: SlowState, params: Any = None) -> tuple[Any, SlowState]:
        updates, inner = adam.update(grads, state.inner, params)
        return updates, SlowState(inner, slow.update(grads, state.slow)[1])

    return Method(
        optax.GradientTransformation(init, update),
        quantizer,
        quantize=lambda params, state: fobt.quantize(params, state.slow, quantizer),
    )


@register(
    tuned={
        "LAQ, rate falls linearly": {"constant": 0.0},
        "LAQ, rate constant for half, then linearly": {"constant": 0.5},
    }
)
def linear_end(hyper: Hyperparameters, quantizer: fobt.Quantizer, *, constant: float) -> Method:
    """LAQ whose learning rate is constant for a share of the steps and then falls to 0 along a line."""
    assert hyper.steps is not None
    start, steps = constant * hyper.steps, hyper.steps
    first = hyper.learning_rate(0)

    def learning_rate(count: Any) -> Any:
        return first * jnp.clip((steps - count) / (steps - start), 0, 1)

    return Method(dataclasses.replace(hyper, learning_rate=learning_rate).bounded_adam(quantizer), quantizer)
