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
from fobt._src.packed.compressed import compress
from fobt._src.packed.content import DTYPES, KEY, NO_DIGEST, file_digest, parse, safetensors_module
from fobt._src.packed.packing import Packed
from fobt._src.packed.stored import to_stored
from fobt._src.packed.versions import CODES, SCALES
from fobt._src.quantizers.quantized import Quantized


def save_packed(
    path: str | os.PathLike[str], params: Any, *, batch_stats: Any = None, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes quantized params to one safetensors file, in as many bits as their grids need.

    Codes that are not packed yet are packed, ternary ones in base 3; for two bits write `fobt.packed.pack(params,
    base3=False)`. All other leaves are stored as they are. Dicts with keys that are strings or integers, lists,
    tuples and None come back as such; other containers, such as a Flax NNX `State`, come back as dicts, and an NNX
    variable as its value. The same arguments give the same bytes, with the same zlib.

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
    if not all(isinstance(text, str) for item in metadata.items() for text in item):
        raise ValueError(f"metadata must map strings to strings, got {metadata!r}.")
    leaves = _Leaves({}, {}, [])
    description = {
        "metadata": metadata,
        "params": _encode(params, ("params",), leaves),
        "batch_stats": _encode(batch_stats, ("batch_stats",), leaves),
        "layouts": leaves.layouts,
    }
    stored = {"version": 2, "digest": NO_DIGEST, "description": compress(_json(description))}
    joined = {name: np.concatenate(parts, axis=None) for name, parts in leaves.joined.items()}
    content = safetensors_module().numpy.save(leaves.arrays | joined, {KEY: _json(stored)})
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


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


@dataclasses.dataclass(frozen=True)
class _Leaves:
    """What the leaves of the trees have stored: arrays by path, parts of joined arrays by name, and layouts."""

    arrays: dict[str, np.ndarray]
    joined: dict[str, list[np.ndarray]]
    layouts: list[dict[str, Any]]

    def add(self, path: str, leaf: Any) -> str | dict[str, Any]:
        """The node of a leaf, as `Version2.leaf` reads it."""
        if not isinstance(leaf, Quantized | Packed):
            self._add_array(path, leaf)
            return "array"
        stored = to_stored(path, leaf)
        layout = dict(vars(stored.layout))
        shape = layout.pop("shape")
        if layout not in self.layouts:
            self.layouts.append(layout)
        for name, part in ((CODES, stored.codes), (SCALES[stored.layout.scale_dtype], stored.scale)):
            self.joined.setdefault(name, []).append(part)
        return {"layout": self.layouts.index(layout), "shape": shape}

    def _add_array(self, path: str, leaf: Any) -> None:
        if path in self.arrays:
            raise ValueError(f"two leaves must not have the same path, got {path!r} twice.")
        try:
            # Python's numbers take the dtypes that JAX gives them; arrays of NumPy keep theirs.
            array = np.asarray(leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf), order="C")
        except TypeError as error:
            raise ValueError(f"the leaf {path!r} must be an array, got {type(leaf).__name__}: {error}.") from error
        if array.dtype.name not in DTYPES.values():
            raise ValueError(f"the leaf {path!r} must be of {tuple(DTYPES.values())}, got {array.dtype}.")
        self.arrays[path] = array


def _encode(tree: Any, steps: tuple[str | int, ...], leaves: _Leaves) -> Any:
    """The node of a tree, as `nodes.decode` reads it; its leaves are added to the others."""
    tree, path = unwrapped(tree), written_path(steps)
    if tree is None:
        return None
    if isinstance(tree, Quantized | Packed) or jax.tree_util.all_leaves([tree]):
        return leaves.add(path, tree)
    children = [(_checked(path, key), child) for key, child in keys_and_children(tree)]
    nodes = [(key, _encode(child, (*steps, key), leaves)) for key, child in children]
    if type(tree) in (list, tuple):
        return {type(tree).__name__: [node for _, node in nodes]}
    return {"dict": nodes}


def _checked(path: str, key: Any) -> str | int:
    if isinstance(key, str | int) and not isinstance(key, bool):
        return key
    raise ValueError(f"the keys of {path!r} must be strings or integers, got {key!r}.")


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
