"""Integers with a scale for each block, as ggml lays them out: TQ1_0, TQ2_0 and Q4_0.

Weights are a row of blocks; d is the scale of a block, float16, and weight = d · integer. The layouts are those of
ggml's `block_tq1_0`, `block_tq2_0` and `block_q4_0` (ggml/src/ggml-common.h).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np


@dataclasses.dataclass(frozen=True)
class BlockType:
    """A tensor type of ggml.

    Attributes:
      number: its number in files.
      size: the weights of a block.
      lowest: the lowest integer.
      highest: the highest integer.
      encode: from integers, int8 [blocks, size], and scales, float16 [blocks], to bytes, uint8 [blocks, bytes].
    """

    number: int
    size: int
    lowest: int
    highest: int
    encode: Callable[[np.ndarray, np.ndarray], np.ndarray]


def _q4_0(integers: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """The scale, then 16 bytes: field integer + 8 of the first half of the block in low bits, of the second in high."""
    fields = (integers + 8).astype(np.uint8)
    return np.concatenate([_bytes_of(scales), fields[:, :16] | fields[:, 16:] << 4], axis=1)


def _tq2_0(integers: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Two times 32 bytes, in byte j the fields integer + 1 of weights j, j + 32, j + 64 and j + 96; then the scale."""
    fields = (integers + 1).astype(np.uint8).reshape(-1, 2, 4, 32)
    shifted = fields << np.array([0, 2, 4, 6], np.uint8)[:, None]
    return np.concatenate([np.bitwise_or.reduce(shifted, axis=2).reshape(-1, 64), _bytes_of(scales)], axis=1)


def _tq1_0(integers: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Bytes of five fields in base 3, and 4 bytes of four fields, as fractions of 3^5; then the scale.

    Fields are integer + 1; those of a byte are 32, then 16, then 4 weights apart, the first one the most significant.
    """
    fields, parts = (integers + 1).astype(np.uint16), []
    for begin, end, apart in ((0, 160, 32), (160, 240, 16), (240, 256, 4)):
        groups = fields[:, begin:end].reshape(len(fields), -1, apart)
        powers = 3 ** np.arange(4, 4 - groups.shape[1], -1, dtype=np.uint16)
        parts.append(np.sum(groups * powers[:, None], axis=1, dtype=np.uint16))
    # ceil(256 v / 243), of which the digits come back by multiplications with 3.
    fractions = (np.concatenate(parts, axis=1) * 256 + 242) // 243
    return np.concatenate([fractions.astype(np.uint8), _bytes_of(scales)], axis=1)


def _bytes_of(scales: np.ndarray) -> np.ndarray:
    return scales.astype("<f2").view(np.uint8).reshape(-1, 2)


TYPES: Mapping[str, BlockType] = MappingProxyType(
    {
        "Q4_0": BlockType(2, 32, -8, 7, _q4_0),
        "TQ1_0": BlockType(34, 256, -1, 1, _tq1_0),
        "TQ2_0": BlockType(35, 256, -1, 1, _tq2_0),
    }
)
