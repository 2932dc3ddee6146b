"""The leaves of a packed file in trees of JAX, whatever their containers are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fobt._src.base.tree_paths import leaf_paths


def leaves_like(leaves: Mapping[str, Any], like: Any) -> Any:
    """The tree `like` with the leaves of these paths in place of its own, whose shapes they must have."""
    paths = leaf_paths(like)
    missing, more = [path for path in paths if path not in leaves], [path for path in leaves if path not in paths]
    if missing or more:
        raise ValueError(
            f"like must have the leaves of the file, got a tree in which {_named(missing)} are not in the file, and "
            f"without {_named(more)}, which are."
        )
    for path, leaf in zip(paths, jax.tree.leaves(like), strict=True):
        if jnp.shape(leaf) != leaves[path].shape:
            raise ValueError(
                f"like must have the shapes of the file, got {jnp.shape(leaf)} instead of {leaves[path].shape} at "
                f"{path!r}."
            )
    return jax.tree.unflatten(jax.tree.structure(like), [leaves[path] for path in paths])


def map_tree(function: Callable[[str, Any], Any], tree: Any) -> Any:
    """The tree with function(path, leaf) in place of its leaves."""
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, map(function, leaf_paths(tree), leaves))


def _named(paths: list[str]) -> str:
    return f"{paths[:5]}{f' and {len(paths) - 5} more' if len(paths) > 5 else ''}"
