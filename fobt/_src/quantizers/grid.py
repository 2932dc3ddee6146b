"""Quantization grids: the codes a weight may take and the levels they stand for."""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

Spacing = Literal["binary", "linear", "logarithmic"]


@dataclasses.dataclass(frozen=True)
class Grid:
    """A symmetric set of levels Q in [-1, 1] with integer codes.

    Code c stands for the level β(c), an odd and increasing function with β(n) = 1, where n is `max_code`:

    - binary: c ∈ {-1, +1}, β = c.
    - linear: c ∈ {-n, ..., n}, n = 2^(bits-1) - 1, β = c/n. Two bits are ternary.
    - logarithmic: the same codes, β = sign(c) 2^(|c|-n), β(0) = 0.

    Attributes:
      spacing: how the levels are spaced.
      bits: bits that a stored code takes, 1 to 8.
    """

    spacing: Spacing
    bits: int

    @property
    def max_code(self) -> int:
        """The largest code, n."""
        return 1 if self.spacing == "binary" else 2 ** (self.bits - 1) - 1

    @functools.cached_property
    def positive_levels(self) -> np.ndarray:
        """β(1), ..., β(n), ascending, shape (n,), float64."""
        n = self.max_code
        if self.spacing == "logarithmic":
            return 2.0 ** np.arange(1 - n, 1)
        return np.arange(1, n + 1) / n

    @functools.cached_property
    def midpoints(self) -> np.ndarray:
        """Where the nearest level changes, ascending, shape (n,): (β(j-1) + β(j))/2, and 0 for the binary grid."""
        if self.spacing == "binary":
            return np.zeros(1)
        levels = np.concatenate([[0.0], self.positive_levels])
        return (levels[:-1] + levels[1:]) / 2

    def nearest(self, ratio: jax.Array) -> jax.Array:
        """The codes whose levels are nearest to `ratio` ≥ 0, as floats; at a midpoint the smaller one."""
        n = self.max_code
        if self.spacing == "binary":
            return jnp.ones_like(ratio)
        if self.spacing == "linear":
            return jnp.minimum(jnp.ceil(ratio * n - 0.5), n)
        codes = jnp.zeros_like(ratio)
        for midpoint in self.midpoints.tolist():
            codes = codes + (ratio > midpoint).astype(codes.dtype)
        return codes

    def nearest_levels(self, ratio: jax.Array) -> jax.Array:
        """The levels of the codes that `nearest` returns."""
        if self.spacing != "logarithmic":
            return self.levels(self.nearest(ratio))
        levels = jnp.zeros_like(ratio)
        for midpoint, level in zip(self.midpoints.tolist(), self.positive_levels.tolist(), strict=True):
            levels = jnp.where(ratio > midpoint, level, levels)
        return levels

    @property
    def steps_per_level(self) -> int:
        """The factor of what `nearest_steps` takes and returns: levels of the linear grid are integers then."""
        return self.max_code if self.spacing == "linear" else 1

    def nearest_steps(self, steps: jax.Array) -> jax.Array:
        """The levels nearest to ratios ≥ 0, both times `steps_per_level`; not for the binary grid.

        For a loop over many scales, which multiplies anyway and can take the factor along.
        """
        if self.spacing == "linear":
            return jnp.minimum(jnp.ceil(steps - 0.5), self.max_code)
        return self.nearest_levels(steps)

    @functools.cached_property
    def level_changes(self) -> np.ndarray:
        """β(j) - β(j-1) for j = 1 ... n, shape (n,), float64."""
        return np.diff(self.positive_levels, prepend=0.0)

    def levels(self, codes: jax.Array) -> jax.Array:
        """β(codes), for codes that are integers held in a floating array."""
        return self.dequantize(codes, jnp.ones_like(codes))

    def dequantize(self, codes: jax.Array, scale: jax.Array) -> jax.Array:
        """The weights scale · β(codes), for codes that are integers held in a floating array."""
        n = self.max_code
        if self.spacing != "logarithmic":
            return codes * (scale / n)
        # Sums of these powers of two are exact, and cheaper than any power function.
        levels = jnp.zeros_like(codes)
        for code, change in enumerate(self.level_changes.tolist(), start=1):
            levels = jnp.where(jnp.abs(codes) >= code, levels + change, levels)
        return jnp.sign(codes) * scale * levels
