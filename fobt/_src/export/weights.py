"""A quantized leaf on its way into the file of another runtime."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from fobt._src.packed.layout import pack_fields
from fobt._src.quantizers.granularity import PerBlock, PerTensor
from fobt._src.quantizers.grid import Grid
from fobt._src.quantizers.quantized import Quantized


@dataclasses.dataclass(frozen=True)
class Weights:
    """A quantized leaf whose axes can still be put into another order.

    Attributes:
      name: its path in the tree; with a number behind it for one row of it.
      codes: the codes, int8.
      scales: α, or those of positive and of negative codes; of the rank of the codes, each axis of size 1, of full
        size, or, along `block_axis`, one for `block_size` weights.
      grid: the grid.
      dtype: that of the weights.
      order: for each axis the axis of the leaf that it is.
      reversed_axes: the axes of the leaf along which it is backwards.
      block_axis: the axis of the blocks, if there are any.
      block_size: the weights in a block.
    """

    name: str
    codes: np.ndarray
    scales: tuple[np.ndarray, ...]
    grid: Grid
    dtype: np.dtype
    order: tuple[int, ...]
    reversed_axes: frozenset[int] = frozenset()
    block_axis: int | None = None
    block_size: int = 0

    @classmethod
    def of(cls, name: str, quantized: Quantized) -> Weights:
        """A quantized leaf."""
        if quantized.dtype == jnp.float64:
            raise ValueError(
                f"quantized must not hold float64 weights, which the runtime cannot dequantize, got {name!r}."
            )
        codes, scale, split = np.asarray(quantized.codes), np.asarray(quantized.scale), quantized.granularity
        scales = (scale,) if quantized.scales == 1 else tuple(scale)
        if isinstance(split, PerTensor):
            scales = tuple(scale.reshape((1,) * codes.ndim) for scale in scales)
        blocks: dict[str, Any] = {}
        if isinstance(split, PerBlock):
            blocks = {"block_axis": split.axis % codes.ndim, "block_size": split.size}
        order = tuple(range(codes.ndim))
        return cls(name, codes, scales, quantized.grid, np.dtype(quantized.dtype), order, **blocks)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weights."""
        return self.codes.shape

    def transpose(self, permutation: Sequence[int]) -> Weights:
        """The weights with their axes in another order."""
        return dataclasses.replace(
            self,
            codes=self.codes.transpose(permutation),
            scales=tuple(scale.transpose(permutation) for scale in self.scales),
            order=tuple(self.order[axis] for axis in permutation),
            block_axis=None if self.block_axis is None else list(permutation).index(self.block_axis),
        )

    def reverse(self, axes: Sequence[int]) -> Weights | None:
        """The weights backwards along some axes, or None where a shorter last block would come first."""
        if self.block_axis is not None and self.block_axis in axes and self.shape[self.block_axis] % self.block_size:
            return None
        return dataclasses.replace(
            self,
            codes=np.flip(self.codes, tuple(axes)),
            scales=tuple(np.flip(scale, tuple(axes)) for scale in self.scales),
            reversed_axes=self.reversed_axes ^ {self.order[axis] for axis in axes},
        )

    def row(self, index: int) -> Weights | None:
        """The weights at an index of the first axis, as a leaf by itself; None where the axes were changed before."""
        if self.order != tuple(range(len(self.shape))) or self.reversed_axes or self.block_axis == 0:
            return None
        return dataclasses.replace(
            self,
            name=f"{self.name}/{index}",
            codes=self.codes[index],
            scales=tuple(scale[min(index, len(scale) - 1)] for scale in self.scales),
            order=self.order[:-1],
            block_axis=None if self.block_axis is None else self.block_axis - 1,
        )

    @property
    def steps(self) -> tuple[np.ndarray, ...]:
        """The weight of code 1 on linear grids, α/n, rounded as `Quantized.dequantize` does; α on logarithmic ones."""
        divisor = np.float32(1 if self.grid.spacing == "logarithmic" else self.grid.max_code)
        return tuple((scale / divisor).astype(np.float32) for scale in self.scales)


def integer_bytes(integers: np.ndarray, bits: int) -> np.ndarray:
    """Integers, int8, in C order, as their lowest 2, 4 or 8 bits in two's complement, low bits of a byte first."""
    return pack_fields(integers.ravel().view(np.uint8) & np.uint8(2**bits - 1), bits, "bits")


def numbered(stem: str, count: int) -> list[str]:
    """The names of the inputs or outputs of a model: the stem, with a number behind it where there are several."""
    return [stem] if count == 1 else [f"{stem}_{i}" for i in range(count)]


def warn_of_unused(leaves: Sequence[str]) -> None:
    """Warns of quantized leaves that an exported function does not use."""
    if leaves:
        warnings.warn(f"function does not use the leaves {leaves}, which are left out of the model.", stacklevel=3)
