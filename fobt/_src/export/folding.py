"""Folding batch normalisation into the weights in front of it, without touching a code."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from fobt._src.quantizers.granularity import Granularity, PerBlock, PerChannel, PerTensor
from fobt._src.quantizers.quantized import Quantized


def fold_batch_norm(
    kernel: Quantized | ArrayLike,
    mean: ArrayLike,
    var: ArrayLike,
    scale: ArrayLike | None = None,
    bias: ArrayLike | None = None,
    *,
    epsilon: float,
    layer_bias: ArrayLike | None = None,
) -> tuple[Quantized | jax.Array, jax.Array]:
    r"""Weights and bias of a layer that does what a layer and its batch normalisation do in inference.

    With the gain G = γ/√(σ² + ε) of each output channel, normalising x·W + b gives

        γ (x·W + b - μ)/√(σ² + ε) + β = x·(G W) + (b - μ) G + β.

    The gain goes into the scale of quantized weights, which becomes one scale per channel; the codes are those of
    `kernel`. Where γ is negative, so is the scale of the channel; no other function makes such scales.

    The normalisation must come directly after the layer. Max-pooling between the two changes places with it only where
    γ ≥ 0 in all channels.

    Args:
      kernel: W, quantized or not, whose last axis is that of the output channels, as in Flax.
      mean: μ, the running average, shape (channels,). This and the next three have the names that Flax gives them in
        `batch_stats` and `params`.
      var: σ², the running average, shape (channels,).
      scale: γ, shape (channels,), by default 1.
      bias: β, shape (channels,), by default 0.
      epsilon: ε of the normalisation; Flax's default is 1e-5.
      layer_bias: b, shape (channels,), by default 0.

    Returns:
      The kernel G W and the bias, float32 or wider, shape (channels,).

    Raises:
      ValueError: a shape does not fit, or blocks of weights with one scale extend over output channels.

    Example:
      >>> import fobt
      >>> import jax.numpy as jnp
      >>> params = {"Dense_0": {"kernel": jnp.array([[1.0, -3.0]])}, "BatchNorm_0": {"scale": jnp.array([2.0, -1.0])}}
      >>> batch_stats = {"BatchNorm_0": {"mean": jnp.array([1.0, 0.0]), "var": jnp.array([4.0, 1.0])}}
      >>> kernel = fobt.binary()(params["Dense_0"]["kernel"])
      >>> kernel, bias = fobt.fold_batch_norm(kernel, **batch_stats["BatchNorm_0"], **params["BatchNorm_0"], epsilon=0)
      >>> kernel.codes, kernel.scale, bias
      (Array([[ 1, -1]], dtype=int8), Array([[ 2., -2.]], dtype=float32), Array([-1.,  0.], dtype=float32))
    """
    shape = kernel.codes.shape if isinstance(kernel, Quantized) else jnp.shape(kernel)
    if not shape:
        raise ValueError("kernel must have an axis of output channels, got a scalar.")
    vectors = {"mean": mean, "var": var, "scale": scale, "bias": bias, "layer_bias": layer_bias}
    given = {name: jnp.asarray(vector) for name, vector in vectors.items() if vector is not None}
    for name, vector in given.items():
        if vector.shape != shape[-1:]:
            raise ValueError(f"{name} must have shape {shape[-1:]}, that of the output channels, got {vector.shape}.")
    floating = [vector.dtype for vector in given.values() if jnp.issubdtype(vector.dtype, jnp.floating)]
    dtype = functools.reduce(np.promote_types, floating, np.dtype(np.float32))
    wide = {name: vector.astype(dtype) for name, vector in given.items()}
    zero = jnp.zeros(shape[-1:], dtype)
    gain = wide.get("scale", zero + 1) * jax.lax.rsqrt(wide["var"] + epsilon)
    shift = (wide.get("layer_bias", zero) - wide["mean"]) * gain + wide.get("bias", zero)
    if not isinstance(kernel, Quantized):
        kernel = jnp.asarray(kernel)
        folded = kernel.astype(np.promote_types(dtype, kernel.dtype)) * _along_last_axis(gain, kernel.ndim)
        return folded.astype(kernel.dtype), shift
    return _scaled(kernel, gain), shift


def _scaled(kernel: Quantized, gain: jax.Array) -> Quantized:
    """The quantized weights times a gain for each index of their last axis."""
    split, ndim = kernel.granularity, kernel.codes.ndim
    if isinstance(split, PerBlock) and split.axis % ndim == ndim - 1:
        raise ValueError(f"kernel must not share scales between output channels in blocks, got {split!r}.")
    scale = kernel.scale
    if isinstance(split, PerTensor):
        scale = scale.reshape(scale.shape + (1,) * ndim)
    wide = np.promote_types(scale.dtype, gain.dtype)
    scale = (scale.astype(wide) * _along_last_axis(gain.astype(wide), scale.ndim)).astype(kernel.scale.dtype)
    return dataclasses.replace(kernel, scale=scale, granularity=_with_channels(split, ndim))


def _along_last_axis(gain: jax.Array, ndim: int) -> jax.Array:
    return gain.reshape((1,) * (ndim - 1) + (-1,))


def _with_channels(split: Granularity, ndim: int) -> Granularity:
    if isinstance(split, PerTensor):
        return PerChannel((-1,))
    if isinstance(split, PerChannel) and ndim - 1 not in {axis % ndim for axis in split.kept}:
        return PerChannel((*split.kept, -1))
    return split
