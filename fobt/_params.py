"""Quantized weights as a function of params and optimizer state: this, with any Adam, is loss-aware quantization."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fobt._leaves import TreeQuantizer, leaf_paths, leaf_quantizers
from fobt._packing import Packed
from fobt._quantized import Quantized
from fobt._quantizers import Quantizer

# Only guards zeros: weights whose gradient has always been zero keep a vote, a vanishing one.
_EPS = 1e-8


def quantize(params: optax.Params, state: optax.OptState | None, quantizer: TreeQuantizer) -> Any:
    r"""The quantized weights as codes and scales: what is packed and shipped.

    Each quantized leaf w becomes the projection (P) of w with curvature C = √v + ε, where v is the second moment `nu`
    in `state`, ε = 1e-8 guards zeros, and no bias correction is needed because a common factor of C does not matter.
    Under `jax.jit` this is one fused computation; without, every operation is compiled on its own for each shape.

    Args:
      params: full-precision weights.
      state: the state of an Optax optimizer, chain or wrapper that keeps exactly one second moment `nu` for each
        quantized leaf (adam, adamw, nadam, amsgrad, rmsprop, lamb, adabelief, forward_backtrack; under MultiSteps,
        masked, partition, inject_hyperparams, apply_if_finite ...). None, or a new state, whose v is 0, means
        curvature 1.
      quantizer: what is quantized and how.

    Returns:
      The tree of `params` with a `Quantized` in place of every quantized leaf; the other leaves are unchanged.

    Raises:
      ValueError: `state` holds no second moment for a quantized leaf, or more than one.

    Example:
      >>> import fobt, optax
      >>> import jax.numpy as jnp
      >>> params = {"kernel": jnp.array([[1.0, -3.0]]), "bias": jnp.array([0.5])}
      >>> state = optax.adam(1e-3).init(params)
      >>> quantized = fobt.quantize(params, state, fobt.binary())
      >>> quantized["kernel"].codes, quantized["kernel"].scale, quantized["bias"]
      (Array([[ 1, -1]], dtype=int8), Array(2., dtype=float32), Array([0.5], dtype=float32))

    References:
      Hou, Yao, Kwok, Loss-aware Binarization of Deep Networks, ICLR 2017, Eq. 5 to 7.
    """
    leaves, structure = jax.tree.flatten(params)
    quantizers = leaf_quantizers(quantizer, params)
    quantized = [
        leaf if quantize_leaf is None else quantize_leaf(leaf, curvature)
        for leaf, quantize_leaf, curvature in zip(
            leaves, quantizers, curvatures(params, state, quantizers), strict=True
        )
    ]
    return jax.tree.unflatten(structure, quantized)


def quantized_params(params: optax.Params, state: optax.OptState | None, quantizer: TreeQuantizer) -> optax.Params:
    """The weights that the forward pass uses, and that are evaluated and shipped: `quantize`, dequantized.

    Gradients for the optimizer are taken at these weights. With `optax.adam` and `fobt.binary()` this is LAB, with the
    other grids LAQ.

    Args:
      params: full-precision weights.
      state: as for `quantize`.
      quantizer: what is quantized and how.

    Returns:
      A tree with the structure, shapes and dtypes of `params`.

    Raises:
      ValueError: as for `quantize`.

    Example:
      >>> import fobt, optax
      >>> import jax.numpy as jnp
      >>> params = {"kernel": jnp.array([[1.0, -3.0]]), "bias": jnp.array([0.5])}
      >>> state = optax.adam(1e-3).init(params)
      >>> fobt.quantized_params(params, state, fobt.binary())
      {'bias': Array([0.5], dtype=float32), 'kernel': Array([[ 2., -2.]], dtype=float32)}
    """
    return dequantize(quantize(params, state, quantizer))


def dequantize(tree: Any) -> Any:
    """The tree with every `Quantized` or `Packed` in it replaced by the weights it stands for.

    Args:
      tree: what `quantize`, `lapq` or `pack` returned.

    Returns:
      The weights.

    Example:
      >>> import fobt
      >>> import jax.numpy as jnp
      >>> params = {"kernel": jnp.array([[1.0, -3.0]]), "bias": jnp.array([0.5])}
      >>> fobt.dequantize(fobt.quantize(params, None, fobt.binary()))
      {'bias': Array([0.5], dtype=float32), 'kernel': Array([[ 2., -2.]], dtype=float32)}
    """
    return jax.tree.map(
        lambda leaf: leaf.dequantize() if isinstance(leaf, Quantized | Packed) else leaf,
        tree,
        is_leaf=lambda leaf: isinstance(leaf, Quantized | Packed),
    )


def leaves_of_quantized(tree: Any) -> list[Any]:
    """The leaves of a tree that `quantize` made, in their order: each a `Quantized` or an array."""
    return jax.tree.leaves(tree, is_leaf=_is_quantized)


def curvatures(
    params: optax.Params, state: optax.OptState | None, quantizers: Sequence[Quantizer | None]
) -> list[jax.Array | None]:
    """√v + ε for every leaf of `params` that has a quantizer; None for the others, and where there is no state."""
    second_moments = _second_moments(params, state, [quantizer is not None for quantizer in quantizers])
    return [
        None if nu is None else jnp.sqrt(nu.astype(np.promote_types(nu.dtype, jnp.float32))) + _EPS
        for nu in second_moments
    ]


def _second_moments(params: optax.Params, state: optax.OptState | None, needed: list[bool]) -> list[jax.Array | None]:
    """For every leaf of `params` its second moment in `state`, or None where none is needed."""
    if state is None or not any(needed):
        return [None] * len(needed)
    # An optimizer that sees only a part of the params (`masked`, `partition`) has holes for the others.
    found: list[list[jax.Array]] = [[] for _ in needed]
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(params)]
    for path, tree in optax.tree_utils.tree_get_all_with_path(state, "nu"):
        moments = jax.tree.leaves(tree, is_leaf=_is_hole)
        is_parameter_called_nu = isinstance(path[-1], jax.tree_util.DictKey)
        if is_parameter_called_nu or len(moments) != len(shapes):
            continue
        if all(_is_hole(nu) or jnp.shape(nu) == shape for nu, shape in zip(moments, shapes, strict=True)):
            for candidates, nu in zip(found, moments, strict=True):
                candidates.extend([] if _is_hole(nu) else [nu])
    for path, candidates, need in zip(leaf_paths(params), found, needed, strict=True):
        if need and not candidates:
            raise ValueError(
                f"state must hold a second moment `nu` that fits the quantized leaf {path!r}, found none. Optimizers "
                "such as optax.adam, rmsprop and fobt.forward_backtrack keep one; pass state=None for curvature 1."
            )
        if need and len(candidates) > 1:
            raise ValueError(
                f"state must hold one second moment `nu` that fits the quantized leaf {path!r}, found "
                f"{len(candidates)}. Pass the part of the state that belongs to the optimizer you mean."
            )
    return [candidates[0] if need else None for candidates, need in zip(found, needed, strict=True)]


def _is_quantized(leaf: Any) -> bool:
    return isinstance(leaf, Quantized)


def _is_hole(leaf: Any) -> bool:
    return isinstance(leaf, optax.MaskedNode)
