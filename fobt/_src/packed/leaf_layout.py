"""How a quantized leaf is stored, and what follows from it: bytes of codes, shape and dtype of the scale."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from fobt._src.packed.layout import Encoding, stored_bytes

# Of each spacing, the bits that its grids may have.
_GRIDS: Mapping[str, range] = {"binary": range(1, 2), "linear": range(2, 9), "logarithmic": range(2, 6)}
# Of each dtype of quantized weights, that of their scale.
_SCALE_DTYPES = {"float16": "float32", "bfloat16": "float32", "float32": "float32", "float64": "float64"}
_LARGEST_RANK = 32
# Of a shape, with lengths of 0 counted as 1, and of a block: within what NumPy can index, and beyond any memory.
_LARGEST_SIZE = 2**48


@dataclasses.dataclass(frozen=True)
class LeafLayout:
    """What a file says of a quantized leaf; `PackedArray` describes the fields.

    Raises:
      ValueError: a field has a value that no writer gives it.
    """

    shape: tuple[int, ...]
    spacing: str
    bits: int
    granularity: Mapping[str, Any]
    scales: int
    dtype: str
    encoding: Encoding

    def __post_init__(self) -> None:
        """Checks every field, so that what follows from them can be computed."""
        require(_is_shape(self.shape), "shape", self.shape, "of integers of at least 0, and not too large")
        require(isinstance(self.spacing, str) and self.spacing in _GRIDS, "spacing", self.spacing, f"of {(*_GRIDS,)}")
        bits = _GRIDS[self.spacing]
        require(_is_integer(self.bits) and self.bits in bits, "bits", self.bits, f"from {bits[0]} to {bits[-1]}")
        encodings = ("bits", "base3") if self.bits == 2 else ("bits",)
        require(self.encoding in encodings, "encoding", self.encoding, f"of {encodings}")
        counts = (1, 2) if self.bits == 2 else (1,)
        require(_is_integer(self.scales) and self.scales in counts, "scales", self.scales, f"of {counts}")
        dtypes = tuple(_SCALE_DTYPES)
        require(isinstance(self.dtype, str) and self.dtype in dtypes, "dtype", self.dtype, f"of {dtypes}")
        allowed = "per tensor, per channel or per block, with axes that the shape has"
        require(_is_granularity(self.granularity, len(self.shape)), "granularity", self.granularity, allowed)

    @property
    def code_bytes(self) -> int:
        """Bytes that the codes take."""
        return stored_bytes(math.prod(self.shape), self.bits, self.encoding)

    @property
    def scale_dtype(self) -> str:
        """The dtype of the scale."""
        return _SCALE_DTYPES[self.dtype]

    @property
    def scale_shape(self) -> tuple[int, ...]:
        """The shape of the scale."""
        lengths = () if self.granularity["per"] == "tensor" else self.axis_lengths_of_scale
        return lengths if self.scales == 1 else (2, *lengths)

    @property
    def axis_lengths_of_scale(self) -> tuple[int, ...]:
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


def require(holds: bool, name: str, value: object, allowed: str) -> None:
    """Raises a ValueError that names a field, its value and what is allowed."""
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
