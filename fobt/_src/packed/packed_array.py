"""A packed tensor as it lies in a file, in NumPy alone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from fobt._src.packed.layout import LARGEST_BASE3_BYTE, Encoding, max_code, unpack_all, unpack_codes
from fobt._src.packed.leaf_layout import LeafLayout, require


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
        layout = self.layout
        _check_array("codes", self.codes, "uint8", (layout.code_bytes,))
        _check_array("scale", self.scale, layout.scale_dtype, layout.scale_shape)
        require(bool(np.all(np.isfinite(self.scale))), "scale", self.scale, "finite")
        self._check_codes()

    @property
    def layout(self) -> LeafLayout:
        """All fields but codes and scale."""
        return LeafLayout(**{field.name: getattr(self, field.name) for field in dataclasses.fields(LeafLayout)})

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

    def _scale_of_each(self, codes: np.ndarray) -> np.ndarray:
        """The scale, so that it broadcasts to the codes."""
        scale = self.scale.reshape(self.scales, *self.layout.axis_lengths_of_scale)
        if self.granularity["per"] == "block":
            axis = self.granularity["axis"] % codes.ndim
            scale = np.take(scale, np.arange(codes.shape[axis]) // self.granularity["size"], axis + 1)
        return scale[0] if self.scales == 1 else np.where(codes < 0, scale[1], scale[0])

    def _check_codes(self) -> None:
        codes, n = unpack_all(self.codes, self.spacing, self.bits, self.encoding), max_code(self.spacing, self.bits)
        on_grid = not (np.any(codes > n) or np.any(codes < -n))
        if self.encoding == "base3":
            on_grid = not np.any(self.codes > LARGEST_BASE3_BYTE)
        require(on_grid, "codes", "others", f"those of the {self.spacing} grid of {self.bits} bits")
        rest = codes[math.prod(self.shape) :]  # the lowest code is stored as 0
        require(not np.any(rest > -n), "codes", "others", "followed by zeros up to the end of the last byte")


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
    require(got == allowed, name, got, allowed)
