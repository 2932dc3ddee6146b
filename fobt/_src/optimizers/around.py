"""The method around an Optax optimizer with a second moment, which takes every step: T(g, s) for state s, say.

    w* = w + u₁           u₁, s₁ from T(g, s)                                              (5)  one step forward
    g* = gradient at the projection of w* with the second moment v₁ of s₁                  (4)
    g' = a g + (1 - a) g*                                                                  (8)  backtrack
    √v = a √v₁ + (1 - a) √(v* c₂(t) / c₂(t + 1))    v* of T(g*, s₁)                        (9)
    w ← w + u             u from T(g', s), made to divide by √v                            (7)

The divisor of T is set through its state. T turns a second moment v₀ into b₂ v₀ + q, with q of the gradient alone, so
that it divides by √v where it is given v₀ + (v - v₀') / b₂, with v₀' what it makes of v₀. Whatever else T does to its
steps, such as decoupled weight decay, it does as always. With `optax.adam` this is Adam's own form, in
`forward_backtrack`, to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fobt._src.base.checks import check_no_holes, check_same_leaves, check_state
from fobt._src.optimizers.blending import anew, blend_trees, check_arguments, is_two_stage, norm_is_finite
from fobt._src.optimizers.quantized_optimizer import QuantizedOptimizer
from fobt._src.trees.grad_fn import GradFn
from fobt._src.trees.leaves import TreeQuantizer, leaf_quantizers
from fobt._src.trees.params import quantized_params
from fobt._src.trees.second_moments import moment_holders, second_moments, with_second_moments

# A gradient below what gradients are clipped to, and far above the ε of optimizers.
_PROBE = 2.0**-10


def around(
    optimizer: optax.GradientTransformation,
    quantizer: TreeQuantizer,
    a: float,
    every: int | Callable[[jax.Array], Any],
    never: bool,
) -> QuantizedOptimizer:
    """`forward_backtrack` around an optimizer; `never` says that no trial gradient is taken."""
    inner = optax.with_extra_args_support(optimizer)
    _check_averages_squares(inner)

    def init(params: optax.Params) -> Any:
        check_no_holes(params)
        leaf_quantizers(quantizer, params)
        return inner.init(params)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        *,
        grad_fn: GradFn | None = None,
        two_stage: Any = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        check_arguments(updates, params, grad_fn, quantizer, never)
        check_state(state, inner.init, params)

        def take(grads: optax.Updates, state: Any, params: Any = params) -> tuple[optax.Updates, Any]:
            return inner.update(grads, state, params, **extra_args)

        def two_stage_step(grad_fn: GradFn) -> tuple[optax.Updates, Any]:
            plain_steps, plain_state = take(updates, state)
            trial = optax.apply_updates(params, plain_steps)  # (5)
            returned = grad_fn(quantized_params(trial, plain_state, quantizer))  # (4)
            check_same_leaves("the gradients that grad_fn returns", returned, "params", params)
            trial_grads = jax.tree.unflatten(jax.tree.structure(updates), jax.tree.leaves(returned))
            return backtrack(norm_is_finite(trial_grads), *anew((updates, trial_grads, trial, state)))

        def backtrack(
            finite: jax.Array, current_grads: optax.Updates, trial_grads: optax.Updates, trial: optax.Params, state: Any
        ) -> tuple[optax.Updates, Any]:
            plain_state = take(current_grads, state)[1]
            grads = blend_trees(a, current_grads, trial_grads, finite)  # (8)
            rates = _decay_rates(take, plain_state, params)
            ahead = list(map(_as_if_now, moment_holders(take(trial_grads, plain_state, trial)[1]), rates))
            roots = [jax.tree.map(jnp.sqrt, v) for v in (second_moments(plain_state), ahead)]
            moments = jax.tree.map(jnp.square, blend_trees(a, roots[0], roots[1], finite))  # (9)
            own = second_moments(take(grads, state)[1])
            given = jax.tree.map(_given, second_moments(state), own, moments, rates)
            return take(grads, with_second_moments(state, given))  # (7), and (6) of the next step

        if never or grad_fn is None:
            return take(updates, state)
        counts = [holder.count for holder in moment_holders(state) if _counts(holder)]
        if not counts and two_stage is None and not (isinstance(every, int) and every == 1):
            raise ValueError(
                f"every must be 1 around an optimizer that counts no steps, got {every!r}: pass two_stage to the "
                "update instead."
            )
        now = is_two_stage(every, two_stage, counts[0] if counts else jnp.zeros((), jnp.int32))
        if now is False:
            return take(updates, state)
        if now is True:
            return two_stage_step(grad_fn)
        return jax.lax.cond(now, lambda: two_stage_step(grad_fn), lambda: take(updates, state))

    return QuantizedOptimizer(init, update, quantizer)


def _decay_rates(take: Callable[..., Any], state: Any, params: optax.Params) -> list[Any]:
    """b₂ of each second moment, a scalar for each leaf: what becomes of 1 without a gradient."""
    zeros = optax.tree.zeros_like(params)
    ones = jax.tree.map(jnp.ones_like, second_moments(state))
    decayed = second_moments(take(zeros, with_second_moments(state, ones), zeros)[1])
    return jax.tree.map(lambda v: v[(0,) * v.ndim] if v.size else jnp.ones((), v.dtype), decayed)


def _as_if_now(holder: Any, rates: Any) -> Any:
    """v* c₂(t) / c₂(t + 1) of a state after t + 1 updates; v* where it counts none, as it does not correct then."""
    if not _counts(holder):
        return holder.nu

    def corrected(v: jax.Array, b2: jax.Array) -> jax.Array:
        steps = holder.count.astype(b2.dtype)
        return v * ((1 - b2 ** (steps - 1)) / (1 - b2**steps))

    return jax.tree.map(corrected, holder.nu, rates)


def _counts(holder: Any) -> bool:
    """Whether a state counts the updates; every tuple has a method of this name."""
    return "count" in holder._fields


def _given(before: jax.Array, own: jax.Array, wanted: jax.Array, b2: jax.Array) -> jax.Array:
    """What the optimizer is given for the second moment `before`, of which it makes `own`, to make the wanted one."""
    given = before + (wanted - own) / b2
    return jnp.where(jnp.isfinite(given), given, before)


def _check_averages_squares(optimizer: optax.GradientTransformationExtraArgs) -> None:
    """Raises unless the optimizer keeps averages of squared gradients, as far as one step on a matrix tells.

    Nothing is said of an optimizer that cannot take that step, as it divides leaves by their names, say.
    """
    try:
        with jax.ensure_compile_time_eval():
            params = jnp.zeros((1, 1), jnp.float32)
            state = optimizer.init(params)
            rates = _decay_rates(optimizer.update, state, params)
            empty = with_second_moments(state, jax.tree.map(jnp.zeros_like, second_moments(state)))
            after = second_moments(optimizer.update(jnp.full_like(params, _PROBE), empty, params)[1])
            averages = [
                abs(v.item() / _PROBE**2 - (1 - b2.item())) <= 1e-3 * (1 - b2.item()) and 0 < b2.item() < 1
                for v, b2 in zip(jax.tree.leaves(after), jax.tree.leaves(rates), strict=True)
            ]
    except Exception:  # of whatever kind: it is not ours to say what a stranger's optimizer raises
        return
    if not averages or not all(averages):
        raise ValueError(
            "the optimizer under forward_backtrack must keep a second moment `nu` that averages squared gradients, as "
            "optax.adam, adamw, lamb and rmsprop do; got another one."
        )
