"""Reading packed files, with NumPy and safetensors alone; JAX only for the methods that return arrays of JAX."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fobt._src.base.paths import written_path
from fobt._src.base.with_jax import require_jax
from fobt._src.packed.content import parse
from fobt._src.packed.packed_array import PackedArray


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
          ModuleNotFoundError: JAX is missing.
        """
        require_jax("PackedFile.packed")
        from fobt._src.packed.stored import from_stored  # not at the top: without these methods no JAX is needed

        return map_leaves(from_stored, self.params)

    def quantized(self) -> Any:
        """The params as arrays of JAX and `fobt.Quantized`, as `fobt.quantize` returned them.

        Raises:
          ValueError: a leaf has 64 bits, and JAX is not set up for them.
          ModuleNotFoundError: JAX is missing.
        """
        require_jax("PackedFile.quantized")
        from fobt._src.packed.packing import unpack

        return unpack(self.packed())


def load_packed(path: str | os.PathLike[str], like: Any = None) -> PackedFile:
    """Reads what `save_packed` wrote. This needs NumPy and safetensors, and no JAX unless `like` is given.

    Files of all versions are read, 1 and 2. Every byte is covered by a digest, and every number of the description is
    checked against the arrays: a file that is damaged, of an unknown version or made up gives an error, never a wrong
    array. Nothing in a file is executed, and no name in it is taken for a path. NumPy has no bfloat16: such arrays are
    those of ml_dtypes where it is installed, as it is with JAX, otherwise float32 of the same values.

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
      ModuleNotFoundError: safetensors is missing, or JAX, and `like` is given.

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
        file = PackedFile(*parse(content))
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)!r} is no intact packed file: {error}.") from error
    if like is None:
        return file
    require_jax("load_packed(..., like=...)")
    from fobt._src.packed.like import leaves_like  # not at the top: it needs JAX

    leaves: dict[str, Any] = {}
    map_leaves(leaves.__setitem__, file.params)
    return dataclasses.replace(file, params=leaves_like(leaves, like))


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
