"""Rules that choose leaves of a tree: by path, by a function, or by a tree of bools."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fobt._src.base.tree_paths import leaf_paths
from fobt._src.trees.full_precision import LeafQuantizer

Selector: TypeAlias = str | Callable[[str, Any], bool] | Any
Rule: TypeAlias = tuple[Selector, LeafQuantizer]


def check_rules(function: str, rules: Sequence[Rule]) -> None:
    """Raises a ValueError, in the name of a function, unless each rule is a pair of a selector and a quantizer."""
    for rule in rules:
        if not (isinstance(rule, tuple) and len(rule) == 2 and isinstance(rule[1], LeafQuantizer)):
            raise ValueError(f"{function}: a rule must be a pair (selector, quantizer), got {rule!r}.")
        check_selector(function, rule[0])


def check_selector(function: str, selector: Selector) -> None:
    """Raises a ValueError where a selector is a string, but no regular expression."""
    if isinstance(selector, str):
        try:
            re.compile(selector)
        except re.error as error:
            raise ValueError(f"{function}: selector {selector!r} is no regular expression: {error}.") from error


def ruled(function: str, rules: Sequence[Rule], params: optax.Params) -> list[LeafQuantizer | None]:
    """The quantizer of the first rule that selects each leaf, None where none does."""
    paths, leaves = leaf_paths(params), jax.tree.leaves(params)
    chosen: list[LeafQuantizer | None] = [None] * len(leaves)
    for selector, quantizer in rules:
        selected = [
            i for i, is_chosen in enumerate(select(function, selector, params)) if is_chosen and chosen[i] is None
        ]
        if leaves and not selected:
            raise ValueError(
                f"{function}: selector {selector!r} selects none of the leaves left to it; paths: {paths}."
            )
        for i in selected:
            if not is_floating(leaves[i]):
                raise ValueError(
                    f"{function}: selector {selector!r} selects {paths[i]!r} of dtype {jnp.result_type(leaves[i])}; "
                    "only floating leaves can be quantized."
                )
            chosen[i] = quantizer
    return chosen


def select(function: str, selector: Selector, params: optax.Params) -> list[bool]:
    """Whether a selector selects each leaf."""
    paths, leaves = leaf_paths(params), jax.tree.leaves(params)
    if isinstance(selector, str):
        return [re.fullmatch(selector, path) is not None for path in paths]
    if callable(selector):
        return [bool(selector(path, leaf)) for path, leaf in zip(paths, leaves, strict=True)]
    mask = selector
    if leaf_paths(mask) != paths:  # wrappers around arrays do not matter
        try:
            mask = jax.tree.broadcast(selector, params)
        except ValueError as error:
            raise ValueError(f"{function}: the mask {selector!r} does not match the params: {error}") from error
    selected = jax.tree.leaves(mask)
    if not all(isinstance(chosen, bool | np.bool_) for chosen in selected):
        raise ValueError(f"{function}: a mask must be a tree of bools, got {selector!r}.")
    return selected


def is_floating(leaf: Any) -> bool:
    """Whether a leaf is of floating numbers."""
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
