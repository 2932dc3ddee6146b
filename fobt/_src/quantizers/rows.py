"""Tensors with one scale each in one array: a program has one projection for many of them, whatever their shape.

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
ROW = LENGTH * LANES


@dataclasses.dataclass(frozen=True)
class Rows:
    """Where tensors of these shapes are in an array of rows, (rows, LENGTH, LANES).

    Attributes:
      shapes: of the tensors.
      are_sampled: whether a sample of each tensor chooses among the candidates.
    """

    shapes: tuple[tuple[int, ...], ...]
    are_sampled: bool

    @functools.cached_property
    def counts(self) -> list[int]:
        """Rows of each tensor."""
        return [-(-math.prod(shape) // ROW) for shape in self.shapes]

    @functools.cached_property
    def starts(self) -> list[int]:
        """The first row of each tensor."""
        return np.cumsum([0, *self.counts[:-1]]).tolist()

    def join(self, tensors: Sequence[jax.Array]) -> jax.Array:
        """The rows of all tensors."""
        parts = []
        for x, count in zip(tensors, self.counts, strict=True):
            parts += [x.reshape(-1), jnp.zeros(count * ROW - x.size, x.dtype)]
        return jnp.concatenate([part for part in parts if part.size]).reshape(-1, LENGTH, LANES)

    def members(self) -> jax.Array:
        """Where rows hold weights."""
        if all(math.prod(shape) % ROW == 0 for shape in self.shapes):
            return jnp.ones((sum(self.counts), LENGTH, LANES), bool)
        filled = [
            np.clip(math.prod(shape) - ROW * np.arange(count), 0, ROW)
            for shape, count in zip(self.shapes, self.counts, strict=True)
        ]
        places = jnp.arange(ROW).reshape(1, LENGTH, LANES)
        return places < jnp.asarray(np.concatenate(filled))[:, None, None]

    def split(self, rows: jax.Array) -> list[jax.Array]:
        """The tensors that rows are of."""
        flat = rows.reshape(-1)
        return [
            jax.lax.slice_in_dim(flat, start * ROW, start * ROW + math.prod(shape)).reshape(shape)
            for start, shape in zip(self.starts, self.shapes, strict=True)
        ]

    def over_tensors(self, of_rows: jax.Array, operation: Callable[..., jax.Array]) -> jax.Array:
        """A sum or maximum over each tensor, from those of its rows along the first axis, in the place of each."""
        if len(self.shapes) == 1:
            reduce = jnp.sum if operation is jax.lax.add else jnp.max
            return reduce(of_rows, 0, keepdims=True)
        # No product with ones and zeros, which would spread NaN.
        reduce_segments = jax.ops.segment_sum if operation is jax.lax.add else jax.ops.segment_max
        tensors = np.repeat(np.arange(len(self.counts)), self.counts)
        return reduce_segments(of_rows, tensors, len(self.counts), indices_are_sorted=True)[tensors]


def project_in_rows(
    project: Callable[..., tuple[jax.Array, jax.Array]],
    weights: Sequence[jax.Array],
    curvatures: Sequence[jax.Array] | None,
    are_sampled: bool,
) -> tuple[list[jax.Array], list[jax.Array]]:
    """Codes and scales of tensors, in float32 or wider.

    Args:
      project: from weights, curvature and members in grouped form, axes and rows to codes and scales.
      weights: of these tensors.
      curvatures: in their shapes; None means 1.
      are_sampled: as in `Rows`.
    """
    rows = Rows(tuple(x.shape for x in weights), are_sampled)
    dtype = np.promote_types(weights[0].dtype, np.float32)
    w, members = rows.join(weights).astype(dtype), rows.members()
    c = jnp.broadcast_to(members, w.shape) if curvatures is None else rows.join(curvatures)
    codes, scale = project(w, c.astype(dtype), members, axes=(1, 2), rows=rows)
    of_rows = jnp.broadcast_to(scale, (*scale.shape[:-3], len(w), 1, 1))
    return rows.split(codes), [of_rows[..., start, 0, 0] for start in rows.starts]
