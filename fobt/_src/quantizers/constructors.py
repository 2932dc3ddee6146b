"""The quantizers, by their grid."""

from __future__ import annotations

import operator
from typing import get_args

from fobt._src.quantizers.granularity import Granularity, PerTensor
from fobt._src.quantizers.grid import Grid
from fobt._src.quantizers.quantizer import Quantizer, Solver


def binary(*, granularity: Granularity = PerTensor(), stacked: int = 0) -> Quantizer:  # noqa: B008 - immutable
    """One bit: codes -1 and +1, with the scale α = Σ C|w| / Σ C.

    Args:
      granularity: which weights share a scale.
      stacked: leading axes along which tensors are stacked, such as seeds or the layers of a scan; see `Quantizer`.

    Returns:
      The quantizer.

    Raises:
      ValueError: `granularity` is not one.

    Example:
      >>> import fobt
      >>> fobt.binary()([0.5, -1.5], curvature=[3.0, 1.0]).dequantize()
      Array([ 0.75, -0.75], dtype=float32)
    """
    return _make(Grid("binary", 1), granularity, "candidates", stacked)


def ternary(
    *,
    scale_per_sign: bool = False,
    solver: Solver = "candidates",
    granularity: Granularity = PerTensor(),  # noqa: B008 - immutable
    stacked: int = 0,
) -> Quantizer:
    """Ternary weights: codes -1, 0 and +1, stored in two bits; LAT, and with two scales LAT2.

    Args:
      scale_per_sign: whether positive and negative weights have a scale each, and are projected separately.
      solver: "exact", "candidates" or "alternating", see `Quantizer`.
      granularity: which weights share a scale.
      stacked: leading axes along which tensors are stacked, such as seeds or the layers of a scan; see `Quantizer`.

    Returns:
      The quantizer.

    Raises:
      ValueError: an argument is not one of these.

    Example:
      >>> import fobt
      >>> fobt.ternary(scale_per_sign=True)([4.0, 2.0, -1.0, 0.1]).dequantize()
      Array([ 3.,  3., -1.,  0.], dtype=float32)
    """
    if not isinstance(scale_per_sign, bool):
        raise ValueError(f"scale_per_sign must be True or False, got {scale_per_sign!r}.")
    return _make(Grid("linear", 2), granularity, solver, stacked, scales=2 if scale_per_sign else 1)


def linear(
    bits: int,
    *,
    solver: Solver = "candidates",
    granularity: Granularity = PerTensor(),  # noqa: B008 - immutable
    stacked: int = 0,
) -> Quantizer:
    """Equally spaced levels {0, ±1/n, ..., ±1}, n = 2^(bits-1) - 1. Two bits are ternary.

    Args:
      bits: 2 to 8.
      solver: "exact", "candidates" or "alternating", see `Quantizer`.
      granularity: which weights share a scale.
      stacked: leading axes along which tensors are stacked, such as seeds or the layers of a scan; see `Quantizer`.

    Returns:
      The quantizer.

    Raises:
      ValueError: an argument is not one of these.

    Example:
      >>> import fobt
      >>> quantized = fobt.linear(3)([3.0, -1.0, 0.2, 2.0])
      >>> quantized.codes, quantized.scale
      (Array([ 3, -1,  0,  2], dtype=int8), Array(3., dtype=float32))
    """
    return _make(Grid("linear", _checked_bits(bits, 8)), granularity, solver, stacked)


def logarithmic(
    bits: int,
    *,
    solver: Solver = "candidates",
    granularity: Granularity = PerTensor(),  # noqa: B008 - immutable
    stacked: int = 0,
) -> Quantizer:
    """Powers of two {0, ±2^-(n-1), ..., ±1/2, ±1}, n = 2^(bits-1) - 1. Two bits are ternary.

    Args:
      bits: 2 to 5.
      solver: "exact", "candidates" or "alternating", see `Quantizer`.
      granularity: which weights share a scale.
      stacked: leading axes along which tensors are stacked, such as seeds or the layers of a scan; see `Quantizer`.

    Returns:
      The quantizer.

    Raises:
      ValueError: an argument is not one of these.

    Example:
      >>> import fobt
      >>> quantized = fobt.logarithmic(3)([4.0, -1.0, 0.1, 2.0])
      >>> quantized.codes, quantized.scale
      (Array([ 3, -1,  0,  2], dtype=int8), Array(4., dtype=float32))
    """
    return _make(Grid("logarithmic", _checked_bits(bits, 5)), granularity, solver, stacked)


def _make(grid: Grid, granularity: Granularity, solver: Solver, stacked: int, scales: int = 1) -> Quantizer:
    if not isinstance(granularity, Granularity):
        raise ValueError(f"granularity must be made by per_tensor, per_channel or per_block, got {granularity!r}.")
    if solver not in get_args(Solver):
        raise ValueError(f"solver must be one of {get_args(Solver)}, got {solver!r}.")
    if isinstance(stacked, bool) or not hasattr(stacked, "__index__") or stacked < 0:
        raise ValueError(f"stacked must be an integer of at least 0, got {stacked!r}.")
    count = operator.index(stacked)
    return Quantizer(grid, granularity.stacked(count), solver, scales, count)


def _checked_bits(bits: int, largest: int) -> int:
    if isinstance(bits, bool) or not hasattr(bits, "__index__") or not 2 <= bits <= largest:
        raise ValueError(f"bits must be an integer from 2 to {largest}, got {bits!r}.")
    return operator.index(bits)
