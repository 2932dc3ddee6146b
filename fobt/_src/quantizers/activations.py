"""Activations of few bits: fake quantization with a straight-through gradient, and the range that it needs.

A range is a pair (low, high), which always takes in zero. It is state, a moving average of what was seen, or a
parameter, which has a gradient here.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from fobt._src.base.checks import check_floating, check_number

_SMALLEST_SCALE = 2.0**-100  # of a range without width; its square is still a number of float32
# The name of the jitted function that rounds, by which an export finds it: (x, scale, zero point, largest code) -> x̂.
MARKER = "fobt_fake_quantize"


def fake_quantize(x: ArrayLike, range: ArrayLike, *, bits: int = 8, symmetric: bool = False) -> jax.Array:
    """Activations rounded to the levels of an integer type, in floating numbers: x̂ = s (q - z).

    With s > 0 the scale, z the zero point and q = clip(round(x/s) + z, 0, 2^b - 1) the code, halves to the even number.
    Zero is a level.

    - Affine: low = min(range[0], 0), high = max(range[1], 0), s = (high - low)/(2^b - 1), z = round(-low/s).
    - Symmetric: s = max(-low, high)/(2^(b-1) - 1), z = 2^(b-1).

    ONNX's QuantizeLinear and DequantizeLinear compute the same with uint8, and, with codes and zero point smaller by
    128, with int8.

    The gradient of x̂ is straight through, 1 for s (0 - z) ≤ x ≤ s (2^b - 1 - z) and 0 outside. That for the range is
    the one of LSQ through the scale, dx̂/ds = round(x/s) - x/s inside and q - z outside, without LSQ's factor
    1/√(N 2^(b-1)), which matters for SGD and not for Adam; outside it moves the end that was exceeded. A low of exactly
    0, as behind ReLU, has no gradient and stays 0. For a range that is not learned, none of this is computed.

    Args:
      x: Activations of any shape and floating dtype; in it x̂ is returned, and in float32 it is computed. NaN stays NaN.
      range: (low, high), shape (2,), finite. One without width leaves zeros, up to 2^-92.
      bits: b, 2 to 8. Exports to ONNX and LiteRT compute with 8.
      symmetric: Whether z is fixed in the middle.

    Returns:
      x̂, of the shape and dtype of x.

    Raises:
      ValueError: `bits` is no integer from 2 to 8, `range` has another shape, or x has no floating dtype.

    Example:
      >>> import fobt
      >>> import jax.numpy as jnp
      >>> fobt.fake_quantize(jnp.array([-2.0, 0.0, 0.3, 9.0]), jnp.array([-1.0, 2.0]), bits=2)
      Array([-1.,  0.,  0.,  2.], dtype=float32)

    References:
      Jacob, Kligys, Chen, Zhu, Tang, Howard, Adam, Kalenichenko, Quantization and Training of Neural Networks for
      Efficient Integer-Arithmetic-Only Inference, CVPR 2018, [arXiv:1712.05877](https://arxiv.org/abs/1712.05877),
      Section 3 (affine levels, ranges).
      Esser, McKinstry, Bablani, Appuswamy, Modha, Learned Step Size Quantization, ICLR 2020,
      [arXiv:1902.08153](https://arxiv.org/abs/1902.08153), Eq. 3 (gradient for the scale).
      Bhalgat, Lee, Nagel, Blankevoort, Kwak, LSQ+, 2020, [arXiv:2004.09576](https://arxiv.org/abs/2004.09576), Section
      3.1 (for an offset as well).
    """
    check_number("bits", bits, "an integer from 2 to 8", lambda b: b in np.arange(2, 9))
    x, range = jnp.asarray(x), jnp.asarray(range, jnp.float32)
    check_floating("x", x.dtype)
    if range.shape != (2,):
        raise ValueError(f"range must have shape (2,), low and high, got {range.shape}.")
    top = 2**bits - 1
    low, high = jnp.where(range[0] < 0, range[0], 0.0), jnp.where(range[1] > 0, range[1], 0.0)
    # Products, because XLA makes them of quotients under `jax.jit` alone, which round differently.
    if symmetric:
        scale = jnp.where(-low > high, -low, high) * np.float32(1 / (top // 2))
    else:
        scale = (high - low) * np.float32(1 / top)
    scale = jnp.where(scale > _SMALLEST_SCALE, scale, _SMALLEST_SCALE)
    zero = jnp.float32(top // 2 + 1) if symmetric else _round(-low / scale)
    return _levels(x, scale, zero, jnp.float32(top))


def _nearest_levels(x: jax.Array, scale: jax.Array, zero: jax.Array, top: jax.Array) -> jax.Array:
    # In front of the division, so that no quotient is infinite, here or in the gradient.
    lowest, highest = scale * -zero, scale * (top - zero)
    inside = x.astype(jnp.float32)
    inside = jnp.where(inside < lowest, lowest, inside)
    inside = jnp.where(inside > highest, highest, inside)
    # XLA may multiply by the reciprocal of a divisor that is one for all, and round halves of a level otherwise.
    divisor = jnp.where(jnp.isnan(inside), 1.0, scale)
    return (_round(inside / divisor) * scale).astype(x.dtype)


_nearest_levels.__name__ = MARKER
_levels = jax.jit(_nearest_levels)


def _round(x: jax.Array) -> jax.Array:
    """The nearest integer, with the gradient of x; the sum is exact."""
    return x + jax.lax.stop_gradient(jnp.round(x) - x)


def moving_average_range(range: ArrayLike, x: ArrayLike, decay: ArrayLike) -> jax.Array:
    """The range of activations that were seen, for `fake_quantize`: decay · range + (1 - decay) · (min x, max x).

    Zero counts as seen, and what is not finite does not. No gradient passes.

    Args:
      range: (low, high), shape (2,).
      x: Activations of any shape and floating dtype.
      decay: Share of the range that stays, in [0, 1]. The modules of `fobt.linen` and `fobt.nnx` begin with 0 and
        t/(t + 1), an average over all batches, until this reaches their decay.

    Returns:
      The range, float32, shape (2,).

    Raises:
      ValueError: `decay` is not in [0, 1].

    Example:
      >>> import fobt
      >>> import jax.numpy as jnp
      >>> fobt.moving_average_range(jnp.array([-1.0, 2.0]), jnp.array([0.5, 4.0, jnp.nan]), 0.5)
      Array([-0.5,  3. ], dtype=float32)
    """
    check_number("decay", decay, "in [0, 1]", lambda m: 0 <= m <= 1)
    x = jax.lax.stop_gradient(jnp.asarray(x).astype(jnp.float32))
    x = jnp.where(jnp.isfinite(x), x, 0.0)
    seen = jnp.stack([jnp.min(x, initial=0.0), jnp.max(x, initial=0.0)])
    decay = jnp.asarray(decay, jnp.float32)
    return decay * jnp.asarray(range, jnp.float32) + (1 - decay) * seen
