"""A packed tensor as it lies in a file, in NumPy alone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from fobt._src.packed.layout import LARGEST_BASE3_BYTE, Encoding, max_code, stored_bytes, unpack_all, unpack_codes

# Of each spacing, the bits that its grids may have.
GRIDS: Mapping[str, range] = {"binary": range(1, 2), "linear": range(2, 9), "logarithmic": range(2, 6)}
# Of each dtype of quantized weights, that of their scale.
SCALE_DTYPES = {"float16": "float32", "bfloat16": "float32", "float32": "float32", "float64": "float64"}
_LARGEST_RANK = 32
# Of a shape, with lengths of 0 counted as 1, and of a block: within what NumPy can index, and beyond any memory.
_LARGEST_SIZE = 2**48


@dataclasses.dataclass(frozen=True, eq=False)
class PackedArray:
    """Quantized weights in NumPy arrays, packed: what `load_packed` finds in a file. It needs no JAX.

    `fobt.packed.Packed` is the same in arrays of JAX, and describes the fields.

    Attributes:
      codes: uint8 of rank 1, the packed codes.
      scale: float32 or float64.
      shape: the shape of the weights.
      spacing: "binary", "linear" or "logarithmic": how the levels of the grid are spaced.
      bits: bits of the grid.
      granularity: {"per": "tensor"}, {"per": "channel", "axes": [...]} or {"per": "block", "size": ..., "axis": ...}.
      scales: 1 or 2.
      dtype: the name of the dtype of the weights.
      encoding: "bits" or "base3".

    Raises:
      ValueError: the fields contradict each other, or a code is not one of the grid.
    """

    codes: np.ndarray
    scale: np.ndarray
    shape: tuple[int, ...]
    spacing: str
    bits: int
    granularity: Mapping[str, Any]
    scales: int
    dtype: str
    encoding: Encoding

    def __post_init__(self) -> None:
        """Checks every field, so that no contradiction in a file becomes a wrong array."""
        _require(_is_shape(self.shape), "shape", self.shape, "of integers of at least 0, and not too large")
        _require(isinstance(self.spacing, str) and self.spacing in GRIDS, "spacing", self.spacing, f"of {tuple(GRIDS)}")
        bits = GRIDS[self.spacing]
        _require(_is_integer(self.bits) and self.bits in bits, "bits", self.bits, f"from {bits[0]} to {bits[-1]}")
        encodings = ("bits", "base3") if self.bits == 2 else ("bits",)
        _require(self.encoding in encodings, "encoding", self.encoding, f"of {encodings}")
        counts = (1, 2) if self.bits == 2 else (1,)
        _require(_is_integer(self.scales) and self.scales in counts, "scales", self.scales, f"of {counts}")
        dtypes = tuple(SCALE_DTYPES)
        _require(isinstance(self.dtype, str) and self.dtype in dtypes, "dtype", self.dtype, f"of {dtypes}")
        allowed = "per tensor, per channel or per block, with axes that the shape has"
        _require(_is_granularity(self.granularity, len(self.shape)), "granularity", self.granularity, allowed)
        byte_count = stored_bytes(math.prod(self.shape), self.bits, self.encoding)
        _check_array("codes", self.codes, "uint8", (byte_count,))
        _check_array("scale", self.scale, SCALE_DTYPES[self.dtype], self._scale_shape())
        _require(bool(np.all(np.isfinite(self.scale))), "scale", self.scale, "finite")
        self._check_codes()

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scale."""
        return self.codes.nbytes + self.scale.nbytes

    def unpack(self) -> np.ndarray:
        """The codes, int8, in the shape of the weights."""
        return unpack_codes(self.codes, self.shape, self.spacing, self.bits, self.encoding)

    def dequantize(self) -> np.ndarray:
        """The weights, equal to those of `Quantized.dequantize` to rounding; as `load_packed` says if bfloat16."""
        codes, n = self.unpack(), max_code(self.spacing, self.bits)
        scale = self._scale_of_each(codes)
        signed = codes.astype(scale.dtype)
        if self.spacing == "logarithmic":
            levels = np.concatenate([[0.0], 2.0 ** np.arange(1 - n, 1)]).astype(scale.dtype)
            weights = np.sign(signed) * scale * levels[np.abs(codes)]
        else:
            weights = signed * (scale / scale.dtype.type(n))
        if self.dtype == "bfloat16":
            return bfloat16(_rounded_to_bfloat16(weights))
        with np.errstate(over="ignore"):  # float16 has less range than the scale; what is beyond is infinity, as in JAX
            return np.asarray(weights).astype(self.dtype)

    def _axis_lengths_of_scale(self) -> tuple[int, ...]:
        """The shape of one scale, with an axis for each of the weights'."""
        rank, granularity = len(self.shape), self.granularity
        if granularity["per"] == "tensor":
            return (1,) * rank
        if granularity["per"] == "channel":
            kept = {axis % rank for axis in granularity["axes"]}
            return tuple(length if axis in kept else 1 for axis, length in enumerate(self.shape))
        lengths = list(self.shape)
        axis = granularity["axis"] % rank
        lengths[axis] = -(-lengths[axis] // granularity["size"])
        return tuple(lengths)

    def _scale_shape(self) -> tuple[int, ...]:
        lengths = () if self.granularity["per"] == "tensor" else self._axis_lengths_of_scale()
        return lengths if self.scales == 1 else (self.scales, *lengths)

    def _scale_of_each(self, codes: np.ndarray) -> np.ndarray:
        """The scale, so that it broadcasts to the codes."""
        scale = self.scale.reshape(self.scales, *self._axis_lengths_of_scale())
        if self.granularity["per"] == "block":
            axis = self.granularity["axis"] % codes.ndim
            scale = np.take(scale, np.arange(codes.shape[axis]) // self.granularity["size"], axis + 1)
        return scale[0] if self.scales == 1 else np.where(codes < 0, scale[1], scale[0])

    def _check_codes(self) -> None:
        codes, n = unpack_all(self.codes, self.spacing, self.bits, self.encoding), max_code(self.spacing, self.bits)
        on_grid = not (np.any(codes > n) or np.any(codes < -n))
        if self.encoding == "base3":
            on_grid = not np.any(self.codes > LARGEST_BASE3_BYTE)
        _require(on_grid, "codes", "others", f"those of the {self.spacing} grid of {self.bits} bits")
        rest = codes[math.prod(self.shape) :]  # the lowest code is stored as 0
        _require(not np.any(rest > -n), "codes", "others", "followed by zeros up to the end of the last byte")


def bfloat16(bits: np.ndarray) -> np.ndarray:
    """Numbers given by their 16 bits: bfloat16 where ml_dtypes is installed, as it is with JAX, otherwise float32."""
    try:
        import ml_dtypes
    except ModuleNotFoundError:
        return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return bits.view(ml_dtypes.bfloat16)


def _rounded_to_bfloat16(x: np.ndarray) -> np.ndarray:
    """The upper 16 bits of finite float32 numbers, after rounding to nearest, ties to even."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)


def _check_array(name: str, array: np.ndarray, dtype: str, shape: tuple[int, ...]) -> None:
    got, allowed = (
        f"an array of {kind} and shape {lengths}" for kind, lengths in ((array.dtype, array.shape), (dtype, shape))
    )
    _require(got == allowed, name, got, allowed)


def _require(holds: bool, name: str, value: object, allowed: str) -> None:
    if not holds:
        got = value if isinstance(value, str) else repr(value)
        raise ValueError(f"{name} must be {allowed}, got {got:.200}")


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_shape(shape: object) -> bool:
    if not isinstance(shape, tuple) or len(shape) > _LARGEST_RANK:
        return False
    lengths = [length for length in shape if _is_integer(length) and length >= 0]
    return len(lengths) == len(shape) and math.prod(max(1, length) for length in lengths) <= _LARGEST_SIZE


def _is_granularity(granularity: object, rank: int) -> bool:
    def is_axis(axis: object) -> bool:
        return isinstance(axis, int) and _is_integer(axis) and -rank <= axis < rank

    match granularity:
        case {"per": "tensor", **others}:
            return not others
        case {"per": "channel", "axes": list(axes), **others}:
            return not others and len(axes) > 0 and all(map(is_axis, axes))
        case {"per": "block", "size": int(size), "axis": axis, **others}:
            return not others and _is_integer(size) and 1 <= size <= _LARGEST_SIZE and is_axis(axis)
    return False
