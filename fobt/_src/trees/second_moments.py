"""Second moments in the states of Optax optimizers: where they are, and others in their place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import optax

from fobt._src.trees.curvature import has_own_divisor


def second_moments(state: optax.OptState) -> list[Any]:
    """The second moments `nu` in a state, a tree for each optimizer that keeps one."""
    return [holder.nu for holder in moment_holders(state)]


def with_second_moments(state: optax.OptState, moments: Sequence[Any]) -> optax.OptState:
    """The state with these trees in place of its second moments."""
    remaining = iter(moments)
    return jax.tree.map(
        lambda node: node._replace(nu=next(remaining)) if _is_holder(node) else node, state, is_leaf=_is_holder
    )


def moment_holders(state: optax.OptState) -> list[Any]:
    """The states, within a state, that keep a second moment."""
    return [node for node in jax.tree.leaves(state, is_leaf=_is_holder) if _is_holder(node)]


def _is_holder(node: Any) -> bool:
    return hasattr(node, "nu") and hasattr(node, "_fields") and not has_own_divisor(node)
