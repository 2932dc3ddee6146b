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


def turn(before: jax.Array, after: jax.Array, direction: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Direction of the last change of codes, and whether it just turned round: one array.

    Args:
      before: codes of one step.
      after: codes of the next step.
      direction: int8, sign of the last change until `before`; 0 without one.

    Returns:
      The direction until `after`, and a bool: whether the code changed in the direction opposite to its last change.
    """
    # By comparison, because differences of int8 codes may overflow.
    change = (after > before).astype(jnp.int8) - (after < before).astype(jnp.int8)
    return jnp.where(change == 0, direction, change), change * direction == -1


def frequency_after(frequency: jax.Array, oscillated: jax.Array, decay: float) -> jax.Array:
    """The moving average f ← d f + (1 - d) o, with d the decay."""
    return decay * frequency + (1 - decay) * oscillated.astype(frequency.dtype)


def record(changes: CodeChanges, codes: Any, decay: float) -> CodeChanges:
    """Takes in the next codes.

    A weight oscillates, o = 1, where its code changes in the direction opposite to its last change; its frequency is
    the moving average f ← d f + (1 - d) o.

    Args:
      changes: what is kept of the codes before.
      codes: a tree of int8 arrays.
      decay: d.

    Returns:
      What is kept now.

    References:
      Nagel, Fournarakis, Bondarenko, Blankevoort, Overcoming Oscillations in Quantization-Aware Training, ICML 2022.
    """
    turns = jax.tree.map(turn, changes.codes, codes, changes.direction)
    direction, oscillated = jax.tree.transpose(jax.tree.structure(codes), jax.tree.structure((0, 0)), turns)
    frequency = jax.tree.map(lambda f, o: frequency_after(f, o, decay), changes.frequency, oscillated)
    return CodeChanges(codes, direction, frequency)
