"""Two gradients compared: the cosine between them, and their distance."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Comparison(NamedTuple):
    """Sums over the numbers of two gradients x and y, from which parts of a tree add up.

    Attributes:
      product: Σ x y.
      square: Σ x².
      other_square: Σ y².
      distance_square: Σ (x - y)².
    """

    product: jax.Array
    square: jax.Array
    other_square: jax.Array
    distance_square: jax.Array

    def cosine(self) -> jax.Array:
        """Σ x y / (‖x‖ ‖y‖), 0 where x or y is zero."""
        return _ratio(self.product, jnp.sqrt(self.square) * jnp.sqrt(self.other_square))

    def relative_distance(self) -> jax.Array:
        """‖x - y‖ / ‖y‖, 0 where both are zero."""
        return _ratio(jnp.sqrt(self.distance_square), jnp.sqrt(self.other_square))


def compare(x: jax.Array, y: jax.Array) -> Comparison:
    """Compares two arrays of one shape and dtype."""
    return Comparison(jnp.sum(x * y), jnp.sum(x * x), jnp.sum(y * y), jnp.sum(jnp.square(x - y)))


def unknown(dtype: jnp.dtype) -> Comparison:
    """The comparison with a gradient that was not taken: NaN."""
    # Arrays of their own, so that the state can be donated.
    return Comparison(*(jnp.full((), jnp.nan, dtype) for _ in Comparison._fields))


def _ratio(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """The ratio, with 0/0 = 0."""
    zero = numerator == 0
    return jnp.where(zero, 0, numerator / jnp.where(zero, 1, denominator))
