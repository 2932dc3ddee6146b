"""Tensors with one scale each in one array, so that a program has one projection for all of them, whatever their shape.

The weights of each tensor fill whole rows of `LENGTH` × `LANES` places, one tensor after another, zeros where they end.
XLA's compiler takes most of a second for a projection, and about as long for each further shape; and on CPU a joint
reduction is fast over a short axis in front of the last one.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

# A longer loop over a row's axis is not unrolled, and then not vectorised.
LENGTH, LANES = 8, 64
_ROW = LENGTH * LANES
# Of so many weights a sample chooses among the candidates: two of four, or two of eight.
_SAMPLED, _SAMPLED_LESS = 2**14, 2**17
# Larger tensors gain nothing from company: the copies take longer.
_LARGEST = 2**19


def run_of_sample(size: int) -> int | None:
    """Of how many weights in a column of a row a sample takes two; all with 1, and None where rows have too few.

    Tensors with the same answer may be projected together.
    """
    if not _ROW <= size < _LARGEST:
        return None
    return 1 if size < _SAMPLED else LENGTH // 2 if size < _SAMPLED_LESS else LENGTH


@dataclasses.dataclass(frozen=True)
class Rows:
    """Where tensors of these shapes are in an array of rows, (rows, LENGTH, LANES)."""

    shapes: tuple[tuple[int, ...], ...]

    @functools.cached_property
    def counts(self) -> list[int]:
        """Rows of each tensor."""
        return [-(-math.prod(shape) // _ROW) for shape in self.shapes]

    @functools.cached_property
    def starts(self) -> list[int]:
        """The first row of each tensor."""
        return np.cumsum([0, *self.counts[:-1]]).tolist()

    def join(self, tensors: Sequence[jax.Array]) -> jax.Array:
        """The rows of all tensors."""
        parts = []
        for x, count in zip(tensors, self.counts, strict=True):
            parts += [x.reshape(-1), jnp.zeros(count * _ROW - x.size, x.dtype)]
        return jnp.concatenate([part for part in parts if part.size]).reshape(-1, LENGTH, LANES)

    def members(self) -> jax.Array:
        """Where rows hold weights."""
        filled = [
            np.clip(math.prod(shape) - _ROW * np.arange(count), 0, _ROW)
            for shape, count in zip(self.shapes, self.counts, strict=True)
        ]
        places = jnp.arange(_ROW).reshape(LENGTH, LANES)
        return places < jnp.asarray(np.concatenate(filled))[:, None, None]

    def split(self, rows: jax.Array) -> list[jax.Array]:
        """The tensors that rows are of."""
        flat = rows.reshape(-1)
        return [
            jax.lax.slice_in_dim(flat, start * _ROW, start * _ROW + math.prod(shape)).reshape(shape)
            for start, shape in zip(self.starts, self.shapes, strict=True)
        ]

    def over_tensors(self, of_rows: jax.Array, operation: Callable[..., jax.Array]) -> jax.Array:
        """A sum or maximum over each tensor, from those of its rows along the first axis, in the place of each."""
        if len(self.shapes) == 1:
            reduce = jnp.sum if operation is jax.lax.add else jnp.max
            return reduce(of_rows, 0, keepdims=True)
        tensors = np.repeat(np.arange(len(self.counts)), self.counts)
        if operation is jax.lax.add:
            one = jnp.asarray(tensors[None] == np.arange(len(self.counts))[:, None], of_rows.dtype)
            return jnp.matmul(one, of_rows, precision="highest")[tensors]
        return jax.ops.segment_max(of_rows, tensors, len(self.counts), indices_are_sorted=True)[tensors]
