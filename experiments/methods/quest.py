"""QuEST: levels fitted to a Gaussian, and gradients that are trusted only where rounding has moved a weight little.

Source: Panferov, Chen, Tabesh, Castro, Nikdan, Alistarh, QuEST: Stable Training of LLMs with 1-Bit Weights and
Activations, ICML 2025, arXiv:2502.05003. It quantizes activations too, and has a scale for each output channel; here
are its weights, with one scale for a tensor as in all rows.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy  # loads its parts where they are first used

import fobt
from experiments.methods.given_scale import over_weights, rounded_to
from experiments.methods.method import Hyperparameters, Method
from experiments.methods.registry import register

Rotation: TypeAlias = Callable[[jax.Array], jax.Array]
LARGEST_BLOCK = 128


@register("QuEST", tuned={"QuEST": {}})
def quest(hyper: Hyperparameters, quantizer: fobt.Quantizer) -> Method:
    """Adam with `trust_mask`, at the levels nearest to w with the scale of `gaussian_scale`, without rotation."""
    quantize = gaussian_levels(quantizer)
    optimizer = optax.chain(trust_mask(quantizer), hyper.bounded_adam(quantizer))
    return Method(optimizer, quantizer, quantize=over_weights(quantize))


@register("QuEST with Hadamard rotation", tuned={"QuEST with Hadamard rotation": {}})
def quest_hadamard(hyper: Hyperparameters, quantizer: fobt.Quantizer) -> Method:
    """The same for the weights H w in the basis of `rotate`; the network computes with H ŵ."""
    quantize = gaussian_levels(quantizer)

    def quantize_rotated(weights: jax.Array) -> fobt.Quantized:
        quantized = quantize(rotate(weights))
        return Rotated(**{field.name: getattr(quantized, field.name) for field in dataclasses.fields(quantized)})

    optimizer = optax.chain(trust_mask(quantizer, rotate), hyper.bounded_adam(quantizer))
    return Method(optimizer, quantizer, quantize=over_weights(quantize_rotated))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rotated(fobt.Quantized):
    """Codes and scale of rotated weights: they stand for weights that `rotate` turns back."""

    @jax.jit
    def dequantize(self) -> jax.Array:
        """The weights in their own basis, which are on no grid."""
        return rotate(super().dequantize())


def rotate(weights: jax.Array) -> jax.Array:
    """H w, block by block along the inputs, with the orthonormal Hadamard matrix H = Hᵀ = H⁻¹ of Sylvester.

    The inputs of a weight tensor are all of its axes but the last. A block has as many of them as the largest power of
    two that divides their number, at most 128, the size in the publication, which wants a multiple of 128. Where the
    number of inputs is odd, as in a 3x3 convolution of one channel, a block is one input and nothing is rotated.

    Example:
        >>> (rotate(jnp.array([[3.0], [1.0]])) * 2**0.5).round(4).ravel()
        Array([4., 2.], dtype=float32)
    """
    inputs = weights.size // weights.shape[-1]
    block = min(LARGEST_BLOCK, inputs & -inputs)
    matrix = jnp.asarray(scipy.linalg.hadamard(block) / np.sqrt(block), weights.dtype)
    blocks = weights.reshape(-1, block, weights.shape[-1])
    rotated = jnp.einsum("ij,bjo->bio", matrix, blocks, precision=jax.lax.Precision.HIGHEST)
    return rotated.reshape(weights.shape)


def gaussian_levels(quantizer: fobt.Quantizer) -> Callable[[jax.Array], fobt.Quantized]:
    """From a weight tensor to its nearest levels, with the scale that is best for Gaussian weights of the same RMS."""
    factor = gaussian_scale(quantizer)
    return rounded_to(quantizer, lambda weights: factor * jnp.sqrt(jnp.mean(jnp.square(weights))))


@functools.cache
def gaussian_scale(quantizer: fobt.Quantizer) -> float:
    """The α for which the levels α β of a grid have the least mean squared distance from a standard normal number x.

    With cells between midpoints m of the levels and b(x) the level of the cell of |x|/α, the distance is
    1 - 2α E[|x| b] + α² E[b²], where the expectations follow from density and distribution of x at α m.

    Example:
        >>> round(gaussian_scale(fobt.binary()), 4), round(gaussian_scale(fobt.ternary()), 4)
        (0.7979, 1.224)
    """
    levels, lower = quantizer.grid.positive_levels, quantizer.grid.midpoints
    upper = np.append(lower[1:], np.inf)

    def density(x: np.ndarray) -> np.ndarray:
        return np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)

    def distance(alpha: float) -> float:
        first = 2 * levels @ (density(alpha * lower) - density(alpha * upper))
        second = 2 * levels**2 @ (scipy.special.ndtr(alpha * upper) - scipy.special.ndtr(alpha * lower))
        return float(1 - 2 * alpha * first + alpha**2 * second)

    # 8 bits have their best outermost level at 3.9 standard deviations.
    return float(scipy.optimize.minimize_scalar(distance, bounds=(0.1, 8), options={"xatol": 1e-9}).x)


def trust_mask(quantizer: fobt.Quantizer, rotation: Rotation = lambda weights: weights) -> optax.GradientTransformation:
    """Passes the gradient of a weight only where |w - ŵ| is at most half a step of the grid: the first of a chain.

    Within the levels rounding moves a weight by no more than that, so the mask cuts the weights off that are further
    out than half a step beyond the outermost level. The step is the one next to that level, which is every step of a
    binary or linear grid.

    Args:
        quantizer: The grid; scales are those of `gaussian_levels`.
        rotation: Its own inverse; weights and gradients are compared and masked in its basis.
    """
    quantize = gaussian_levels(quantizer)
    levels = quantizer.grid.positive_levels
    inner = -1.0 if quantizer.grid.spacing == "binary" else np.append(0.0, levels)[-2]
    half_step = (levels[-1] - inner) / 2

    def mask(grads: jax.Array, weights: jax.Array) -> jax.Array:
        if weights.ndim < 2:
            return grads
        latents = rotation(weights)
        quantized = quantize(latents)
        trusted = jnp.abs(latents - quantized.dequantize()) <= half_step * quantized.scale
        return rotation(jnp.where(trusted, rotation(grads), 0))

    return optax.stateless(lambda grads, params: jax.tree.map(mask, grads, params))
