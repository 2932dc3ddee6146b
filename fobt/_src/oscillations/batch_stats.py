"""Batch statistics for evaluation, as averages over fresh batches at the weights that are evaluated."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from fobt._src.base.checks import check_same_leaves
from fobt._src.base.tree_paths import leaf_paths

BatchStats = TypeVar("BatchStats")
Batch = TypeVar("Batch")

# How far rounding may take a decay rate of 0 below 0, or one of 1 below 1.
_ROUNDING = 1e-5


def reestimate_batch_stats(
    update_fn: Callable[[BatchStats, Batch], BatchStats], batch_stats: BatchStats, batches: Iterable[Batch]
) -> BatchStats:
    r"""Replaces the running averages of batch normalisation by averages over fresh batches.

    Running averages are of the weights of many steps, and where codes flip, the latest of these differ from the weights
    that are evaluated. A forward pass in training mode replaces every running average r by m r + (1 - m) s, with the
    statistic s of the batch and a decay rate m; the rate is read off two passes over the first batch. The result is the
    mean of s over the batches, taken in float32 or wider, to a relative error of about 1e-7 / (1 - m) in float32.

    Args:
      update_fn: (batch_stats, batch) -> batch_stats, a pure function that runs the model in training mode at the
        weights to be evaluated, `fobt.quantized_params(params, state, quantizer)`; best under `jax.jit`.
      batch_stats: running averages; only structure, shapes and dtypes matter.
      batches: fresh minibatches of training; the paper takes 50.

    Returns:
      The averages, with structure, shapes and dtypes of `batch_stats`.

    Raises:
      ValueError: there are no batches; `update_fn` returns other leaves, or does not change one as a running average
        with m in [0, 1).

    Example:
      >>> import fobt
      >>> import jax.numpy as jnp
      >>> def update_fn(batch_stats, batch):
      ...     return {"mean": 0.9 * batch_stats["mean"] + 0.1 * jnp.mean(batch)}
      >>> batches = [jnp.array([1.0, 2.0]), jnp.array([3.0, 6.0])]
      >>> fobt.reestimate_batch_stats(update_fn, {"mean": jnp.array(100.0)}, batches)["mean"].round(4)
      Array(3., dtype=float32)

      With Flax NNX:

      >>> import jax
      >>> from flax import nnx
      >>> model = nnx.BatchNorm(2, rngs=nnx.Rngs(0))
      >>> graph, weights, batch_stats, rest = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
      >>> @jax.jit
      ... def update_fn(batch_stats, images):
      ...     model = nnx.merge(graph, weights, batch_stats, rest)
      ...     model(images, use_running_average=False)
      ...     return nnx.as_pure(nnx.state(model, nnx.BatchStat))
      >>> images = [jnp.array([[1.0, 2.0], [3.0, 2.0]])]
      >>> fobt.reestimate_batch_stats(update_fn, nnx.as_pure(batch_stats), images)["mean"].round(4)
      Array([2., 2.], dtype=float32)

      With Flax Linen:

      >>> import flax.linen as nn
      >>> model = nn.BatchNorm(use_running_average=False)
      >>> variables = model.init(jax.random.key(0), images[0])
      >>> @jax.jit
      ... def update_fn(batch_stats, images):
      ...     variables_in = {"params": variables["params"], "batch_stats": batch_stats}
      ...     return model.apply(variables_in, images, mutable=["batch_stats"])[1]["batch_stats"]
      >>> fobt.reestimate_batch_stats(update_fn, variables["batch_stats"], images)["mean"].round(4)
      Array([2., 2.], dtype=float32)

    References:
      Nagel, Fournarakis, Bondarenko, Blankevoort, Overcoming Oscillations in Quantization-Aware Training, ICML 2022.
    """
    zeros = jax.tree.map(lambda r: jnp.zeros_like(r, np.promote_types(r.dtype, jnp.float32)), batch_stats)
    total, rates, count = zeros, zeros, 0
    for count, batch in enumerate(batches, start=1):
        parts = update_fn(zeros, batch)  # (1 - m) s
        if count == 1:
            check_same_leaves("what update_fn returns", parts, "batch_stats", batch_stats)
            rates = _decay_rates(update_fn, parts, batch)
        total = _sum(total, parts)
    if count == 0:
        raise ValueError("batches must not be empty, got none.")
    return _average(total, rates, batch_stats, count)


@jax.jit
def _sum(total: BatchStats, parts: BatchStats) -> BatchStats:
    return jax.tree.map(jnp.add, total, parts)


@jax.jit
def _average(total: BatchStats, rates: BatchStats, batch_stats: BatchStats, count: int) -> BatchStats:
    return jax.tree.map(lambda t, m, r: (t / (count * (1 - m))).astype(r.dtype), total, rates, batch_stats)


def _decay_rates(update_fn: Callable[[BatchStats, Batch], BatchStats], parts: BatchStats, batch: Batch) -> BatchStats:
    """The rates m = (update(x) - update(0)) / x for a running average x, given update(0) = (1 - m) s as parts."""
    # x as large as what it is added to, so that little is lost to rounding.
    probes = jax.tree.map(lambda part: jnp.maximum(1, jnp.abs(part)), parts)
    rates = jax.tree.map(lambda with_x, part, x: (with_x - part) / x, update_fn(probes, batch), parts, probes)
    for path, rate in zip(leaf_paths(rates), jax.device_get(jax.tree.leaves(rates)), strict=True):
        wrong = rate[~((rate >= -_ROUNDING) & (rate < 1 - _ROUNDING))]
        if wrong.size:
            raise ValueError(
                "update_fn must take every running average r to m r + (1 - m) s with m in [0, 1), got m = "
                f"{np.ravel(wrong)[0]:g} at {path!r}."
            )
    return jax.tree.map(lambda rate: jnp.maximum(0, rate), rates)
