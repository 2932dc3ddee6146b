"""Single weights followed from step to step: how their codes go back and forth, and how far their latents swing."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from fobt._src.base.flax_serialization import FlaxSerializable
from fobt._src.oscillations import code_changes


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Followed(FlaxSerializable):
    """What is remembered of weights whose codes and latents are seen once in every step.

    An oscillation is a change of a weight's code in the direction opposite to its last change. While the code stays,
    the extreme of the latent in the direction of the last change is followed; a change begins it anew at the latent of
    that step. An oscillation turns at the extreme that has just ended, and the swing is how far the latent has moved
    from there in the new direction, until the next change. The amplitude is the largest swing so far.

    All fields have the shape of the weights. Where there has been no change, the direction is 0.

    Attributes:
      codes: integer, the last codes.
      direction: int8, direction of the last change: -1 or +1.
      swinging: bool, whether the last change was an oscillation.
      extreme: floating, extreme of the latent since the last change, in its direction.
      turn: floating, where the last oscillation turned.
      amplitude: floating, the largest swing so far; 0 without an oscillation.
      frequency: floating, moving average f ← d f + (1 - d) o, with o = 1 in a step with an oscillation, otherwise 0.

    References:
      Nagel, Fournarakis, Bondarenko, Blankevoort, Overcoming Oscillations in Quantization-Aware Training, ICML 2022,
      Section 4 (oscillations and their frequency).
    """

    codes: jax.Array
    direction: jax.Array
    swinging: jax.Array
    extreme: jax.Array
    turn: jax.Array
    amplitude: jax.Array
    frequency: jax.Array


def start(codes: jax.Array, dtype: jnp.dtype) -> Followed:
    """Weights with these codes and no change so far; floating fields have this dtype."""
    # Arrays of their own, so that the state can be donated.
    extreme, turn, amplitude, frequency = (jnp.zeros_like(codes, dtype) for _ in range(4))
    direction, swinging = jnp.zeros_like(codes, jnp.int8), jnp.zeros_like(codes, bool)
    return Followed(codes, direction, swinging, extreme, turn, amplitude, frequency)


def follow(before: Followed, codes: jax.Array, latents: jax.Array, decay: float) -> Followed:
    """One step.

    Args:
      before: what is remembered of earlier steps.
      codes: the codes of this step.
      latents: the full-precision weights of this step.
      decay: d in the moving average of the frequency.
    """
    latents = latents.astype(before.extreme.dtype)
    changed = codes != before.codes
    direction, oscillated = code_changes.turn(before.codes, codes, before.direction)
    swinging = jnp.where(changed, oscillated, before.swinging)
    turn = jnp.where(oscillated, before.extreme, before.turn)
    further = jnp.where(direction > 0, jnp.maximum(before.extreme, latents), jnp.minimum(before.extreme, latents))
    extreme = jnp.where(changed, latents, further)
    swing = jnp.where(swinging, direction.astype(extreme.dtype) * (extreme - turn), 0)
    amplitude = jnp.maximum(before.amplitude, swing)
    frequency = code_changes.frequency_after(before.frequency, oscillated, decay)
    return Followed(codes, direction, swinging, extreme, turn, amplitude, frequency)


def strides(shape: tuple[int, ...], sample: int | None) -> tuple[slice, ...]:
    """Slices with regular strides along the axes that take at most `sample` numbers, or all where it is None.

    The stride of the axis with the most numbers left is doubled until they are few enough: powers of two, so that
    evenly sharded axes stay evenly sharded.

    Example:
      >>> [s.step for s in strides((3, 3, 20, 50), 1000)]
      [1, 1, 2, 8]
    """
    steps, counts = [1] * len(shape), list(shape)
    while sample is not None and math.prod(counts) > sample:
        axis = counts.index(max(counts))
        steps[axis] *= 2
        counts[axis] = -(-shape[axis] // steps[axis])
    return tuple(slice(None, None, step) for step in steps)
