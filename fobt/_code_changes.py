"""How often the codes of weights go back and forth."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class CodeChanges(NamedTuple):
    """What is kept of the codes seen so far: trees of arrays in the shapes of the codes.

    Attributes:
      codes: int8, the codes seen last.
      direction: int8, the sign of their last change; 0 before the first.
      frequency: float32, moving average of the oscillations.
    """

    codes: Any
    direction: Any
    frequency: Any


def no_changes(codes: Any) -> CodeChanges:
    """The start: the first codes."""
    return CodeChanges(
        codes,
        jax.tree.map(jnp.zeros_like, codes),
        jax.tree.map(lambda code: jnp.zeros_like(code, jnp.float32), codes),
    )


def record(changes: CodeChanges, codes: Any, momentum: float) -> tuple[CodeChanges, Any]:
    """Takes in the next codes.

    A weight oscillates, o = 1, where its code changes in the direction opposite to its last change; its frequency is
    the moving average f ← μ o + (1 - μ) f.

    Args:
      changes: what is kept of the codes before.
      codes: a tree of int8 arrays.
      momentum: μ.

    Returns:
      What is kept now, and o as a tree of bools.

    References:
      Nagel, Fournarakis, Bondarenko, Blankevoort, Overcoming Oscillations in Quantization-Aware Training, ICML 2022.
    """
    # By comparison, because differences of int8 codes may overflow.
    now = jax.tree.map(
        lambda new, old: (new > old).astype(jnp.int8) - (new < old).astype(jnp.int8), codes, changes.codes
    )
    oscillated = jax.tree.map(lambda sign, last: sign * last == -1, now, changes.direction)
    direction = jax.tree.map(lambda sign, last: jnp.where(sign == 0, last, sign), now, changes.direction)
    frequency = jax.tree.map(
        lambda o, f: momentum * o.astype(f.dtype) + (1 - momentum) * f, oscillated, changes.frequency
    )
    return CodeChanges(codes, direction, frequency), oscillated
