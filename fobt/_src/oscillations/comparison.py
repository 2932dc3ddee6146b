"""Two gradients compared: the cosine between them, and their distance."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Comparison(NamedTuple):
    """Sums over the numbers of two gradients x and y, from which parts of a tree add up.

    Attributes:
      known: bool, whether both gradients were taken; otherwise the sums are 0.
      product: Σ x y.
      square: Σ x².
      other_square: Σ y².
      distance_square: Σ (x - y)².
    """

    known: jax.Array
    product: jax.Array
    square: jax.Array
    other_square: jax.Array
    distance_square: jax.Array

    def cosine(self) -> jax.Array:
        """Σ x y / (‖x‖ ‖y‖), 0 where x or y is zero; NaN where it is not known."""
        return self._if_known(_ratio(self.product, jnp.sqrt(self.square) * jnp.sqrt(self.other_square)))

    def relative_distance(self) -> jax.Array:
        """‖x - y‖ / ‖y‖, 0 where both are zero; NaN where it is not known."""
        return self._if_known(_ratio(jnp.sqrt(self.distance_square), jnp.sqrt(self.other_square)))

    def _if_known(self, measure: jax.Array) -> jax.Array:
        # While JAX looks for NaN, one that only says that there is nothing to measure would end the search.
        return jnp.where(self.known, measure, 0 if jax.config.jax_debug_nans else jnp.nan)  # type: ignore[attr-defined]


def compare(x: jax.Array, y: jax.Array) -> Comparison:
    """Compares two arrays of one shape and dtype."""
    known = jnp.ones((), bool)
    return Comparison(known, jnp.sum(x * y), jnp.sum(x * x), jnp.sum(y * y), jnp.sum(jnp.square(x - y)))


def unknown(dtype: jnp.dtype) -> Comparison:
    """The comparison with a gradient that was not taken."""
    # Arrays of their own, so that the state can be donated. No NaN, for which a search would stop in every step.
    return Comparison(jnp.zeros((), bool), *(jnp.zeros((), dtype) for _ in range(4)))


def _ratio(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """The ratio, with 0/0 = 0."""
    zero = numerator == 0
    return jnp.where(zero, 0, numerator / jnp.where(zero, 1, denominator))
