"""Numbers from leaves whose dtypes differ, together: JAX promotes no dtypes where it is told to be strict."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def widest(values: Sequence[jax.Array]) -> list[jax.Array]:
    """A zero and these floating arrays, in the widest of their dtypes, at least float32."""
    dtype = functools.reduce(np.promote_types, (value.dtype for value in values), np.dtype(np.float32))
    return [jnp.zeros((), dtype), *(value.astype(dtype) for value in values)]


def total(values: Sequence[jax.Array]) -> jax.Array:
    """The sum of floating arrays in the widest of their dtypes, at least float32."""
    return functools.reduce(jnp.add, widest(values))
