"""The second moment of an optimizer from a few minibatches, before the first step of a fine-tuning."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fobt._src.trees.second_moments import second_moments, with_second_moments


def calibrate(
    optimizer: optax.GradientTransformation,
    loss_fn: Callable[..., Any],
    params: optax.Params,
    state: optax.OptState,
    batches: Iterable[tuple[Any, ...]],
) -> optax.OptState:
    r"""Sets the second moment of a state by gradients of a few minibatches: the first projection is then weighted.

    A new state has v = 0, and the first projection curvature 1, which hurts most where weights are good already: in
    fine-tuning. Let g₁ to g_K be the gradients of the minibatches at `params`, in full precision, and u(v, g) the
    second moment that one update of the optimizer makes of v with g; of Adam b₂ v + (1 - b₂) g². The new state has

        v ← 1/K Σₖ u(v, gₖ)

    and is otherwise as before: no weight moves, and no step is counted, so that schedules start at their beginning and
    Adam's correction of the bias takes the mean of the squared gradients for one more gradient of the past. What comes
    before the second moment, such as clipping in a chain, acts on each gradient.

    Args:
      optimizer: one with a second moment `nu`, in any chain or wrapper that updates it in each step: `optax.adam`,
        adamw, rmsprop, `fobt.forward_backtrack`, `fobt.anneal`; `training.optimizer` of a `fobt.Training`.
      loss_fn: a function of weights and what a minibatch holds to a scalar.
      params: full-precision weights, where gradients are taken.
      state: the state of the optimizer, as `init(params)` makes it.
      batches: K ≥ 1 minibatches, each a tuple of further arguments of `loss_fn`; 10 are many.

    Returns:
      The state with the new second moment.

    Raises:
      ValueError: there is no minibatch; the state holds no second moment `nu`, or a minibatch does not change it, as
        under `optax.MultiSteps`: calibrate the state of the optimizer within.

    Example:
      >>> import fobt, optax
      >>> import jax.numpy as jnp
      >>> def loss_fn(weights, x):
      ...     return jnp.sum(weights @ x)
      >>> params, optimizer = jnp.array([[1.0, -3.0]]), optax.adam(1e-3)
      >>> batches = [(jnp.array([1.0, 3.0]),), (jnp.array([1.0, 3.0]),)]
      >>> state = fobt.calibrate(optimizer, loss_fn, params, optimizer.init(params), batches)
      >>> fobt.quantize(params, state, fobt.binary()).scale  # (1 · 1 + 3 · 3) / (1 + 3)
      Array(2.5, dtype=float32)
    """
    update = optax.with_extra_args_support(optimizer).update
    if not second_moments(state):
        raise ValueError(
            "state must hold a second moment `nu`, as those of optax.adam, rmsprop and fobt.forward_backtrack do, got "
            f"one of type {type(state).__name__} that holds none."
        )

    def after(params: optax.Params, state: optax.OptState, sums: list[Any], batch: tuple[Any, ...]) -> list[Any]:
        """The sums with the second moments that an update with this minibatch makes."""
        grads = jax.grad(loss_fn)(params, *batch)
        # A plain step of the method, which asks for its second gradient nevertheless.
        _, updated = update(grads, state, params, grad_fn=lambda _: grads, two_stage=False)
        return jax.tree.map(lambda total, v: total + v.astype(total.dtype), sums, second_moments(updated))

    step = jax.jit(after)
    sums = jax.tree.map(lambda v: jnp.zeros_like(v, np.promote_types(v.dtype, np.float32)), second_moments(state))
    count = 0
    for batch in batches:
        if not isinstance(batch, tuple):
            raise ValueError(f"batches must hold tuples of the arguments of loss_fn, got a {type(batch).__name__}.")
        sums, count = step(params, state, sums, batch), count + 1
    if not count:
        raise ValueError("batches must hold at least one minibatch, got none.")
    moments = jax.tree.map(lambda total, v: (total / count).astype(v.dtype), sums, second_moments(state))
    pairs = zip(jax.tree.leaves(moments), jax.tree.leaves(second_moments(state)), strict=True)
    if not any(isinstance(v, jax.core.Tracer) or bool(jnp.any(v != before)) for v, before in pairs):
        raise ValueError(
            "batches must change the second moment, got none that does: the gradients are zero, or the optimizer does "
            "not update it in each step, as under optax.MultiSteps. Give the optimizer within, and its state."
        )
    return with_second_moments(state, moments)
