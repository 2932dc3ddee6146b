"""The quantizer that leaves weights as they are."""

from __future__ import annotations

import dataclasses
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from fobt._src.quantizers.quantizer import Quantizer


@dataclasses.dataclass(frozen=True)
class FullPrecision:
    """The quantizer that leaves weights as they are. Made by `full_precision`."""

    def __call__(self, weights: ArrayLike, curvature: ArrayLike | None = None) -> jax.Array:
        """Returns the weights as they are; the curvature does not matter."""
        del curvature
        return jnp.asarray(weights)


LeafQuantizer: TypeAlias = Quantizer | FullPrecision


def full_precision() -> FullPrecision:
    """The quantizer that leaves weights in full precision: loss-aware training with it is plain training.

    Example:
      >>> import fobt
      >>> fobt.full_precision()([0.5, -2.0])
      Array([ 0.5, -2. ], dtype=float32)
    """
    return FullPrecision()
