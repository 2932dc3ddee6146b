"""What the method does whatever the optimizer under it is: when there is a trial, and how it is blended in."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fobt._src.base.checks import check_no_holes, check_same_leaves
from fobt._src.base.totals import total
from fobt._src.trees.grad_fn import check_same_quantizer
from fobt._src.trees.leaves import TreeQuantizer


def check_arguments(
    updates: optax.Updates, params: optax.Params | None, grad_fn: Any, quantizer: TreeQuantizer, never: bool
) -> None:
    """Raises a ValueError where an argument of an update is missing or of other leaves; `never` needs no `grad_fn`."""
    if params is None:
        raise ValueError("params must be given: update(grads, state, params, grad_fn=grad_fn), got None.")
    if not callable(grad_fn) and not never:
        raise ValueError(
            f"grad_fn must be a function from quantized weights to gradients, got {type(grad_fn).__name__}. Call "
            "update(grads, state, params, grad_fn=grad_fn) with what fobt.value_and_grad makes: "
            "loss, grads, grad_fn = fobt.value_and_grad(loss_fn, quantizer)(params, state, ...); in a loop of "
            "Flax, fobt.nnx and fobt.linen pass it on."
        )
    check_no_holes(params)
    check_same_leaves("grads", updates, "params", params)
    check_same_quantizer(grad_fn, quantizer, params)


def is_two_stage(every: Any, two_stage: Any, count: jax.Array) -> Any:
    """Whether this step is two-stage: a Python bool where that is known now, otherwise a traced one."""
    if two_stage is not None:
        now = two_stage
    elif callable(every):
        now = every(count + 1)
    elif isinstance(every, int) and every == 1:
        return True
    else:
        now = (count + 1) % every == 0
    if not isinstance(now, bool | np.bool_ | jax.Array):
        raise ValueError(f"two_stage, and what `every` returns, must be a bool, got {now!r}.")
    return now if isinstance(now, jax.core.Tracer) else bool(now)


def blend_trees(a: Any, current: optax.Updates, trial: optax.Updates, finite: jax.Array) -> optax.Updates:
    """The blend a x + (1 - a) y of current x and trial y; x where it is not finite, or not all of the trial."""

    def blend(x: jax.Array, y: jax.Array) -> jax.Array:
        weight = jnp.asarray(a, x.dtype)
        blended = weight * x + (1 - weight) * y
        # An infinite curvature stays, also where a weight of 0 would make it NaN.
        return jnp.where(finite & jnp.isfinite(blended), blended, x)

    return jax.tree.map(blend, current, trial)


def norm_is_finite(grads: optax.Updates) -> jax.Array:
    """Whether the norm of gradients is finite, in float32 or wider, so that they and their squares are."""
    wide = [leaf.astype(np.promote_types(leaf.dtype, np.float32)) for leaf in jax.tree.leaves(grads)]
    # A root, which XLA computes once. What is cheap it computes again in every loop that selects by it.
    return jnp.isfinite(jnp.sqrt(total([jnp.sum(jnp.square(leaf)) for leaf in wide])))


def anew(tree: Any) -> Any:
    """The same numbers; what follows from them is computed anew.

    On CPU, XLA stores what two of its loops need of square roots, and memory takes more time than a second root.
    """
    return jax.lax.optimization_barrier(tree)
