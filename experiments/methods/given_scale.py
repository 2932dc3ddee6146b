"""Methods whose scale is a statistic of the weights instead of the solution of the projection."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import fobt
from experiments.methods.method import Hyperparameters, Method
from experiments.methods.registry import register


def rounded_to(
    quantizer: fobt.Quantizer, scale: Callable[[jax.Array], jax.Array]
) -> Callable[[jax.Array], fobt.Quantized]:
    """From a weight tensor w to its nearest levels with the scale α = `scale(w)`, one for the tensor."""
    return lambda weights: quantizer.round_to_nearest(weights, scale(weights))


def over_weights(quantize: Callable[[jax.Array], fobt.Quantized]) -> Callable[[Any, Any], Any]:
    """`quantize` of every parameter with two or more axes, as `Method.quantize`."""

    def quantize_params(params: Any, optimizer_state: Any) -> Any:
        del optimizer_state
        return jax.tree.map(lambda leaf: quantize(leaf) if leaf.ndim >= 2 else leaf, params)

    return quantize_params


@register("absmean", grids=("ternary", "linear2"), tuned={"BitNet b1.58": {}})
def absmean(hyper: Hyperparameters, quantizer: fobt.Quantizer) -> Method:
    """Adam at the levels nearest to w with the scale γ = mean|w|; on the ternary grid this is BitNet b1.58.

    There ŵ = γ round(clip(w/γ, -1, 1)). On the binary grid it is sign(w)·mean|w|, so BWN. The publication rounds
    activations too, and divides by γ + ε where a weight tensor of zeros has ŵ = 0 here.

    References:
        Ma et al., The Era of 1-bit LLMs: All Large Language Models are in 1.58 Bits, 2024, Eq. 1 to 3.
    """
    quantize = rounded_to(quantizer, lambda weights: jnp.mean(jnp.abs(weights)))
    return Method(hyper.bounded_adam(quantizer), quantizer, quantize=over_weights(quantize))
