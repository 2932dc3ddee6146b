"""Reads a packed file with Python alone, the layout as code: `python -m experiments read_packed FILE`.

It checks the digest and nothing else; `fobt.packed.load_packed` checks everything.
"""

import base64
import hashlib
import itertools
import json
import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

FORMATS = {"BOOL": "?", "I8": "b", "U8": "B", "I16": "h", "U16": "H", "I32": "i", "U32": "I", "I64": "q", "U64": "Q"}
FORMATS |= {"F16": "e", "F32": "f", "F64": "d", "BF16": "H"}
Leaf = tuple[list[int], list[Any]]  # the shape, and the numbers in C order


def read_packed(path: str) -> dict[str, Leaf]:
    """The shape and the numbers, in C order, of every leaf; quantized leaves are dequantized."""
    content = Path(path).read_bytes()
    (header_size,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + header_size]), content[8 + header_size :]
    stored = json.loads(header.pop("__metadata__")["fobt"])
    digest = stored["digest"]
    if hashlib.sha256(content.replace(digest.encode(), b"0" * 64, 1)).hexdigest() != digest:
        raise ValueError(f"{path} is damaged")
    arrays = {name: (e["shape"], numbers(data[slice(*e["data_offsets"])], e["dtype"])) for name, e in header.items()}
    return version_1(stored, arrays) if stored["version"] == 1 else dict(version_2(stored, arrays))


def version_2(stored: dict[str, Any], arrays: dict[str, Leaf]) -> Iterator[tuple[str, Leaf]]:
    """The name of every leaf, and the leaf; codes and scales follow each other in the order of the leaves."""
    description = json.loads(zlib.decompress(base64.b64decode(stored["description"])))
    joined = {name: iter(arrays[name][1]) for name in ("codes", "scales/float32", "scales/float64") if name in arrays}
    for tree in ("params", "batch_stats"):
        for name, node in leaves(tree, description[tree]):
            if node == "array":
                yield name, arrays[name]
                continue
            leaf = node | description["layouts"][node["layout"]]
            count = math.prod(leaf["shape"])
            size = math.ceil(count / 5 if leaf["encoding"] == "base3" else count * leaf["bits"] / 8)
            packed = bytes(itertools.islice(joined["codes"], size))
            scales = joined["scales/float64" if leaf["dtype"] == "float64" else "scales/float32"]
            scale = list(itertools.islice(scales, leaf["scales"] * math.prod(scale_axes(leaf)[1])))
            yield name, (leaf["shape"], list(weights(leaf, packed, scale)))


def version_1(stored: dict[str, Any], arrays: dict[str, Leaf]) -> dict[str, Leaf]:
    """The same of a file of version 1, whose arrays of codes and scales have the names of their leaves."""
    for name, leaf in stored["quantized"].items():
        (_, packed), (_, scale) = arrays.pop(f"{name}/codes"), arrays.pop(f"{name}/scale")
        arrays[name] = leaf["shape"], list(weights(leaf, bytes(packed), scale))
    return arrays


def leaves(name: str, node: Any) -> Iterator[tuple[str, Any]]:
    """The names of the leaves below a node, and their nodes."""
    if node == "array" or (node and "layout" in node):
        yield name, node
    elif node:
        ((kind, children),) = node.items()
        for key, child in children if kind == "dict" else enumerate(children):
            yield from leaves(f"{name}/{str(key).replace('~', '~0').replace('/', '~1')}", child)


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


def scale_axes(leaf: dict[str, Any]) -> tuple[list[int], list[int]]:
    """On each axis, how many weights have the same scale, and how many scales there are."""
    shape, granularity = leaf["shape"], leaf["granularity"]
    sizes = shape
    if granularity["per"] == "channel":
        sizes = [1 if i in [axis % len(shape) for axis in granularity["axes"]] else s for i, s in enumerate(shape)]
    elif granularity["per"] == "block":
        sizes = [granularity["size"] if i == granularity["axis"] % len(shape) else 1 for i in range(len(shape))]
    return sizes, [math.ceil(length / size) if size else 1 for length, size in zip(shape, sizes, strict=True)]


def weights(leaf: dict[str, Any], packed: bytes, scale: list[float]) -> Iterator[float]:
    """The quantized weights of a leaf: the level of each code times its scale."""
    shape, n = leaf["shape"], 2 ** (leaf["bits"] - 1) - 1
    sizes, counts = scale_axes(leaf)
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
