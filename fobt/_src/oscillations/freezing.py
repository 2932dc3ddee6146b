"""Freezing weights whose codes go back and forth.

With codes cₜ of a weight in the forward pass of step t, oₜ = 1 where cₜ differs from cₜ₋₁ in the direction opposite to
the last change before, and decay d,

    f ← d f + (1 - d) oₜ,       c̄ ← d c̄ + (1 - d) cₜ;

where f exceeds the threshold for the first time, the code is fixed at the allowed code nearest to c̄.

The quantized weights are a function of params and optimizer state, so what is fixed is the latent. The params and state
after the update are projected once with next to no curvature for frozen weights, and these are then put at scale ·
β(code). There they fit without error, and the scale is the one that fits the other weights; so the minimiser of the
whole projection, which is the next forward pass, has that scale and these codes.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fobt._src.base.checks import check_no_holes, check_number, check_same_leaves
from fobt._src.optimizers.quantized_optimizer import QuantizedOptimizer, gradients_at
from fobt._src.oscillations.code_changes import CodeChanges, no_changes, record
from fobt._src.quantizers.grid import Grid
from fobt._src.quantizers.quantized import Quantized
from fobt._src.quantizers.quantizer import Quantizer
from fobt._src.trees.curvature import curvatures
from fobt._src.trees.grad_fn import check_same_quantizer
from fobt._src.trees.leaves import TreeQuantizer, check_quantizer, leaf_quantizers
from fobt._src.trees.params import leaves_of_quantized, quantize

_FREE = np.int8(-128)  # no code of any grid
# Relative to the curvature of other weights. Not 0, so that the scale of a group stays when all of it is frozen.
_CURVATURE_OF_FROZEN = 1e-6


class FreezeOscillationsState(NamedTuple):
    """State of `freeze_oscillations`: 11 bytes per parameter besides that of the optimizer.

    Attributes:
      inner: state of the optimizer.
      steps: number of updates, int32, shape ().
      changes: codes of the last forward pass, direction of their last change, and f, in trees like the params; leaves
        that are not quantized have code 0.
      mean_codes: c̄, float32, a tree like the params.
      frozen_codes: int8, a tree like the params: the code of a frozen weight, -128 for other weights.
    """

    inner: Any
    steps: jax.Array
    changes: CodeChanges
    mean_codes: Any
    frozen_codes: Any


def freeze_oscillations(
    optimizer: optax.GradientTransformation,
    quantizer: TreeQuantizer,
    threshold: optax.ScalarOrSchedule,
    *,
    decay: float = 0.99,
) -> optax.GradientTransformationExtraArgs:
    r"""Iterative freezing: the code of a weight that oscillates too often is fixed for the rest of training.

    A weight oscillates in a step where its code changes in the direction opposite to its last change. Its frequency is
    the moving average f ← d f + (1 - d) o over steps, o being 1 or 0. Where f exceeds the threshold, the code is fixed
    at the rounded moving average of the weight's codes; on the binary grid, which has no 0, at its sign. Scales go on
    to train, fitted to the other weights. The codes are those of `fobt.quantized_params(params, state, quantizer)`, at
    which the gradients are taken; under one `jax.jit` the projection is computed once.

    The update of a frozen weight takes its latent to the level of its code, so that the next projection returns that
    code. That takes one more projection a step. It holds for the binary grid and for exact minimisers, with the
    "candidates" solver to its accuracy; the "alternating" solver finds local minima, in which codes may change for a
    step. The trial weights of `forward_backtrack` are not frozen.

    The published schedule freezes nothing in the first quarter of training; then the threshold falls from 0.1 to 0.01
    along half a cosine:

        quarter = steps // 4
        annealed = optax.cosine_decay_schedule(0.1, steps - quarter, alpha=0.1)
        threshold = optax.join_schedules([optax.constant_schedule(1.0), annealed], [quarter])

    Args:
      optimizer: any that keeps a second moment `nu`, see `fobt.quantize`. What it does to latents, such as weight decay
        and weight bounds, belongs inside: after this transformation it would move frozen weights.
      quantizer: what is quantized and how.
      threshold: at least 0, or an Optax schedule, called with counts from 0. As f ≤ 1, nothing freezes at 1 or
        above; below 1 - d, a weight freezes at its first oscillation.
      decay: d in [0, 1); the published 0.01 is the weight of the new value, 1 - d.

    Returns:
      A transformation with the state `FreezeOscillationsState`. Keywords of its update, such as `grad_fn` and
      `two_stage`, go to `optimizer`.

    Raises:
      ValueError: an argument is out of range; at `init` or `update`, params are missing, have holes, or do not match
        the gradients, or the state holds no second moment, or `grad_fn` was made by `fobt.value_and_grad` with another
        quantizer.

    Example:
      >>> import fobt, jax, optax
      >>> import jax.numpy as jnp
      >>> def loss_fn(weights):  # between the levels that ternary weights reach
      ...     return jnp.sum((weights - jnp.array([[2.0, -2.0, 0.7]])) ** 2)
      >>> quantizer = fobt.ternary()
      >>> tx = fobt.oscillations.freeze_oscillations(optax.adam(0.05), quantizer, threshold=0.1)
      >>> @jax.jit
      ... def step(carry, _):
      ...     params, state = carry
      ...     _, grads, _ = fobt.value_and_grad(loss_fn, quantizer)(params, state)
      ...     updates, state = tx.update(grads, state, params)
      ...     return (optax.apply_updates(params, updates), state), state.changes.codes
      >>> params = jnp.array([[1.0, -1.0, 0.2]])
      >>> (params, state), codes = jax.lax.scan(step, (params, tx.init(params)), length=400)
      >>> flips = jnp.sum(codes[1:] != codes[:-1], axis=1)
      >>> int(flips[:200].sum()), int(flips[200:].sum())  # the third weight goes back and forth, then it is frozen
      (14, 0)
      >>> fobt.oscillations.is_frozen(state)
      Array([[False, False,  True]], dtype=bool)

    References:
      Nagel, Fournarakis, Bondarenko, Blankevoort, Overcoming Oscillations in Quantization-Aware Training, ICML 2022.
    """
    check_quantizer(quantizer)
    if not callable(threshold):
        check_number("threshold", threshold, "at least 0, or a schedule", lambda value: value >= 0)
    check_number("decay", decay, "in [0, 1)", lambda value: 0 <= value < 1)
    point = gradients_at(optimizer)
    optimizer = optax.with_extra_args_support(optimizer)

    def init(params: optax.Params) -> FreezeOscillationsState:
        check_no_holes(params)
        codes = jax.tree.unflatten(
            jax.tree.structure(params), _codes(leaves_of_quantized(quantize(params, None, quantizer)))
        )
        return FreezeOscillationsState(
            inner=optimizer.init(params),
            steps=jnp.zeros((), jnp.int32),
            changes=no_changes(codes),
            mean_codes=jax.tree.map(lambda code: code.astype(jnp.float32), codes),
            frozen_codes=jax.tree.map(lambda code: jnp.full_like(code, _FREE), codes),
        )

    def update(
        updates: optax.Updates,
        state: FreezeOscillationsState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, FreezeOscillationsState]:
        if params is None:
            raise ValueError("freeze_oscillations: params must be given: update(updates, state, params), got None.")
        check_no_holes(params)
        check_same_leaves("updates", updates, "params", params)
        check_same_quantizer(extra_args.get("grad_fn"), quantizer, params)
        quantizers = leaf_quantizers(quantizer, params)
        quantized = leaves_of_quantized(quantize(params, state.inner, quantizer))
        structure = jax.tree.structure(state.frozen_codes)
        codes = jax.tree.unflatten(structure, _codes(quantized))
        changes = record(state.changes, codes, decay)
        mean_codes = jax.tree.map(
            lambda code, mean: decay * mean + (1 - decay) * code.astype(mean.dtype), codes, state.mean_codes
        )
        limit = jnp.asarray(threshold(state.steps) if callable(threshold) else threshold, jnp.float32)  # as f
        frozen_codes = [
            code if leaf is None else jnp.where((code == _FREE) & (f > limit), _nearest_code(mean, leaf.grid), code)
            for leaf, code, f, mean in zip(
                quantizers, *map(jax.tree.leaves, (state.frozen_codes, changes.frequency, mean_codes)), strict=True
            )
        ]

        updates, inner = optimizer.update(updates, state.inner, params, **extra_args)
        rows = zip(
            quantizers,
            quantized,
            frozen_codes,
            curvatures(params, inner, quantizers),
            jax.tree.leaves(params),
            jax.tree.leaves(updates),
            strict=True,
        )
        held = [
            step if leaf is None else _hold(leaf, projection, code, curvature, latents, step)
            for leaf, projection, code, curvature, latents, step in rows
        ]
        return jax.tree.unflatten(jax.tree.structure(updates), held), FreezeOscillationsState(
            inner=inner,
            steps=optax.safe_increment(state.steps),
            changes=changes,
            mean_codes=mean_codes,
            frozen_codes=jax.tree.unflatten(structure, frozen_codes),
        )

    return QuantizedOptimizer(init, update, quantizer, gradients_at=point)


def is_frozen(state: optax.OptState) -> Any:
    """Which weights are frozen.

    Args:
      state: the state of an optimizer, chain or wrapper with one `freeze_oscillations` in it.

    Returns:
      A tree of bools like the params; leaves that are not quantized are never frozen.

    Raises:
      KeyError: the state holds no `freeze_oscillations`, or several.

    Example:
      >>> import fobt, optax
      >>> import jax.numpy as jnp
      >>> tx = fobt.oscillations.freeze_oscillations(optax.adam(0.1), fobt.binary(), threshold=0.1)
      >>> fobt.oscillations.is_frozen(tx.init(jnp.array([[0.5, -1.0]])))
      Array([[False, False]], dtype=bool)
    """
    return jax.tree.map(lambda code: code != _FREE, optax.tree.get(state, "frozen_codes"))


def _hold(
    quantizer: Quantizer,
    quantized: Quantized,
    frozen_codes: jax.Array,
    curvature: jax.Array,
    params: jax.Array,
    updates: jax.Array,
) -> jax.Array:
    """The updates of a leaf, with those of frozen weights replaced by the ones to the levels of their codes.

    Args:
      quantizer: the projection.
      quantized: projection of the params before the update, in whose scale frozen weights keep up with the others.
      frozen_codes: -128 for weights that are not frozen.
      curvature: curvature after the update.
      params: latents before the update.
      updates: as the optimizer makes them.
    """
    frozen = frozen_codes != _FREE
    codes = jnp.where(frozen, frozen_codes, quantized.codes)

    def levels(projection: Quantized) -> jax.Array:
        return dataclasses.replace(projection, codes=codes).dequantize()

    moved = jnp.where(frozen, levels(quantized), optax.apply_updates(params, updates))
    targets = levels(quantizer(moved, jnp.where(frozen, _CURVATURE_OF_FROZEN * curvature, curvature)))
    if quantizer.grid.spacing == "binary":
        # Any magnitude will do, but the sign must outlast a scale of 0 and the rounding of params + updates.
        limits = jnp.finfo(params.dtype)
        magnitudes = jnp.maximum(jnp.abs(targets), jnp.maximum(2 * limits.eps * jnp.abs(params), limits.tiny))
        targets = jnp.where(codes < 0, -magnitudes, magnitudes)
    return jnp.where(frozen, targets - params, updates).astype(updates.dtype)


def _nearest_code(mean: jax.Array, grid: Grid) -> jax.Array:
    """The allowed code nearest to a mean of codes."""
    return (jnp.where(mean < 0, -1, 1) if grid.spacing == "binary" else jnp.round(mean)).astype(jnp.int8)


def _codes(leaves: list[Any]) -> list[jax.Array]:
    """The codes of `leaves_of_quantized`; 0 where a leaf is not quantized."""
    return [leaf.codes if isinstance(leaf, Quantized) else jnp.zeros_like(leaf, jnp.int8) for leaf in leaves]
