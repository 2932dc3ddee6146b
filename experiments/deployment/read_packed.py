"""Reads a packed file with Python alone, the layout as code: `python -m experiments read_packed FILE`.

It checks the digest and nothing else; `fobt.packed.load_packed` checks everything.
"""

import hashlib
import itertools
import json
import math
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

FORMATS = {"BOOL": "?", "I8": "b", "U8": "B", "I16": "h", "U16": "H", "I32": "i", "U32": "I", "I64": "q", "U64": "Q"}
FORMATS |= {"F16": "e", "F32": "f", "F64": "d", "BF16": "H"}


def read_packed(path: str) -> dict[str, tuple[list[int], list[float]]]:
    """The shape and the numbers, in C order, of every leaf; quantized leaves are dequantized."""
    content = Path(path).read_bytes()
    (header_size,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + header_size]), content[8 + header_size :]
    description = json.loads(header.pop("__metadata__")["fobt"])
    digest = description["digest"]
    if hashlib.sha256(content.replace(digest.encode(), b"0" * 64, 1)).hexdigest() != digest:
        raise ValueError(f"{path} is damaged")
    leaves = {name: (e["shape"], numbers(data[slice(*e["data_offsets"])], e["dtype"])) for name, e in header.items()}
    for name, leaf in description["quantized"].items():
        (_, packed), (_, scale) = leaves.pop(f"{name}/codes"), leaves.pop(f"{name}/scale")
        leaves[name] = leaf["shape"], list(weights(leaf, bytes(packed), scale))
    return leaves


def numbers(data: bytes, dtype: str) -> list[Any]:
    """An array of the file; a bfloat16 is the upper half of a float32."""
    values = [value for (value,) in struct.iter_unpack("<" + FORMATS[dtype], data)]
    return [struct.unpack("<f", struct.pack("<I", v << 16))[0] for v in values] if dtype == "BF16" else values


def fields(packed: bytes, bits: int, encoding: str) -> Iterator[int]:
    """The stored codes, which start from 0: five digits of base 3 in a byte, or a stream of bits, the lowest first."""
    stream, held = 0, 0
    for byte in packed:
        if encoding == "base3":
            yield from (byte // 3**i % 3 for i in range(5))
            continue
        stream, held = stream | byte << held, held + 8
        while held >= bits:
            yield stream % 2**bits
            stream, held = stream >> bits, held - bits


def weights(leaf: dict[str, Any], packed: bytes, scale: list[float]) -> Iterator[float]:
    """The quantized weights of a leaf: the level of each code times its scale."""
    shape, granularity, n = leaf["shape"], leaf["granularity"], 2 ** (leaf["bits"] - 1) - 1
    sizes = shape[:]  # on each axis, how many weights have the same scale
    if granularity["per"] == "channel":
        sizes = [1 if i in [axis % len(shape) for axis in granularity["axes"]] else s for i, s in enumerate(shape)]
    elif granularity["per"] == "block":
        sizes = [granularity["size"] if i == granularity["axis"] % len(shape) else 1 for i in range(len(shape))]
    counts = [math.ceil(length / size) if size else 0 for length, size in zip(shape, sizes, strict=True)]
    places = itertools.product(*map(range, shape))
    for field, place in zip(fields(packed, leaf["bits"], leaf["encoding"]), places, strict=False):
        code = 2 * field - 1 if leaf["spacing"] == "binary" else field - n
        index = math.prod(counts) if leaf["scales"] == 2 and code < 0 else 0  # the scale of negative codes
        for axis, position in enumerate(place):
            index += position // sizes[axis] * math.prod(counts[axis + 1 :])
        if leaf["spacing"] == "logarithmic":
            yield math.copysign(2.0 ** (abs(code) - n), code) * scale[index] if code else 0.0
        else:
            yield code * scale[index] / max(1, n)


def main(arguments: Sequence[str]) -> None:
    """Prints name, shape and first numbers of every leaf of a file."""
    for name, (shape, values) in read_packed(arguments[0]).items():
        print(name, shape, values[:4])
