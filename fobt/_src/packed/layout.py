"""How integer codes lie in bytes. The functions take arrays of NumPy or of JAX, traced ones too; JAX is not imported.

A code c of a grid with codes {-n, ..., n} is stored as the field u = c + n, on the binary grid u = (c + 1)/2. The codes
of a tensor in C order are one stream of fields:

- "bits": fields of `bits` bits, the least significant bit first, packed little-endian. With 1, 2, 4 or 8 bits a byte
  holds 8/bits fields, the first one in its least significant bits; with 3, 5, 6 or 7, 8 fields take `bits` bytes.
- "base3", for two bits, whose fields are 0, 1 and 2: five fields a byte, Σᵢ uᵢ 3ⁱ, which is 1.6 bits a code.

What is left of the last byte holds fields that are zero.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

Encoding = Literal["bits", "base3"]

_PER_BYTE = 5  # 3⁵ = 243 fields in base 3
_WORDS_IN_CACHE = 2**15
LARGEST_BASE3_BYTE = 3**_PER_BYTE - 1


def max_code(spacing: str, bits: int) -> int:
    """The largest code, n."""
    return 1 if spacing == "binary" else 2 ** (bits - 1) - 1


def stored_bytes(count: int, bits: int, encoding: Encoding) -> int:
    """How many bytes `count` codes take."""
    return -(-count // _PER_BYTE) if encoding == "base3" else -(-count * bits // 8)


def pack_codes(codes: Any, spacing: str, bits: int, encoding: Encoding) -> Any:
    """The bytes, uint8 and of rank 1, of int8 codes of any shape, each of which must be one of the grid's."""
    xp = codes.__array_namespace__()
    signed = codes.reshape(-1)
    # With eight bits the sum leaves the range of int8, and wraps around to the same byte; so it does in `_codes`.
    fields = ((signed + 1) // 2 if spacing == "binary" else signed + max_code(spacing, bits)).astype(xp.uint8)
    return pack_fields(fields, bits, encoding)


def pack_fields(fields: Any, bits: int, encoding: Encoding) -> Any:
    """The bytes, uint8 and of rank 1, of a stream of fields, uint8 and of rank 1."""
    xp = fields.__array_namespace__()
    per_group, bytes_per_group = group_of(bits, encoding)
    groups = xp.pad(fields, (0, -fields.size % per_group)).reshape(-1, per_group)
    if encoding == "base3":
        packed = [sum(groups[:, i] * xp.uint8(3**i) for i in range(per_group))]
    else:
        packed = [_byte(groups, k, bits) for k in range(bytes_per_group)]
    return xp.stack(packed, 1).reshape(-1)[: stored_bytes(fields.size, bits, encoding)]


def unpack_codes(data: Any, shape: Sequence[int], spacing: str, bits: int, encoding: Encoding) -> Any:
    """The int8 codes of a tensor of shape `shape` whose bytes are `data`: the inverse of `pack_codes`."""
    return unpack_all(data, spacing, bits, encoding)[: math.prod(shape)].reshape(tuple(shape))


def unpack_all(data: Any, spacing: str, bits: int, encoding: Encoding) -> Any:
    """The int8 codes of all fields in the bytes `data`, those that fill up the last bytes too."""
    per_group, bytes_per_group = group_of(bits, encoding)
    if not isinstance(data, np.ndarray) or bits == 8:
        return _codes(_fields(data, bits, encoding), spacing, bits)
    if bytes_per_group > 1:
        return _codes(_fields_by_words(data, bits), spacing, bits)
    pairs = np.pad(data, (0, data.size % 2)).view("<u2")
    return np.take(_codes_of_pairs(spacing, bits, encoding), pairs, axis=0).reshape(-1)[: data.size * per_group]


def _codes(fields: Any, spacing: str, bits: int) -> Any:
    signed = fields.view(np.int8)
    return signed * 2 - 1 if spacing == "binary" else signed - max_code(spacing, bits)


def _fields(data: Any, bits: int, encoding: Encoding) -> Any:
    """All fields in the bytes `data`, uint8."""
    if bits == 8:
        return data
    xp = data.__array_namespace__()
    per_group, bytes_per_group = group_of(bits, encoding)
    if encoding == "base3":
        # Four bytes at a time: on CPU, XLA writes 20 columns faster than 5.
        table, groups = _fields_of_bytes(bits, encoding), xp.pad(data, (0, -data.size % 4)).reshape(-1, 4)
        columns = [_look_up(table[:, i], groups[:, k]) for k in range(4) for i in range(per_group)]
        return xp.stack(columns, 1).reshape(-1)
    mask = np.uint8(2**bits - 1)
    if bytes_per_group == 1:
        return ((data[:, None] >> xp.arange(0, 8, bits, dtype=xp.uint8)[None]) & mask).reshape(-1)
    rows = xp.pad(data, (0, -data.size % bytes_per_group)).reshape(-1, bytes_per_group).T
    return xp.stack([_field(rows, i, bits) & mask for i in range(per_group)], 1).reshape(-1)


def _fields_by_words(data: np.ndarray, bits: int) -> np.ndarray:
    """The same in NumPy, eight fields in a word of 64 bits at a time, which become its bytes in three halvings.

    First the upper four fields move to the upper half, then the upper two of each half to its upper half, and so on.
    """
    count = -(-data.size // bits)
    padded = np.pad(data, (0, count * bits - data.size + 8))
    packed = np.ndarray((count,), "<u8", padded, strides=(bits,))  # every eight fields begin at a byte
    fields = np.empty(count, "<u8")
    for begin in range(0, count, _WORDS_IN_CACHE):
        words = packed[begin : begin + _WORDS_IN_CACHE].copy()
        for half in (32, 16, 8):
            width = half // 8 * bits
            lower = np.uint64(sum((2**width - 1) << place for place in range(0, 64, 2 * half)))
            upper = (words & (lower << np.uint64(width))) << np.uint64(half - width)
            words &= lower
            words |= upper
        fields[begin : begin + _WORDS_IN_CACHE] = words
    return fields.view(np.uint8)


@functools.cache
def _fields_of_bytes(bits: int, encoding: Encoding) -> np.ndarray:
    """The fields in each of the 256 bytes, shape (256, fields in a byte), uint8."""
    byte = np.arange(256)[:, None]
    fields = (
        byte // 3 ** np.arange(_PER_BYTE) % 3 if encoding == "base3" else byte >> np.arange(0, 8, bits) & 2**bits - 1
    )
    return fields.astype(np.uint8)


@functools.cache
def _codes_of_pairs(spacing: str, bits: int, encoding: Encoding) -> np.ndarray:
    """The codes in each two bytes, the first of which is the low one of 16 bits: NumPy only has to look them up."""
    fields, pair = _fields_of_bytes(bits, encoding), np.arange(2**16)
    return _codes(np.concatenate([fields[pair % 256], fields[pair // 256]], 1), spacing, bits)


def _look_up(table: np.ndarray, index: Any) -> Any:
    """table[index] for an array of JAX. On CPU it takes a third of the time of divisions by three."""
    import jax  # not at the top: files are read without it

    mesh = jax.typeof(index).sharding.mesh
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None)) if mesh.explicit_axes else None
    return jax.numpy.asarray(table).at[index].get(mode="promise_in_bounds", out_sharding=replicated)


def group_of(bits: int, encoding: Encoding) -> tuple[int, int]:
    """The smallest number of fields that fills whole bytes, and the number of these bytes."""
    if encoding == "base3":
        return _PER_BYTE, 1
    bytes_per_group = bits // math.gcd(bits, 8)
    return 8 * bytes_per_group // bits, bytes_per_group


def _byte(groups: Any, k: int, bits: int) -> Any:
    """Byte k of each group of fields: the fields that reach into it, shifted to where they begin in it."""
    byte: Any = 0
    for i in range(groups.shape[1]):
        begin = i * bits - 8 * k
        if -bits < begin < 8:
            field = groups[:, i]
            byte = byte | (field << np.uint8(begin) if begin >= 0 else field >> np.uint8(-begin))
    return byte


def _field(rows: Any, i: int, bits: int) -> Any:
    """Field i of each group, whose byte k is in row k, with bits of its neighbour above it."""
    k, begin = divmod(i * bits, 8)
    field = rows[k] >> np.uint8(begin)
    return field if begin + bits <= 8 else field | (rows[k + 1] << np.uint8(8 - begin))
