"""One training step of any method: the gradient at the weights that the method wants, and its update."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import optax

from experiments.methods.method import Method

# From weights to (loss, aux) and the gradient.
Evaluate: TypeAlias = Callable[[Any], tuple[tuple[jax.Array, Any], Any]]


def take_step(
    method: Method,
    params: Any,
    optimizer_state: Any,
    evaluate: Evaluate,
    two_stage: bool | None = None,
) -> tuple[tuple[jax.Array, Any], Any, Any]:
    """One step.

    Args:
        method: How to train.
        params: What is trained.
        optimizer_state: State of its optimizer.
        evaluate: From weights to (loss, aux) and the gradient, on the minibatch of this step.
        two_stage: Whether this step takes a trial gradient, for methods that do not take one in every step. A Python
            bool: each value is a program of its own, because a convolution inside `lax.cond` is several times slower on
            CPU. None leaves it to the optimizer.

    Returns:
        Loss and aux of the first gradient, so the batch statistics of the first pass; params; state of the optimizer.
    """
    loss_and_aux, grads = evaluate(method.gradient_point(params, optimizer_state))
    updates, optimizer_state = optax.with_extra_args_support(method.optimizer).update(
        grads, optimizer_state, params, grad_fn=lambda weights: evaluate(weights)[1], two_stage=two_stage
    )
    return loss_and_aux, optax.apply_updates(params, updates), optimizer_state
