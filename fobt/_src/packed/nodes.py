"""Trees as JSON describes them: null, the description of a leaf, or an object with the children of a container."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fobt._src.base.paths import written_path

LARGEST_DEPTH = 64


def decode(node: Any, leaf: Callable[[str, Any], Any], steps: tuple[str | int, ...]) -> Any:
    """The tree that a node stands for: in place of each leaf there is leaf(path, its node).

    Raises a ValueError where it is none; `steps` are those that lead to the node.
    """
    if len(steps) > LARGEST_DEPTH + 1:  # the first step is the name of the tree
        raise ValueError(f"its trees must not be deeper than {LARGEST_DEPTH}")
    match node:
        case None:
            return None
        case {"list": list(nodes), **others} if not others:
            return [decode(child, leaf, (*steps, i)) for i, child in enumerate(nodes)]
        case {"tuple": list(nodes), **others} if not others:
            return tuple(decode(child, leaf, (*steps, i)) for i, child in enumerate(nodes))
        case {"dict": list(items), **others} if not others and all(map(_is_item, items)):
            tree = {key: decode(child, leaf, (*steps, key)) for key, child in items}
            if len(tree) < len(items):
                raise ValueError("its dicts must not have a key twice")
            if len(set(map(type, tree))) > 1:
                raise ValueError("the keys of a dict must all be strings, or all integers")
            return tree
    return leaf(written_path(steps), node)


def _is_item(item: Any) -> bool:
    return isinstance(item, list) and len(item) == 2 and type(item[0]) in (str, int)
