"""The toy problem c |w|^(3/2) of the paper, with its exact derivatives injected."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

import fobt


class ToyState(NamedTuple):
    count: jax.Array


def toy_preconditioner(c):
    """Direction g and curvature f''(w) = 1.125 c² / |f'(w)|."""

    def update(grads, state):
        return grads, 1.125 * c**2 / jnp.abs(grads), ToyState(state.count + 1)

    return fobt.Preconditioner(
        init=lambda params: ToyState(jnp.zeros((), jnp.int32)),
        update=update,
        with_curvature=lambda state, curvature: (curvature, state),
    )


def toy_loss(weights, c):
    magnitude = jnp.abs(weights)
    return c * jnp.sum(jnp.where(magnitude > 0, jnp.where(magnitude > 0, magnitude, 1) ** 1.5, 0))
