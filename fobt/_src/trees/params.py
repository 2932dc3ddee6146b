"""Quantized weights as a function of params and optimizer state: this, with any Adam, is loss-aware quantization."""

from __future__ import annotations

from typing import Any

import jax
import optax

from fobt._src.packed.packing import Packed
from fobt._src.quantizers.quantized import Quantized
from fobt._src.trees.batches import quantize_leaves
from fobt._src.trees.curvature import curvatures
from fobt._src.trees.leaves import TreeQuantizer, leaf_quantizers


def quantize(params: optax.Params, state: optax.OptState | None, quantizer: TreeQuantizer) -> Any:
    r"""The quantized weights as codes and scales: what is packed and shipped.

    Each quantized leaf w becomes the projection (P) of w with curvature C = √v + ε, where v is the second moment `nu`
    in `state`, ε = 1e-8 guards zeros, and no bias correction is needed because a common factor of C does not matter.
    Some optimizers divide by something else, told by the type of their state: amsgrad by the root of its largest v so
    far (`nu_max`), adagrad by that of its sum of squares, adan by that of its `n`, centred rmsprop by that of the
    variance v - m², and `optax.contrib.sophia` by v itself, where it is
    positive. Where a gradient was so large that its square overflowed, v and C are infinite: the weight is pinned, as
    `Quantizer` says, and the other weights are quantized as without it.
    Under `jax.jit` this is one fused computation; without, every operation is compiled on its own for each shape.

    The state of adamax and adamaxw cannot be told from that of adam, but its `nu` is a largest magnitude, not a square.
    Do not use them: √v would be the root of what they divide by. `fobt.Training` knows the optimizer and raises; this
    function says nothing.

    Args:
      params: full-precision weights.
      state: the state of an Optax optimizer, chain or wrapper that keeps exactly one second moment `nu` for each
        quantized leaf (adam, adamw, nadam, amsgrad, rmsprop, lamb, adabelief, yogi, radam, adagrad, adan,
        forward_backtrack, and of `optax.contrib` ademamix, adopt, acprop, sophia; under MultiSteps, masked, partition,
        inject_hyperparams, apply_if_finite ...). None, or a new state, whose v is 0, means curvature 1. For all other
        optimizers, a `fobt.Curvature`.
      quantizer: what is quantized and how.

    Returns:
      The tree of `params` with a `Quantized` in place of every quantized leaf; the other leaves are unchanged.

    Raises:
      ValueError: `state` holds no second moment for a quantized leaf, or more than one, or is that of an optimizer
        whose divisor does not follow from it: sm3, novograd, galore, and rmsprop with centered and bias_correction.

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
    quantized = quantize_leaves(leaves, quantizers, curvatures(params, state, quantizers))
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


def _is_quantized(leaf: Any) -> bool:
    return isinstance(leaf, Quantized)
