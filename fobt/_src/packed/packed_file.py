"""Reading packed files, with NumPy and safetensors alone; JAX only for the methods that return arrays of JAX."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fobt._src.base.paths import written_path
from fobt._src.packed.packed_array import PackedArray, bfloat16

FORMAT_VERSION = 1
KEY = "fobt"  # of the description in the metadata of safetensors
NO_DIGEST = "0" * 64
LARGEST_DEPTH = 64
DTYPES = {
    "BOOL": "bool",
    **{f"{kind}{bits}": f"{name}{bits}" for kind, name in (("I", "int"), ("U", "uint")) for bits in (8, 16, 32, 64)},
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    "BF16": "bfloat16",
}


@dataclasses.dataclass(frozen=True, eq=False)
class PackedFile:
    """The content of a packed file, in NumPy arrays.

    Attributes:
      params: the tree that was saved: dicts, lists, tuples and None, whose leaves are arrays or `PackedArray`; or the
        containers of the tree `like` that was given to `load_packed`.
      batch_stats: a tree of arrays, or None.
      metadata: the strings that were saved with it.

    Example:
      See `load_packed`.
    """

    params: Any
    batch_stats: Any
    metadata: Mapping[str, str]

    def weights(self) -> Any:
        """The params, quantized ones dequantized, as NumPy arrays. It needs no JAX."""
        return map_leaves(lambda _, leaf: leaf.dequantize() if isinstance(leaf, PackedArray) else leaf, self.params)

    def packed(self) -> Any:
        """The params as arrays of JAX and `fobt.packed.Packed`, as `fobt.packed.pack` returns them.

        Raises:
          ValueError: a leaf has 64 bits, and JAX is not set up for them.
        """
        from fobt._src.packed.stored import from_stored  # not at the top: without these methods no JAX is needed

        return map_leaves(from_stored, self.params)

    def quantized(self) -> Any:
        """The params as arrays of JAX and `fobt.Quantized`, as `fobt.quantize` returned them.

        Raises:
          ValueError: a leaf has 64 bits, and JAX is not set up for them.
        """
        from fobt._src.packed.packing import unpack

        return unpack(self.packed())


def load_packed(path: str | os.PathLike[str], like: Any = None) -> PackedFile:
    """Reads what `save_packed` wrote. This needs NumPy and safetensors, and no JAX unless `like` is given.

    Every byte is covered by a digest, and every number of the description is checked against the arrays: a file that is
    damaged, of another version or made up gives an error, never a wrong array. Nothing in a file is executed, and no
    name in it is taken for a path. NumPy has no bfloat16: such arrays are those of ml_dtypes where it is installed, as
    it is with JAX, otherwise float32 of the same values.

    Args:
      path: the file.
      like: a tree of JAX with the paths and shapes of the params that were saved, such as these params; what is loaded
        has its containers: modules of Equinox, states of Flax NNX, named tuples. By default it has dicts for them.

    Returns:
      Its content. `weights()` gives NumPy arrays; `quantized()` and `packed()` give arrays of JAX.

    Raises:
      ValueError: the file is not one that `save_packed` could have written; the message names it; or `like` has other
        leaves than the file.
      OSError: it cannot be read.
      ModuleNotFoundError: safetensors is missing.

    Example:
      >>> import fobt, tempfile
      >>> import jax.numpy as jnp
      >>> quantized = fobt.quantize({"kernel": jnp.array([[1.0, -3.0]]), "bias": jnp.zeros(1)}, None, fobt.binary())
      >>> with tempfile.NamedTemporaryFile() as file:
      ...     fobt.packed.save_packed(file.name, quantized, metadata={"accuracy": "98.8"})
      ...     loaded = fobt.packed.load_packed(file.name)
      >>> loaded.weights()
      {'bias': array([0.], dtype=float32), 'kernel': array([[ 2., -2.]], dtype=float32)}
      >>> loaded.quantized()["kernel"].codes, loaded.metadata
      (Array([[ 1, -1]], dtype=int8), {'accuracy': '98.8'})
    """
    content = Path(path).read_bytes()
    try:
        file = parse(content)
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)!r} is no intact packed file: {error}.") from error
    if like is None:
        return file
    from fobt._src.packed.like import leaves_like  # not at the top: it needs JAX

    leaves: dict[str, Any] = {}
    map_leaves(leaves.__setitem__, file.params)
    return dataclasses.replace(file, params=leaves_like(leaves, like))


def parse(content: bytes) -> PackedFile:
    """The content of a file, checked. Raises a ValueError that says what is wrong, without the name of the file."""
    arrays, description = _read(content)
    fields = ("batch_stats", "digest", "metadata", "params", "quantized", "version")
    _require(sorted(description) == list(fields), f"its description must have the fields {fields}")
    metadata, quantized = description["metadata"], description["quantized"]
    _require(_is_dict_of(metadata, str), "its metadata must be strings")
    _require(_is_dict_of(quantized, dict), "its description of quantized leaves must be objects")

    def leaf(name: str) -> Any:
        try:
            if name not in quantized:
                return arrays.pop(name)
            codes, scale, stored = arrays.pop(f"{name}/codes"), arrays.pop(f"{name}/scale"), quantized.pop(name)
        except KeyError as error:
            raise ValueError(f"it has no array {error}, or uses it twice") from None
        try:
            return PackedArray(codes, scale, **{**stored, "shape": tuple(stored["shape"])})
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{name!r}: {error}") from error

    params, batch_stats = (_decode(description[key], leaf) for key in ("params", "batch_stats"))
    _require(not arrays and not quantized, f"its trees leave out {[*arrays, *quantized]!r:.200}")
    return PackedFile(params, batch_stats, metadata)


def file_digest(content: bytes, digest: str) -> str:
    """SHA-256 of a file, with zeros in place of the digest that its header has."""
    return hashlib.sha256(content.replace(digest.encode(), NO_DIGEST.encode(), 1)).hexdigest()


def map_leaves(function: Callable[[str, Any], Any], tree: Any, steps: tuple[str | int, ...] = ()) -> Any:
    """The tree with function(path, leaf) in place of its leaves, arrays and `PackedArray`."""
    if tree is None:
        return None
    if isinstance(tree, np.ndarray | PackedArray):
        return function(written_path(steps), tree)
    if type(tree) is dict:
        return {key: map_leaves(function, child, (*steps, key)) for key, child in tree.items()}
    if type(tree) in (list, tuple):
        return type(tree)(map_leaves(function, child, (*steps, i)) for i, child in enumerate(tree))
    from fobt._src.packed.like import map_tree  # not at the top: other containers are those of JAX

    return map_tree(lambda path, leaf: function("/".join(filter(None, (written_path(steps), path))), leaf), tree)


def safetensors_module() -> Any:
    """The module of safetensors."""
    try:
        import safetensors.numpy
    except ModuleNotFoundError:
        raise ModuleNotFoundError("packed files need safetensors: pip install 'fobt[export]'") from None
    return safetensors


def _read(content: bytes) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of a file by name, and its description, whose version and digest are right."""
    safetensors = safetensors_module()
    try:
        stored = safetensors.deserialize(content)
    except safetensors.SafetensorError as error:
        raise ValueError(f"it is not of safetensors, {error}") from error
    try:
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        description = json.loads(header["__metadata__"][KEY])
        version, digest = description["version"], description["digest"]
    except (KeyError, TypeError, ValueError, RecursionError):
        raise ValueError(f"its header has no description {KEY!r} that can be read") from None
    _require(
        type(version) is int and version == FORMAT_VERSION,
        f"it has format version {version!r:.20}, and this fobt reads version {FORMAT_VERSION}",
    )
    intact = isinstance(digest, str) and file_digest(content, digest) == digest
    _require(intact, "its digest is not that of its content")
    return {name: _array(name, tensor) for name, tensor in stored}, description


def _array(name: str, tensor: Mapping[str, Any]) -> np.ndarray:
    _require(tensor["dtype"] in DTYPES, f"{name!r} must be of {tuple(DTYPES)}, got {tensor['dtype']}")
    dtype = DTYPES[tensor["dtype"]]
    flat = np.frombuffer(tensor["data"], np.uint16 if dtype == "bfloat16" else np.dtype(dtype).newbyteorder("<"))
    array = (bfloat16(flat) if dtype == "bfloat16" else flat.astype(dtype, copy=False)).reshape(tensor["shape"])
    _require(dtype != "bool" or not np.any(flat.view(np.uint8) > 1), f"{name!r} must be of zeros and ones")
    array.flags.writeable = False
    return array


def _decode(node: Any, leaf: Callable[[str], Any], depth: int = 0) -> Any:
    """The tree that is described by JSON: null, the name of a leaf, or an object with the children of a container."""
    _require(depth <= LARGEST_DEPTH, f"its trees must not be deeper than {LARGEST_DEPTH}")
    match node:
        case None:
            return None
        case str(name):
            return leaf(name)
        case {"list": list(nodes), **others} if not others:
            return [_decode(child, leaf, depth + 1) for child in nodes]
        case {"tuple": list(nodes), **others} if not others:
            return tuple(_decode(child, leaf, depth + 1) for child in nodes)
        case {"dict": list(items), **others} if not others and all(map(_is_item, items)):
            tree = {key: _decode(child, leaf, depth + 1) for key, child in items}
            _require(len(tree) == len(items), "its dicts must not have a key twice")
            _require(len(set(map(type, tree))) <= 1, "the keys of a dict must all be strings, or all integers")
            return tree
    raise ValueError(f"its trees must be of null, names, and objects of lists, tuples and dicts, got {node!r:.50}")


def _is_item(item: Any) -> bool:
    return isinstance(item, list) and len(item) == 2 and type(item[0]) in (str, int)


def _is_dict_of(value: Any, kind: type) -> bool:
    return isinstance(value, dict) and all(isinstance(entry, kind) for entry in value.values())


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)
