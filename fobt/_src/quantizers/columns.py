"""Groups of several tensors as columns of one matrix: a program has one projection for all groups of a length."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fobt._src.quantizers.granularity import Granularity
from fobt._src.quantizers.quantized import Quantized


def column_length(shape: tuple[int, ...], split: Granularity) -> int:
    """How many weights each group of a tensor has, with zeros that fill up the last block."""
    grouped, axes = _grouped_shape(shape, split)
    return math.prod(grouped[axis] for axis in axes)


def project_columns(
    quantizer: Callable[[jax.Array, jax.Array], Quantized],
    weights: Sequence[jax.Array],
    curvatures: Sequence[jax.Array] | None,
    split: Granularity,
) -> tuple[list[jax.Array], list[jax.Array]]:
    """Codes, in grouped form, and scales of tensors.

    Args:
      quantizer: from weights and curvature, with a scale for each column.
      weights: of `column_length` in common.
      curvatures: in their shapes; None means 1.
      split: their groups.
    """
    # Zeros that fill up a group have no curvature.
    weighted = [jnp.ones(w.shape, w.dtype) for w in weights] if curvatures is None else curvatures
    columns = [[_to_columns(x, split) for x in xs] for xs in (weights, weighted)]
    together = quantizer(*(jnp.concatenate(xs, 1) for xs in columns))
    ends = np.cumsum([x.shape[1] for x in columns[0]])[:-1]
    codes, scales = [], []
    for w, of_w, scale in zip(
        weights, *(jnp.split(x, ends, -1) for x in (together.codes, together.scale)), strict=True
    ):
        codes.append(_from_columns(of_w, w.shape, split))
        of_sides = [
            split.squeeze(_from_columns(side, w.shape, split)) for side in scale.reshape(-1, 1, scale.shape[-1])
        ]
        scales.append(of_sides[0] if together.scales == 1 else jnp.stack(of_sides))
    return codes, scales


def _to_columns(x: jax.Array, split: Granularity) -> jax.Array:
    """A matrix of which each column is a group of x."""
    axes = split.axes(x.ndim)
    return jnp.moveaxis(split.group(x), axes, range(len(axes))).reshape(column_length(x.shape, split), -1)


def _from_columns(columns: jax.Array, shape: tuple[int, ...], split: Granularity) -> jax.Array:
    """The grouped form of a tensor of this shape from its columns, or from one number for each of them."""
    grouped, axes = _grouped_shape(shape, split)
    kept = [length for axis, length in enumerate(grouped) if axis not in axes]
    of_group = [grouped[axis] if len(columns) > 1 else 1 for axis in axes]
    return jnp.moveaxis(columns.reshape(*of_group, *kept), range(len(axes)), axes)


def _grouped_shape(shape: tuple[int, ...], split: Granularity) -> tuple[tuple[int, ...], tuple[int, ...]]:
    grouped = jax.eval_shape(split.group, jax.ShapeDtypeStruct(shape, jnp.float32)).shape
    return grouped, split.axes(len(shape))
