"""Gradients that carry what the two-gradient method needs, through loops that pass on gradients and nothing else."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import optax

from fobt._src.trees.grad_fn import GradFn


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Gradients:
    """Gradients taken where an optimizer wants them, with the function that takes the trial gradient.

    A pytree with the leaves of `tree`, so that `optax.tree.norm`, `jax.tree.map` and `jax.lax.pmean` work on it. The
    function holds the minibatch: gradient and update belong into the same jitted function.

    Attributes:
      tree: the gradients.
      grad_fn: from weights to the gradients there, on the same minibatch; None where no trial gradient is taken.

    Example:
      >>> import fobt, optax
      >>> import jax.numpy as jnp
      >>> from fobt._src.adapters.gradients import Gradients
      >>> optax.tree.norm(Gradients({"kernel": jnp.array([3.0, 4.0])}, None))
      Array(5., dtype=float32)
    """

    tree: optax.Updates
    grad_fn: GradFn | None = dataclasses.field(metadata={"static": True})


def checked_gradients(grads: Any, write: str) -> Gradients:
    """`grads`, or a ValueError that says what to write instead of gradients at the latents."""
    if not isinstance(grads, Gradients):
        raise ValueError(
            f"grads must be what {write} returns, which are those at the quantized weights, got "
            f"{type(grads).__name__}: gradients at the latents would train other weights than those that are shipped."
        )
    return grads
