"""Reductions of two arrays in one loop.

On CPU, XLA computes what one loop needs on the fly, but stores what several loops share. Two separate sums over
expressions of the same weights therefore cost several times as much as a joint one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp

_Pair: TypeAlias = tuple[jax.Array, jax.Array]


def joint_sum(x: jax.Array, y: jax.Array, axes: Sequence[int]) -> _Pair:
    """Σ x and Σ y over the axes, `keepdims`."""
    return _joint(jax.lax.add, jnp.sum, x, y, axes)


def joint_max(x: jax.Array, y: jax.Array, axes: Sequence[int]) -> _Pair:
    """The largest x ≥ 0 and the largest y ≥ 0 over the axes, `keepdims`; 0 for no elements, NaN where there is one."""
    return _joint(jax.lax.max, jnp.max, x, y, axes)


def _joint(
    combine: Callable[..., jax.Array], reduce: Callable[..., jax.Array], x: jax.Array, y: jax.Array, axes: Sequence[int]
) -> _Pair:
    if not axes:
        return x, y
    zero = jnp.zeros((), x.dtype)
    *others, last = axes
    # One axis in a joint loop, which bounds rounding errors, and the few partial results as usual.
    rows = jax.lax.reduce((x, y), (zero, zero), lambda p, q: (combine(p[0], q[0]), combine(p[1], q[1])), (last,))
    first, second = (reduce(jnp.expand_dims(row, last), others, keepdims=True, initial=0) for row in rows)
    return first, second
