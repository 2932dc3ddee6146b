"""Checks of arguments whose values and shapes are known, with messages that name them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fobt._src.base.tree_paths import leaf_paths


def check_number(name: str, value: Any, allowed: str, is_allowed: Callable[[float], bool]) -> None:
    """Raises a ValueError unless `value` is a number that is allowed, or a traced one, which cannot be known."""
    if isinstance(value, jax.core.Tracer):
        return
    try:
        if isinstance(value, str) or not is_allowed(float(value)):
            raise ValueError
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be {allowed}, got {value!r}.") from None


def check_floating(name: str, dtype: Any) -> None:
    """Raises a ValueError unless `dtype` is None or a floating dtype."""
    try:
        floating = dtype is None or jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except TypeError:
        floating = False
    if not floating:
        raise ValueError(f"{name} must be a floating dtype or None, got {dtype!r}.")


def check_arrays(params: optax.Params) -> None:
    """Raises a ValueError that names the first leaf of params that is neither an array nor a number."""
    for path, leaf in zip(leaf_paths(params), jax.tree.leaves(params), strict=True):
        if not (hasattr(leaf, "dtype") or isinstance(leaf, int | float | complex)):
            raise ValueError(
                f"params must be a tree of arrays, got {type(leaf).__name__} at {path!r}. Partition the model into "
                "arrays and the rest, and combine them inside of the loss; with Equinox: "
                "params, static = eqx.partition(model, eqx.is_inexact_array)."
            )


def check_no_holes(params: optax.Params) -> None:
    """Raises a ValueError where `optax.masked` or `optax.partition` has cut leaves out of params."""
    if any(isinstance(leaf, optax.MaskedNode) for leaf in jax.tree.leaves(params, is_leaf=_is_hole)):
        raise ValueError(
            "params must be the whole tree, got one with optax.MaskedNode holes: grad_fn is evaluated on all weights. "
            "Put fobt outside of optax.masked and optax.partition, and choose the quantized leaves with fobt.per_leaf."
        )


def check_state(state: Any, init: Callable[[optax.Params], Any], params: optax.Params) -> None:
    """Raises a ValueError unless `state` has the structure and the shapes of `init(params)`."""
    expected = jax.eval_shape(init, params)
    structure: Any = jax.tree.structure(expected)
    if jax.tree.structure(state) != structure:
        wanted = type(expected).__name__
        must = f"state must be what init(params) of this transformation makes for the same params, {wanted}"
        if type(state) is not type(expected):
            parts = [type(part).__name__ for part in state] if type(state) in (tuple, list) else []
            part = "".join(f" Its part state{place} may be meant." for place in _places(state, type(expected))[:1])
            named = f" ({', '.join(parts[:5])})" if parts else ""
            raise ValueError(f"{must}, got {type(state).__name__}{named}.{part}")
        paths, wanted_paths = leaf_paths(state), leaf_paths(expected)
        raise ValueError(
            f"{must} of {len(wanted_paths)} leaves, got one of {len(paths)}, which differs at "
            f"{sorted(set(paths) ^ set(wanted_paths))[:3]}."
        )
    for path, leaf, wanted_leaf in zip(
        leaf_paths(expected), jax.tree.leaves(state), jax.tree.leaves(expected), strict=True
    ):
        if jnp.shape(leaf) != wanted_leaf.shape:
            raise ValueError(
                "state must be what init(params) of this transformation makes for the same params: shape "
                f"{wanted_leaf.shape} at {path!r}, got {jnp.shape(leaf)}."
            )


def check_same_leaves(name: str, tree: Any, like_name: str, like: Any) -> None:
    """Raises a ValueError unless both trees have the same number of leaves, with equal shapes, in the same order."""
    leaves, like_leaves = jax.tree.leaves(tree), jax.tree.leaves(like)
    if len(leaves) != len(like_leaves):
        raise ValueError(
            f"{name} must have the leaves of {like_name}, {leaf_paths(like)}, got {len(leaves)}: {leaf_paths(tree)}."
        )
    for path, leaf, like_leaf in zip(leaf_paths(like), leaves, like_leaves, strict=True):
        if jnp.shape(leaf) != jnp.shape(like_leaf):
            raise ValueError(
                f"{name} must have the shapes of {like_name}, got {jnp.shape(leaf)} instead of {jnp.shape(like_leaf)} "
                f"at {path!r}."
            )


def _places(tree: Any, kind: type) -> list[str]:
    """Where in a tree there are nodes of a type, as one writes it behind the name of the tree."""
    nodes = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda node: isinstance(node, kind))
    return [jax.tree_util.keystr(path) for path, node in nodes if isinstance(node, kind)]


def _is_hole(leaf: Any) -> bool:
    return isinstance(leaf, optax.MaskedNode)
