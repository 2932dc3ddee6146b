"""Which leaves of a tree are quantized, and how."""

from __future__ import annotations

import dataclasses
import warnings
from typing import TypeAlias

import jax
import jax.numpy as jnp
import optax

from fobt._src.base.checks import check_arrays
from fobt._src.base.tree_paths import leaf_paths
from fobt._src.quantizers.quantizer import Quantizer
from fobt._src.trees.full_precision import FullPrecision, LeafQuantizer
from fobt._src.trees.linear_maps import LinearMaps, quantizers_of_linear_maps
from fobt._src.trees.rules import Rule, check_rules, is_floating, ruled


@dataclasses.dataclass(frozen=True, eq=False)
class PerLeaf:
    """Different quantizers for different leaves. Made by `per_leaf`."""

    rules: tuple[Rule, ...]
    default: LeafQuantizer | LinearMaps


TreeQuantizer: TypeAlias = Quantizer | FullPrecision | LinearMaps | PerLeaf


def per_leaf(*rules: Rule, default: LeafQuantizer | LinearMaps = FullPrecision()) -> PerLeaf:  # noqa: B008 - immutable
    r"""Combines quantizers into one that treats different leaves of a tree differently.

    Each rule is a pair (selector, quantizer); the first rule that selects a leaf decides. A selector is one of

    - a regular expression that matches the whole path of the leaf, written with slashes: `r"conv\d+/kernel"`; in a key
      that has such signs itself, `/` is written `~1` and `~` is written `~0`, as in a JSON pointer;
    - a callable from (path, leaf) to bool;
    - a tree of bools with the structure of the params, or a prefix of it.

    A rule selects leaves of any rank. The leaves that no rule selects are treated by `default` as a quantizer on its
    own treats a tree: it takes floating leaves of two or more dimensions, not counting those along which tensors are
    `stacked`. That includes embeddings; a warning says so where it includes biases, or scales of a normalisation.

    Args:
      *rules: pairs of a selector and a quantizer (not another `per_leaf`).
      default: the quantizer for all other leaves of two or more dimensions; by default they stay in full precision. Or
        a `linear_maps`, which chooses among the other leaves; rules do not have the axes that it finds.

    Returns:
      A quantizer for trees, to be given wherever the library takes one.

    Raises:
      ValueError: a rule is not such a pair; when used on a tree that has leaves, a rule selects no leaf that an earlier
        rule left, or a leaf that is not floating.

    Example:
      >>> import fobt
      >>> import jax.numpy as jnp
      >>> params = {"conv": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, "dense": {"kernel": jnp.ones((2, 2))}}
      >>> quantizer = fobt.per_leaf(("conv/kernel", fobt.linear(4)), default=fobt.binary())
      >>> quantized = fobt.quantize(params, None, quantizer)
      >>> quantized["conv"]["kernel"].grid.bits, quantized["dense"]["kernel"].grid.bits, quantized["conv"]["bias"]
      (4, 1, Array([1., 1.], dtype=float32))
    """
    check_rules("per_leaf", rules)
    if not isinstance(default, LeafQuantizer | LinearMaps):
        raise ValueError(f"per_leaf: default must be a quantizer, got {default!r}.")
    return PerLeaf(rules, default)


def leaf_quantizers(quantizer: TreeQuantizer, params: optax.Params) -> list[Quantizer | None]:
    """The quantizer of every leaf of `params`, in their order; None for the leaves that stay in full precision."""
    check_quantizer(quantizer)
    check_arrays(params)
    paths, leaves = leaf_paths(params), jax.tree.leaves(params)
    rules, default = (quantizer.rules, quantizer.default) if isinstance(quantizer, PerLeaf) else ((), quantizer)
    chosen = ruled("per_leaf", rules, params)
    if isinstance(default, LinearMaps):
        others = quantizers_of_linear_maps(default, params)
        return [_or_none(other if ours is None else ours) for ours, other in zip(chosen, others, strict=True)]
    least_rank = 2 + (default.stacked if isinstance(default, Quantizer) else 0)
    taken = [
        i
        for i, leaf in enumerate(leaves)
        if chosen[i] is None and isinstance(default, Quantizer) and is_floating(leaf) and jnp.ndim(leaf) >= least_rank
    ]
    for i in taken:
        chosen[i] = default
    _warn_of_vectors([f"{paths[i]} {jnp.shape(leaves[i])}" for i in taken if _is_called_like_a_vector(paths[i], paths)])
    return list(map(_or_none, chosen))


def _or_none(quantizer: LeafQuantizer | None) -> Quantizer | None:
    return quantizer if isinstance(quantizer, Quantizer) else None


def _is_called_like_a_vector(path: str, paths: list[str]) -> bool:
    """Whether Flax, Equinox or Haiku gives this path to a leaf of one axis."""
    module, _, name = path.rpartition("/")
    return name in ("bias", "scale") or (name == "b" and f"{module}/w".removeprefix("/") in paths)


def _warn_of_vectors(leaves: list[str]) -> None:
    if leaves:
        warnings.warn(
            f"the quantizer takes these leaves for matrices: {', '.join(leaves)}. If tensors are stacked along leading "
            "axes (seeds, scanned layers), say so, as in fobt.binary(stacked=1), and each has scales of its own; "
            "otherwise choose leaves with fobt.per_leaf, or those of linear maps with fobt.linear_maps.",
            stacklevel=2,
        )


def check_quantizer(quantizer: TreeQuantizer) -> None:
    """Raises a ValueError unless `quantizer` is one."""
    if not isinstance(quantizer, TreeQuantizer):
        given = repr(quantizer) if isinstance(quantizer, str | None) else f"a {type(quantizer).__name__}"
        raise ValueError(
            "quantizer must be made by fobt.binary, ternary, linear, logarithmic, full_precision, per_leaf or "
            f"linear_maps, got {given}."
        )


def check_same_choices(
    first_name: str, first: TreeQuantizer, second_name: str, second: TreeQuantizer, params: optax.Params
) -> None:
    """Raises a ValueError where two quantizers, each named after what it was given to, treat a leaf differently."""
    if first is second:
        return
    choices = zip(leaf_paths(params), leaf_quantizers(first, params), leaf_quantizers(second, params), strict=True)
    for path, *both in choices:
        if both[0] != both[1]:
            ours, theirs = ("none (full precision)" if chosen is None else repr(chosen) for chosen in both)
            raise ValueError(
                f"quantizer must be the same everywhere: at leaf {path!r} {first_name} has {ours}, {second_name} "
                f"{theirs}. Make it once and give it to both."
            )
