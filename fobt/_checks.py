"""Checks of arguments whose values and shapes are known, with messages that name them."""

from __future__ import annotations

from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fobt._leaves import leaf_paths


def is_number(value: Any) -> TypeGuard[float]:
    """Whether `value` is a number whose range can be checked now, rather than a traced array or a schedule."""
    return isinstance(value, int | float | np.number)


def check_no_holes(params: optax.Params) -> None:
    """Raises a ValueError where `optax.masked` or `optax.partition` has cut leaves out of params."""
    if any(isinstance(leaf, optax.MaskedNode) for leaf in jax.tree.leaves(params, is_leaf=_is_hole)):
        raise ValueError(
            "params must be the whole tree, got one with optax.MaskedNode holes: grad_fn is evaluated on all weights. "
            "Put fobt outside of optax.masked and optax.partition, and choose the quantized leaves with fobt.per_leaf."
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


def _is_hole(leaf: Any) -> bool:
    return isinstance(leaf, optax.MaskedNode)
