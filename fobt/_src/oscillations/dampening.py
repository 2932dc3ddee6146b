"""A loss that draws latents to their levels, so that fewer codes go back and forth."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fobt._src.base.totals import total
from fobt._src.quantizers.quantized import Quantized
from fobt._src.trees.leaves import TreeQuantizer
from fobt._src.trees.params import leaves_of_quantized, quantize


def dampening_loss(
    params: optax.Params, state: optax.OptState | None, quantizer: TreeQuantizer, *, axis: int = -1
) -> jax.Array:
    r"""How far the latents are from the quantized weights: Σ (ŵ - clip(w, lowest, highest))².

    For a quantized leaf w with projection ŵ, `lowest` and `highest` are the weights that its lowest and its highest
    code stand for, so latents beyond them are not drawn back. ŵ and the scales are constants in the gradient. Squares
    are summed over `axis` and averaged over the others, and leaves are summed. As published, the sum runs over output
    channels: the first axis of PyTorch's weights, the last of a Flax kernel.

    The loss belongs to the latents, while the gradients of the model are taken at the quantized weights; its gradient,
    times λ, is added to theirs (see the example). The published λ is 0 in the first quarter of training; then it rises
    from 0 to 0.1 along half a cosine:

        quarter = steps // 4
        falling = optax.cosine_decay_schedule(0.1, steps - quarter)
        rising = lambda count: 0.1 - falling(count)
        weight = optax.join_schedules([optax.constant_schedule(0.0), rising], [quarter])

    Args:
      params: full-precision weights.
      state: as for `fobt.quantize`.
      quantizer: what is quantized and how.
      axis: the axis of the sum, by default that of the output channels of a Flax kernel.

    Returns:
      The loss, a scalar, float32 or wider; 0 where nothing is quantized.

    Raises:
      ValueError: as for `fobt.quantize`, or a quantized leaf has no such axis.

    Example:
      >>> import fobt, jax, optax
      >>> import jax.numpy as jnp
      >>> def loss_fn(weights):
      ...     return jnp.sum((weights - jnp.array([[1.0, -2.0, 1.5]])) ** 2)
      >>> quantizer, tx, weight = fobt.binary(), optax.adam(0.1), 0.1
      >>> params = jnp.array([[0.5, -1.5, 1.0]])
      >>> state = tx.init(params)
      >>> loss, grads, _ = fobt.value_and_grad(loss_fn, quantizer)(params, state)
      >>> fobt.oscillations.dampening_loss(params, state, quantizer)  # the quantized weights are 1, -1 and 1
      Array(0.25, dtype=float32)
      >>> damping = jax.grad(fobt.oscillations.dampening_loss)(params, state, quantizer)
      >>> damping[0, 0]  # draws 0.5 towards 1
      Array(-1., dtype=float32)
      >>> grads = jax.tree.map(lambda g, d: g + weight * d, grads, damping)
      >>> updates, state = tx.update(grads, state, params)

    References:
      Nagel, Fournarakis, Bondarenko, Blankevoort, Overcoming Oscillations in Quantization-Aware Training, ICML 2022.
    """
    quantized = leaves_of_quantized(quantize(jax.lax.stop_gradient(params), state, quantizer))
    losses = [
        _leaf_loss(latents, leaf, axis)
        for latents, leaf in zip(jax.tree.leaves(params), quantized, strict=True)
        if isinstance(leaf, Quantized)
    ]
    return total(losses)


def _leaf_loss(latents: jax.Array, quantized: Quantized, axis: int) -> jax.Array:
    if not -latents.ndim <= axis < latents.ndim:
        raise ValueError(f"axis must be one of a quantized leaf of shape {latents.shape}, got {axis}.")
    n = quantized.grid.max_code
    lowest, highest = (
        dataclasses.replace(quantized, codes=jnp.full_like(quantized.codes, code)).dequantize() for code in (-n, n)
    )
    wide = np.promote_types(latents.dtype, jnp.float32)
    errors = quantized.dequantize().astype(wide) - jnp.clip(latents, lowest, highest).astype(wide)
    averaged = latents.size // max(1, latents.shape[axis])
    return jnp.sum(jnp.square(errors)) / float(max(1, averaged))
