"""Writing packed files: whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fobt._src.base.paths import written_path
from fobt._src.base.tree_paths import keys_and_children, unwrapped
from fobt._src.packed.packed_file import DTYPES, FORMAT_VERSION, KEY, NO_DIGEST, file_digest, parse, safetensors_module
from fobt._src.packed.packing import Packed
from fobt._src.packed.stored import to_stored
from fobt._src.quantizers.quantized import Quantized


def save_packed(
    path: str | os.PathLike[str], params: Any, *, batch_stats: Any = None, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes quantized params to one safetensors file, in as many bits as their grids need.

    Codes that are not packed yet are packed, ternary ones in base 3; for two bits write `fobt.packed.pack(params,
    base3=False)`. All other leaves are stored as they are. Dicts with keys that are strings or integers, lists,
    tuples and None come back as such; other containers, such as a Flax NNX `State`, come back as dicts, and an NNX
    variable as its value. The same arguments give the same bytes.

    A file that exists at `path` is replaced only when the new one is complete, checked by reading it, and on the disk.

    Args:
      path: where the file will be, in a folder that exists.
      params: what `quantize`, `lapq` or `pack` returned: any tree of `Quantized`, `Packed` and arrays.
      batch_stats: a second tree, usually of running averages.
      metadata: strings that are stored with it.

    Raises:
      ValueError: a leaf is no array that can be stored, a key is neither a string nor an integer, the trees are deeper
        than 64, or `metadata` does not map strings to strings.
      OSError: the file cannot be written.
      ModuleNotFoundError: safetensors is missing.

    Example:
      See `load_packed`.
    """
    content = _serialised(params, batch_stats, dict(metadata or {}))
    _replace_file(Path(os.path.realpath(path)), content)


def _serialised(params: Any, batch_stats: Any, metadata: dict[str, str]) -> bytes:
    arrays: dict[str, np.ndarray] = {}
    quantized: dict[str, dict[str, Any]] = {}
    description = {
        "version": FORMAT_VERSION,
        "digest": NO_DIGEST,
        "metadata": metadata,
        "params": _encode(params, ("params",), arrays, quantized),
        "batch_stats": _encode(batch_stats, ("batch_stats",), arrays, quantized),
        "quantized": quantized,
    }
    if not all(isinstance(text, str) for item in metadata.items() for text in item):
        raise ValueError(f"metadata must map strings to strings, got {metadata!r}.")
    text = json.dumps(description, separators=(",", ":"))
    content = safetensors_module().numpy.save(arrays, {KEY: text})
    digest = file_digest(content, NO_DIGEST)
    # A digest takes the place of the first zeros, as `file_digest` takes it away again.
    content = content.replace(NO_DIGEST.encode(), digest.encode(), 1)
    try:
        parse(content)
    except ValueError as error:
        raise ValueError(
            f"params, batch_stats and metadata must give a file that can be read again: {error}."
        ) from error
    return content


def _encode(
    tree: Any, steps: tuple[str | int, ...], arrays: dict[str, np.ndarray], quantized: dict[str, dict[str, Any]]
) -> Any:
    """The description of a tree, as `packed_file._decode` reads it; its leaves are added to the dicts."""
    tree, path = unwrapped(tree), written_path(steps)
    if tree is None:
        return None
    if isinstance(tree, Quantized | Packed):
        stored = dataclasses.asdict(to_stored(path, tree))
        _add(arrays, f"{path}/codes", stored.pop("codes"))
        _add(arrays, f"{path}/scale", stored.pop("scale"))
        quantized[path] = stored
        return path
    if jax.tree_util.all_leaves([tree]):
        _add(arrays, path, tree)
        return path
    children = [(_checked(path, key), child) for key, child in keys_and_children(tree)]
    nodes = [(key, _encode(child, (*steps, key), arrays, quantized)) for key, child in children]
    if type(tree) in (list, tuple):
        return {type(tree).__name__: [node for _, node in nodes]}
    return {"dict": nodes}


def _checked(path: str, key: Any) -> str | int:
    if isinstance(key, str | int) and not isinstance(key, bool):
        return key
    raise ValueError(f"the keys of {path!r} must be strings or integers, got {key!r}.")


def _add(arrays: dict[str, np.ndarray], name: str, leaf: Any) -> None:
    if name in arrays:
        raise ValueError(f"two leaves must not have the same path, got {name!r} twice.")
    try:
        # Python's numbers take the dtypes that JAX gives them; arrays of NumPy keep theirs.
        array = np.asarray(leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf), order="C")
    except TypeError as error:
        raise ValueError(f"the leaf {name!r} must be an array, got {type(leaf).__name__}: {error}.") from error
    if array.dtype.name not in DTYPES.values():
        raise ValueError(f"the leaf {name!r} must be of {tuple(DTYPES.values())}, got {array.dtype}.")
    arrays[name] = array


def _replace_file(path: Path, content: bytes) -> None:
    """Writes a file next to `path`, and moves it there when it is complete."""
    # Not made from the name of the file, which may be as long as names can be.
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if hasattr(os, "O_DIRECTORY"):  # where a folder can be opened, its new entry is made to last, too
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
