"""The GGUF container, version 3: metadata, descriptions of tensors, and their bytes.

The format is specified in https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_ALIGNMENT = 32
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9  # numbers of types of metadata


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor of a file.

    Attributes:
      shape: as NumPy has it; the file has it backwards.
      type: the number of its type.
      content: its bytes.
    """

    shape: tuple[int, ...]
    type: int
    content: bytes


def gguf_file(metadata: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> bytes:
    """The content of a file.

    Raises:
      ValueError: a value of the metadata has no type in GGUF.
    """
    parts = [struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(metadata))]
    parts += [_string(key) + _typed(key, value) for key, value in metadata.items()]
    offset = 0
    for name, tensor in tensors.items():
        sizes = tensor.shape[::-1]
        parts.append(_string(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, tensor.type, offset))
        offset += -(-len(tensor.content) // _ALIGNMENT) * _ALIGNMENT
    parts = [_padded(b"".join(parts))]
    return b"".join([*parts, *(_padded(tensor.content) for tensor in tensors.values())])


def _padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % _ALIGNMENT)


def _string(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _typed(key: str, value: Any) -> bytes:
    kind = _kind(key, value)
    if kind != _ARRAY:
        return struct.pack("<I", kind) + _value(kind, value)
    element = _kind(key, value[0]) if value else _STRING
    return struct.pack("<IIQ", kind, element, len(value)) + b"".join(_value(element, item) for item in value)


def _kind(key: str, value: Any) -> int:
    if isinstance(value, bool | np.bool_):
        return _BOOL
    if isinstance(value, int | np.integer) and -(2**31) <= value < 2**32:
        return _INT32 if value < 0 else _UINT32
    if isinstance(value, float | np.floating):
        return _FLOAT32
    if isinstance(value, str):
        return _STRING
    if isinstance(value, Sequence) and len({_kind(key, item) for item in value}) <= 1:
        return _ARRAY
    raise ValueError(
        f"metadata must hold bools, integers of 32 bits, floats, strings, or sequences of one of these, got {value!r} "
        f"for {key!r}."
    )


def _value(kind: int, value: Any) -> bytes:
    if kind == _STRING:
        return _string(value)
    return struct.pack({_UINT32: "<I", _INT32: "<i", _FLOAT32: "<f", _BOOL: "<?"}[kind], value)
