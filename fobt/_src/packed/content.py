"""From the bytes of a packed file to its arrays and its description: an intact safetensors file of a known version."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from fobt._src.packed.nodes import decode
from fobt._src.packed.packed_array import bfloat16
from fobt._src.packed.versions import Version1, Version2

KEY = "fobt"  # of the description in the metadata of safetensors
NO_DIGEST = "0" * 64
VERSIONS: Mapping[int, type[Version1 | Version2]] = {1: Version1, 2: Version2}
DTYPES = {
    "BOOL": "bool",
    **{f"{kind}{bits}": f"{name}{bits}" for kind, name in (("I", "int"), ("U", "uint")) for bits in (8, 16, 32, 64)},
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    "BF16": "bfloat16",
}


def parse(content: bytes) -> tuple[Any, Any, dict[str, str]]:
    """Params, batch_stats and metadata of a file, checked. Raises a ValueError that says what is wrong with it."""
    arrays, stored = _read(content)
    reader = VERSIONS[stored["version"]](arrays, stored)
    metadata = reader.metadata
    are_strings = isinstance(metadata, dict) and all(isinstance(text, str) for text in metadata.values())
    _require(are_strings, "its metadata must be strings")
    params = decode(reader.params, reader.leaf, ("params",))
    batch_stats = decode(reader.batch_stats, reader.leaf, ("batch_stats",))
    _require(not reader.left_out(), f"its trees leave out {reader.left_out()!r:.200}")
    return params, batch_stats, metadata


def file_digest(content: bytes, digest: str) -> str:
    """SHA-256 of a file, with zeros in place of the digest that its header has."""
    return hashlib.sha256(content.replace(digest.encode(), NO_DIGEST.encode(), 1)).hexdigest()


def safetensors_module() -> Any:
    """The module of safetensors."""
    try:
        import safetensors.numpy
    except ModuleNotFoundError:
        raise ModuleNotFoundError("packed files need safetensors: pip install safetensors") from None
    return safetensors


def _read(content: bytes) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of a file by name, and what is stored of its description, whose version and digest are right."""
    safetensors = safetensors_module()
    try:
        tensors = safetensors.deserialize(content)
    except safetensors.SafetensorError as error:
        raise ValueError(f"it is not of safetensors, {error}") from error
    try:
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        stored = json.loads(header["__metadata__"][KEY])
        version, digest = stored["version"], stored["digest"]
    except (KeyError, TypeError, ValueError, RecursionError):
        raise ValueError(f"its header has no description {KEY!r} that can be read") from None
    _require(
        type(version) is int and version in VERSIONS,
        f"it has format version {version!r:.20}, and this fobt reads versions {', '.join(map(str, VERSIONS))}",
    )
    intact = isinstance(digest, str) and file_digest(content, digest) == digest
    _require(intact, "its digest is not that of its content")
    return {name: _array(name, tensor) for name, tensor in tensors}, stored


def _array(name: str, tensor: Mapping[str, Any]) -> np.ndarray:
    _require(tensor["dtype"] in DTYPES, f"{name!r} must be of {tuple(DTYPES)}, got {tensor['dtype']}")
    dtype = DTYPES[tensor["dtype"]]
    flat = np.frombuffer(tensor["data"], np.uint16 if dtype == "bfloat16" else np.dtype(dtype).newbyteorder("<"))
    array = (bfloat16(flat) if dtype == "bfloat16" else flat.astype(dtype, copy=False)).reshape(tensor["shape"])
    _require(dtype != "bool" or not np.any(flat.view(np.uint8) > 1), f"{name!r} must be of zeros and ones")
    array.flags.writeable = False
    return array


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)
