"""Methods that look ahead with one gradient per step, taken where the next step is foreseen to lead."""

from collections.abc import Callable
from typing import Any

import optax

import fobt
from experiments.methods.method import Hyperparameters, Method
from experiments.methods.registry import register


def one_step_ahead(quantizer: Any, optimizer: optax.GradientTransformation) -> Callable[[Any, Any], Any]:
    """From parameters and state of `optimizer` to the quantized weights after its next step, as far as it is known."""
    return lambda params, state: fobt.quantized_trial_params(params, state, quantizer, optimizer)


@register("quantized Nesterov", tuned={"quantized Nesterov": {}}, step_costs="one gradient, Nesterov")
def nesterov(hyper: Hyperparameters, quantizer: fobt.Quantizer) -> Method:
    """The gradient is taken where momentum carries the quantized weights."""
    adam = hyper.bounded_adam(quantizer)
    return Method(adam, quantizer, lookahead=one_step_ahead(quantizer, adam))


@register(
    "optimistic",
    tuned={f"optimistic, a = {a:g}": {"a": a} for a in (0.3, 0.6, 0.9)},
    step_costs="one gradient, optimistic",
    memory_costs="optimistic",
)
def optimistic(hyper: Hyperparameters, quantizer: fobt.Quantizer, *, a: float) -> Method:
    """The gradient is taken where a step of the method along the last trial gradient leads."""
    return at_trial_gradients(fobt.optimistic(hyper.forward_backtrack(quantizer, a)), quantizer)


def at_trial_gradients(optimizer: optax.GradientTransformation, quantizer: fobt.Quantizer) -> Method:
    """The method of an optimizer that takes trial gradients for those of the present weights."""
    # A plain transformation is not told which steps are two-stage: every one is.
    plain = optax.GradientTransformation(optimizer.init, optimizer.update)
    return Method(plain, quantizer, lookahead=one_step_ahead(quantizer, optimizer))
