"""Matrix products with packed weights, of which a block of rows at a time is unpacked."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from fobt._src.packed.layout import group_of, stored_bytes, unpack_codes
from fobt._src.packed.packing import Packed
from fobt._src.quantizers.granularity import PerBlock, PerTensor

# Weights that are unpacked at a time: half a megabyte in float32, which stays in the cache of a core.
_BLOCK = 2**17
# Indices have 32 bits.
_LARGEST_INDEX = 2**31 - 1


def packed_matmul(x: ArrayLike, packed: Packed) -> jax.Array:
    """The product x @ packed.dequantize(), without the dequantized weights ever being in memory as a whole.

    The rows of the weights are unpacked in blocks of about 2¹⁷ weights, in a loop that adds up the products, so that
    beside x and the result the packed weights and one block are in memory. Products are accumulated in float32 or
    wider. A scale per tensor or per output multiplies the result, others the block. For inference: a gradient with
    respect to x would keep all blocks.

    It saves memory, not time. On a CPU a product with one row of x takes 2 to 16 times as long as one with float32
    weights, because every weight is unpacked for it, and with 100 rows up to 2.5 times. Files of
    `fobt.export.to_onnx(..., form="fast")` are faster than float32.

    Args:
      x: floating, shape (..., inputs).
      packed: packed weights of shape (inputs, outputs), as `pack` makes them of the kernel of a dense layer.

    Returns:
      The product, shape (..., outputs), in the common dtype of x and the weights.

    Raises:
      ValueError: `packed` is no `Packed` of rank 2, or it has 2³¹ or more inputs or outputs; `x` is not floating, or it
        does not fit.

    Example:
      >>> import fobt
      >>> import jax.numpy as jnp
      >>> packed = fobt.packed.pack(fobt.binary()([[1.0, -3.0], [2.0, 2.0], [-2.0, 2.0]]))
      >>> fobt.packed.packed_matmul(jnp.array([1.0, 2.0, 3.0]), packed)
      Array([0., 8.], dtype=float32)
    """
    x = jnp.asarray(x)
    if not isinstance(packed, Packed) or len(packed.shape) != 2:
        got = f"shape {packed.shape}" if isinstance(packed, Packed) else type(packed).__name__
        raise ValueError(f"packed must be a Packed of rank 2, as fobt.packed.pack makes it of a kernel, got {got}.")
    inputs, outputs = packed.shape
    if max(packed.shape) > _LARGEST_INDEX:
        raise ValueError(f"packed must have less than 2³¹ inputs and outputs, got shape {packed.shape}.")
    if not jnp.issubdtype(x.dtype, jnp.floating) or x.ndim == 0 or x.shape[-1] != inputs:
        raise ValueError(f"x must be floating, of shape (..., {inputs}), got {x.dtype} of shape {x.shape}.")
    dtype = jnp.result_type(x.dtype, packed.dtype)
    wide = np.promote_types(dtype, jnp.float32)
    grid = packed.grid
    # In this form each code is an integer or a power of two, which the narrowest floating types hold exactly.
    unit = 1 if grid.spacing == "logarithmic" else grid.max_code
    scale_comes_last = packed.scales == 1 and _lengths(packed) in ((1, 1), (1, outputs))

    def product(data: jax.Array, first: int | jax.Array, count: int) -> jax.Array:
        """The product with `count` rows, from row `first` on, whose bytes are `data`."""
        codes = unpack_codes(data, (count, outputs), grid.spacing, grid.bits, packed.encoding).astype(wide)
        rows = first + jnp.arange(count)
        alpha = jnp.asarray(unit, wide) if scale_comes_last else _scale_of_rows(packed, rows, codes)
        weights = grid.dequantize(codes, alpha).astype(dtype)
        part = jax.lax.dynamic_slice_in_dim(x, first, count, axis=-1).astype(dtype)
        return jnp.matmul(part, weights, preferred_element_type=wide)

    fields_per_group, _ = group_of(grid.bits, packed.encoding)
    block = max(1, _BLOCK // max(1, outputs * fields_per_group)) * fields_per_group
    blocks, rest = divmod(inputs, block)
    block_bytes = stored_bytes(block * outputs, grid.bits, packed.encoding)

    def add_blocks(total: jax.Array, start: int, stop: int) -> jax.Array:
        """The total and the products with these blocks of rows."""
        part = packed.codes
        if stop - start < blocks:  # Otherwise the slice would be a copy of nearly all of the codes.
            part = part[start * block_bytes : stop * block_bytes]

        def add_block(i: jax.Array, total: jax.Array) -> jax.Array:
            data = jax.lax.dynamic_slice_in_dim(part, i * block_bytes, block_bytes)
            return total + product(data, (start + i) * block, block)

        return jax.lax.fori_loop(0, stop - start, add_block, total)

    result = jnp.zeros((*x.shape[:-1], outputs), wide)
    blocks_at_a_time = max(1, _LARGEST_INDEX // max(1, block_bytes))
    for start in range(0, blocks, blocks_at_a_time):
        result = add_blocks(result, start, min(start + blocks_at_a_time, blocks))
    if rest:
        result = result + product(packed.codes[blocks * block_bytes :], blocks * block, rest)
    if scale_comes_last:
        result = result * (packed.scale.reshape((1,) * (result.ndim - 1) + (-1,)) / unit)
    return result.astype(dtype)


def _lengths(packed: Packed) -> tuple[int, ...]:
    """The shape of one scale, with an axis for each of the weights'."""
    return (1, 1) if isinstance(packed.granularity, PerTensor) else packed.scale.shape[-2:]


def _scale_of_rows(packed: Packed, rows: jax.Array, codes: jax.Array) -> jax.Array:
    """The scale of each weight in these rows, given their codes."""
    split, lengths = packed.granularity, _lengths(packed)
    scale = packed.scale.reshape(packed.scales, *lengths)
    for axis, positions in enumerate((rows, jnp.arange(packed.shape[1]))):
        if lengths[axis] > 1:
            size = split.size if isinstance(split, PerBlock) and split.axis % 2 == axis else 1
            scale = jnp.take(scale, positions // size, axis + 1)
    return scale[0] if packed.scales == 1 else jnp.where(codes < 0, scale[1], scale[0])
