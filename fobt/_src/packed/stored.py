"""Leaves of a packed file as leaves of trees of JAX, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fobt._src.packed.layout import pack_codes
from fobt._src.packed.packed_array import PackedArray
from fobt._src.packed.packing import Packed, encoding_of
from fobt._src.quantizers.granularity import Granularity, PerBlock, PerChannel, PerTensor
from fobt._src.quantizers.grid import Grid
from fobt._src.quantizers.quantized import Quantized


def to_stored(path: str, leaf: Quantized | Packed) -> PackedArray:
    """Quantized weights as they lie in a file; ternary codes that are not packed yet are stored in base 3.

    Raises a ValueError that names the path where the leaf is not what a quantizer or `pack` makes.
    """
    grid = leaf.grid
    encoding = leaf.encoding if isinstance(leaf, Packed) else encoding_of(grid.bits, base3=True)
    shape = leaf.shape if isinstance(leaf, Packed) else leaf.codes.shape
    codes = np.asarray(leaf.codes)
    packed = codes if isinstance(leaf, Packed) else pack_codes(codes, grid.spacing, grid.bits, encoding)
    try:
        stored = PackedArray(
            codes=packed,
            scale=np.asarray(leaf.scale),
            shape=shape,
            spacing=grid.spacing,
            bits=grid.bits,
            granularity=described(leaf.granularity),
            scales=leaf.scales,
            dtype=jnp.dtype(leaf.dtype).name,
            encoding=encoding,
        )
        if isinstance(leaf, Quantized) and np.any(stored.unpack() != codes):
            raise ValueError(f"codes must be those of the {grid.spacing} grid of {grid.bits} bits, got others")
    except ValueError as error:
        raise ValueError(f"{path!r}: {error}.") from error
    return stored


def from_stored(path: str, leaf: PackedArray | np.ndarray) -> Packed | jax.Array:
    """A leaf of a file in arrays of JAX."""
    if not isinstance(leaf, PackedArray):
        return _to_jax(path, leaf)
    _check_representable(path, np.dtype(jnp.dtype(leaf.dtype)))
    return Packed(
        codes=_to_jax(path, leaf.codes),
        scale=_to_jax(path, leaf.scale),
        shape=leaf.shape,
        grid=Grid(leaf.spacing, leaf.bits),  # type: ignore[arg-type] # checked by PackedArray
        granularity=_granularity(leaf.granularity),
        scales=leaf.scales,
        dtype=jnp.dtype(leaf.dtype),
        encoding=leaf.encoding,
    )


def described(granularity: Granularity) -> dict[str, Any]:
    """A granularity as files describe it."""
    match granularity:
        case PerTensor():
            return {"per": "tensor"}
        case PerChannel(kept):
            return {"per": "channel", "axes": list(kept)}
        case PerBlock(size, axis):
            return {"per": "block", "size": size, "axis": axis}
    raise ValueError(f"granularity must be made by per_tensor, per_channel or per_block, got {granularity!r}")


def _granularity(described: Mapping[str, Any]) -> Granularity:
    if described["per"] == "tensor":
        return PerTensor()
    if described["per"] == "channel":
        return PerChannel(tuple(described["axes"]))
    return PerBlock(described["size"], described["axis"])


def _to_jax(path: str, array: np.ndarray) -> jax.Array:
    _check_representable(path, array.dtype)
    return jnp.asarray(array)


def _check_representable(path: str, dtype: np.dtype) -> None:
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError(
            f"{path!r} is of {dtype}, for which JAX must be set up: jax.config.update('jax_enable_x64', True)."
        )
