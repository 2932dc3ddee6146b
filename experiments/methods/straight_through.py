"""Quantizers that live in the model: the loss sees quantized weights, the gradient passes straight through.

These are baselines whose quantizer needs something that the projections of fobt do not have: no loss-aware scale, a
random key, a transformed weight, or a step size that is learned. The optimizer sees an ordinary differentiable model.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

LeafQuantizer: TypeAlias = Callable[[jax.Array, jax.Array | None], tuple[jax.Array, jax.Array]]


@dataclass(frozen=True)
class ModelSide:
    """A quantizer that lives in the model.

    Attributes:
        bits: Bits of a code.
        scales: float32 numbers per weight tensor that decoding needs beside the codes.
    """

    bits: int
    scales: int

    def init(self, params: Any) -> Any:
        """The parameters to train: those of the network, and what the quantizer learns, by default nothing."""
        return params

    def forward(self, params: Any, key: jax.Array | None) -> tuple[Any, list[jax.Array]]:
        """The weights that the network uses, differentiable in `params`, and their int8 codes; no key in evaluation."""
        raise NotImplementedError

    def evaluated(self, params: Any) -> Any:
        """The weights that the network uses in evaluation."""
        return self.forward(params, None)[0]


@dataclass(frozen=True)
class PerWeight(ModelSide):
    """The same function for every parameter with two or more dimensions.

    Attributes:
        quantize: From weights and a random key, which is None in evaluation, to quantized weights, differentiable, and
            int8 codes.
    """

    quantize: LeafQuantizer

    def forward(self, params: Any, key: jax.Array | None) -> tuple[Any, list[jax.Array]]:
        """Quantized weights and codes."""
        leaves, structure = jax.tree.flatten(params)
        weights, codes = [], []
        for number, leaf in enumerate(leaves):
            if leaf.ndim >= 2:
                leaf, leaf_codes = self.quantize(leaf, None if key is None else jax.random.fold_in(key, number))
                codes.append(leaf_codes)
            weights.append(leaf)
        return jax.tree.unflatten(structure, weights), codes


def _straight_through(latent: jax.Array, quantized: jax.Array) -> jax.Array:
    """`quantized`, exactly, with the gradient of `latent`."""
    return jax.lax.stop_gradient(quantized) + (latent - jax.lax.stop_gradient(latent))


def _sign(weights: jax.Array) -> jax.Array:
    return jnp.where(weights >= 0, 1.0, -1.0).astype(weights.dtype)


def binary_connect() -> PerWeight:
    """BinaryConnect, deterministic: ŵ = sign(w), sign(0) = +1, no scale.

    Example:
        >>> binary_connect().evaluated(jnp.array([[0.3, -2.0, 0.0]]))
        Array([[ 1., -1.,  1.]], dtype=float32)

    References:
        Courbariaux, Bengio, David, BinaryConnect, NeurIPS 2015, Eq. 1.
    """

    def quantize(weights: jax.Array, key: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        del key
        signs = _sign(weights)
        return _straight_through(weights, signs), signs.astype(jnp.int8)

    return PerWeight(bits=1, scales=0, quantize=quantize)


def stochastic_binary_connect() -> PerWeight:
    """BinaryConnect, stochastic: ŵ = +1 with probability clip((w + 1)/2, 0, 1), otherwise -1; sign(w) in evaluation.

    Of the three ways to evaluate that its authors give, this is the one with binary weights. Batch normalisation, whose
    running averages belong to weights of magnitude 1, fails at the full-precision weights.

    Example:
        >>> weights, codes = stochastic_binary_connect().forward(jnp.array([[1.5, -1.5]]), jax.random.key(0))
        >>> weights
        Array([[ 1., -1.]], dtype=float32)

    References:
        Courbariaux, Bengio, David, BinaryConnect, NeurIPS 2015, Eq. 2 and 3, Section 2.6.
    """

    def quantize(weights: jax.Array, key: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        signs = _sign(weights)
        if key is not None:
            plus = jax.random.bernoulli(key, jnp.clip((weights + 1) / 2, 0, 1))
            signs = jnp.where(plus, 1.0, -1.0).astype(weights.dtype)
        return _straight_through(weights, signs), signs.astype(jnp.int8)

    return PerWeight(bits=1, scales=0, quantize=quantize)


def ternary_weights() -> PerWeight:
    """Ternary weight networks: with Δ = 0.7·mean|w|, ŵ = α·sign(w) where |w| > Δ, else 0; α = mean of these |w|.

    Example:
        >>> ternary_weights().evaluated(jnp.array([[1.0, -0.6, 0.1, 0.0]]))  # Δ = 0.2975
        Array([[ 0.8, -0.8,  0. ,  0. ]], dtype=float32)

    References:
        Li, Zhang, Liu, Ternary Weight Networks, 2016, Eq. 5 and 6.
    """

    def quantize(weights: jax.Array, key: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        del key
        magnitudes = jnp.abs(weights)
        kept = magnitudes > 0.7 * jnp.mean(magnitudes)
        scale = jnp.sum(jnp.where(kept, magnitudes, 0)) / jnp.maximum(1, jnp.sum(kept))
        codes = jnp.where(kept, jnp.sign(weights), 0)
        return _straight_through(weights, scale * codes), codes.astype(jnp.int8)

    return PerWeight(bits=2, scales=1, quantize=quantize)


def dorefa(bits: int) -> PerWeight:
    """DoReFa weights.

    For 2 bits and more, with n = 2^bits - 1 and t = tanh(w) / (2 max|tanh(w)|) + 1/2 in [0, 1]:
    ŵ = 2 round(n t)/n - 1, codes 0 to n; rounding passes gradients straight through. For 1 bit ŵ = sign(w)·mean|w|.

    Args:
        bits: 1 to 7.

    Example:
        >>> weights = jnp.arctanh(jnp.array([[-0.8, -0.1, 0.2, 0.8]]))  # n t = 0, 1.3125, 1.875, 3
        >>> dorefa(2).evaluated(weights).round(4)
        Array([[-1.    , -0.3333,  0.3333,  1.    ]], dtype=float32)

    References:
        Zhou et al., DoReFa-Net, 2016, Eq. 9 and Section 2.3.
    """

    def quantize(weights: jax.Array, key: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        del key
        if bits == 1:
            signs = _sign(weights)
            scale = jnp.mean(jnp.abs(weights))
            return _straight_through(weights, scale * signs), signs.astype(jnp.int8)
        n = 2**bits - 1
        squashed = jnp.tanh(weights)
        # An all-zero tensor would divide 0 by 0.
        largest = jnp.maximum(jnp.max(jnp.abs(squashed)), jnp.finfo(weights.dtype).tiny)
        scaled = n * (squashed / (2 * largest) + 0.5)
        codes = _straight_through(scaled, jnp.round(scaled))
        return 2 * codes / n - 1, jnp.round(scaled).astype(jnp.int8)

    return PerWeight(bits=bits, scales=1 if bits == 1 else 0, quantize=quantize)


@dataclass(frozen=True)
class LearnedStepSize(ModelSide):
    """Learned step size quantization (LSQ) of weights.

    ŵ = s·round(clip(w/s, -2^(bits-1), 2^(bits-1) - 1)), one step size s for each weight tensor, learned by gradient
    descent with its gradient times 1/√(size·(2^(bits-1) - 1)); initially s = 2 mean|w| / √(2^(bits-1) - 1).

    Attributes:
        bits: Bits of a code, 2 to 8.
        scales: 1.

    Example:
        >>> params = {"network": jnp.array([[0.9, -0.6, 0.1]]), "step_sizes": [jnp.array(0.5)]}
        >>> LearnedStepSize(2).evaluated(params)
        Array([[ 0.5, -0.5,  0. ]], dtype=float32)

    References:
        Esser et al., Learned Step Size Quantization, ICLR 2020, Eq. 1 to 3, Sections 2.1 and 2.2.
    """

    scales: int = 1

    @property
    def _largest(self) -> int:
        return 2 ** (self.bits - 1) - 1

    def init(self, params: Any) -> Any:
        """The parameters of the network, and a step size for each weight tensor."""
        step_sizes = [
            2 * jnp.mean(jnp.abs(leaf)) / self._largest**0.5 for leaf in jax.tree.leaves(params) if leaf.ndim >= 2
        ]
        return {"network": params, "step_sizes": step_sizes}

    def forward(self, params: Any, key: jax.Array | None) -> tuple[Any, list[jax.Array]]:
        """Quantized weights and codes."""
        del key
        leaves, structure = jax.tree.flatten(params["network"])
        step_sizes = iter(params["step_sizes"])
        weights, codes = [], []
        for leaf in leaves:
            if leaf.ndim >= 2:
                # The optimizer may take a step size below 0, which would mirror the weights.
                step_size = jnp.maximum(next(step_sizes), 1e-8)
                step_size = _scale_gradient(step_size, (leaf.size * self._largest) ** -0.5)
                clipped = jnp.clip(leaf / step_size, -self._largest - 1, self._largest)
                codes.append(jnp.round(clipped).astype(jnp.int8))
                leaf = step_size * _straight_through(clipped, jnp.round(clipped))
            weights.append(leaf)
        return jax.tree.unflatten(structure, weights), codes


def _scale_gradient(value: jax.Array, factor: float) -> jax.Array:
    """`value`, with `factor` times its gradient."""
    return _straight_through(value * factor, value)
