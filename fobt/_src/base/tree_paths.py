"""The paths of the leaves of a tree of JAX."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import optax

from fobt._src.base.paths import written_path


def leaf_paths(tree: Any, is_leaf: Callable[[Any], bool] = lambda _: False) -> list[str]:
    """The paths of the leaves of a tree, as rules, states, files and messages write them: each is there once."""

    def paths(node: Any, steps: tuple[Any, ...]) -> Iterator[str]:
        node = node if is_leaf(node) else unwrapped(node)
        if is_leaf(node) or jax.tree_util.all_leaves([node]):
            yield written_path(steps)
        else:
            for key, child in keys_and_children(node):
                yield from paths(child, (*steps, key))

    return list(paths(tree, ()))


def unwrapped(node: Any) -> Any:
    """The array in a variable of Flax NNX, which has the path of the variable; any other node as it is."""
    found = [] if jax.tree_util.all_leaves([node]) else _steps_and_children(node)
    return unwrapped(found[0][1]) if [step for step, _ in found] == [jax.tree_util.GetAttrKey("value")] else node


def keys_and_children(node: Any) -> list[tuple[Any, Any]]:
    """The children of a node of a tree and their keys, whatever kind of container it is."""

    def key_of(step: Any) -> Any:
        return next((getattr(step, name) for name in ("key", "name", "idx") if hasattr(step, name)), step)

    return [(key_of(step), child) for step, child in _steps_and_children(node)]


def _steps_and_children(node: Any) -> list[tuple[Any, Any]]:
    return [(path[0], child) for path, child in jax.tree_util.tree_leaves_with_path(node, lambda n: n is not node)]


def state_field(state: Any, name: str, default: Any) -> Any:
    """The first field of this name in an optimizer state, or the default.

    A parameter may have the name, too, as the key of a dictionary; the field of a state is no such key.
    """
    found = optax.tree_utils.tree_get_all_with_path(state, name)
    return next((value for path, value in found if not isinstance(path[-1], jax.tree_util.DictKey)), default)
