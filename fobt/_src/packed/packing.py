"""Packed weights: the codes of quantized weights in as many bits as the grid needs."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from fobt._src.base.flax_serialization import FlaxSerializable
from fobt._src.packed.layout import Encoding, pack_codes, unpack_codes
from fobt._src.quantizers.granularity import Granularity
from fobt._src.quantizers.grid import Grid
from fobt._src.quantizers.quantized import Quantized


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Packed(FlaxSerializable):
    """Quantized weights whose codes are packed: what takes the promised number of bits in memory and in a file.

    A registered dataclass like `Quantized`: it passes through `jax.jit`, where it may be unpacked, and `jax.vmap`.
    `pack` makes it; the invariants below are not checked again.

    Attributes:
      codes: uint8 of rank 1, the packed codes. A code c is stored as the unsigned field u = c + n, with n the grid's
        largest code, on the binary grid as u = (c + 1)/2. The fields of all codes in C order are one stream:

          - encoding "bits": fields of `grid.bits` bits, the least significant bit first, packed little-endian;
          - encoding "base3", for ternary grids: five fields a byte, Σᵢ uᵢ 3ⁱ, that is 1.6 bits a code.

        What is left of the last byte holds zeros.
      scale: as in `Quantized`.
      shape: the shape of the weights, static.
      grid: as in `Quantized`, and so are `granularity`, `scales` and `dtype`; static.
      granularity: which weights share a scale.
      scales: 1 or 2.
      dtype: what `dequantize` returns.
      encoding: "bits" or "base3", static.

    Example:
      >>> import fobt
      >>> packed = fobt.packed.pack(fobt.binary()([0.5, -0.5, -0.5, 0.5]))
      >>> packed.codes
      Array([9], dtype=uint8)
      >>> packed.dequantize()
      Array([ 0.5, -0.5, -0.5,  0.5], dtype=float32)
    """

    codes: jax.Array
    scale: jax.Array
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    grid: Grid = dataclasses.field(metadata={"static": True})
    granularity: Granularity = dataclasses.field(metadata={"static": True})
    scales: int = dataclasses.field(metadata={"static": True})
    dtype: jnp.dtype = dataclasses.field(metadata={"static": True})
    encoding: Encoding = dataclasses.field(metadata={"static": True})

    def unpack(self) -> Quantized:
        """The quantized weights with int8 codes: the inverse of `pack`."""
        return Quantized(
            codes=unpack_codes(_replicated(self.codes), self.shape, self.grid.spacing, self.grid.bits, self.encoding),
            scale=self.scale,
            grid=self.grid,
            granularity=self.granularity,
            scales=self.scales,
            dtype=self.dtype,
        )

    def dequantize(self) -> jax.Array:
        """The weights that the codes and scales stand for, as `Quantized.dequantize` gives them."""
        return self.unpack().dequantize()


def pack(tree: Any, *, base3: bool = True) -> Any:
    """The tree with every `Quantized` in it replaced by a `Packed`: codes of `grid.bits` bits, or 1.6 if ternary.

    The codes must be on their grid, as those of a quantizer are. Under `jax.jit` and `jax.vmap` it is one computation
    per leaf, linear in time and memory. The codes of a sharded leaf are gathered, because they become one stream.

    Args:
      tree: what `quantize` or `lapq` returned, or one `Quantized`; shapes of any rank, also empty ones.
      base3: whether ternary codes, those of grids of two bits, are stored five to a byte in base 3; otherwise they take
        two bits each, as other runtimes want them.

    Returns:
      The packed tree.

    Example:
      >>> import fobt
      >>> quantized = fobt.ternary()([1.0, 0.0, -1.0, 1.0, 0.1])
      >>> fobt.packed.pack(quantized).codes  # 2 + 1·3 + 0·9 + 2·27 + 1·81
      Array([140], dtype=uint8)
      >>> fobt.packed.pack(quantized, base3=False).codes  # 2 + 1·4 + 0·16 + 2·64, and 1
      Array([134,   1], dtype=uint8)
      >>> fobt.packed.unpack(fobt.packed.pack(quantized)).codes
      Array([ 1,  0, -1,  1,  0], dtype=int8)
    """
    return jax.tree.map(
        lambda leaf: _pack(leaf, base3) if isinstance(leaf, Quantized) else leaf,
        tree,
        is_leaf=lambda leaf: isinstance(leaf, Quantized | Packed),
    )


def unpack(tree: Any) -> Any:
    """The tree with every `Packed` in it replaced by the `Quantized` that was packed.

    Args:
      tree: what `pack` returned.

    Returns:
      The tree with int8 codes.

    Example:
      >>> import fobt
      >>> fobt.packed.unpack({"kernel": fobt.packed.pack(fobt.binary()([0.5, -0.5]))})["kernel"].codes
      Array([ 1, -1], dtype=int8)
    """
    return jax.tree.map(
        lambda leaf: leaf.unpack() if isinstance(leaf, Packed) else leaf,
        tree,
        is_leaf=lambda leaf: isinstance(leaf, Quantized | Packed),
    )


def encoding_of(bits: int, base3: bool) -> Encoding:
    """How codes of so many bits are stored."""
    return "base3" if base3 and bits == 2 else "bits"


def _pack(quantized: Quantized, base3: bool) -> Packed:
    grid, encoding = quantized.grid, encoding_of(quantized.grid.bits, base3)
    return Packed(
        codes=pack_codes(_replicated(quantized.codes), grid.spacing, grid.bits, encoding),
        scale=quantized.scale,
        shape=quantized.codes.shape,
        grid=grid,
        granularity=quantized.granularity,
        scales=quantized.scales,
        dtype=quantized.dtype,
        encoding=encoding,
    )


def _replicated(x: jax.Array) -> jax.Array:
    """The array itself, or where its mesh has explicit axes, over which no reshape goes, a copy on every device."""
    mesh = jax.typeof(x).sharding.mesh
    if not mesh.explicit_axes:
        return x
    return jax.sharding.reshard(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*(None,) * x.ndim)))
