"""The method: one step forward, the gradient there, and back.

With latent weights w, ŵ = P(w, C) their curvature-weighted projection, g the gradient at ŵ, learning rate η and
backtracking coefficient a, a two-stage update computes (numbers as in the paper; ⊘ is elementwise division)

    w* = w - η m̂ ⊘ C₁           m̂, C₁: direction and curvature with g                    (5)  one step forward
    ŵ* = P(w*, C₁)                                                                         (4)
    g* = gradient at ŵ*, same minibatch;  C*: curvature with g, then g*
    g' = a g + (1 - a) g*                                                                  (8)  backtrack
    C  = a C₁ + (1 - a) C*                                                                 (9)
    w  ← w - η m̂' ⊘ C           m̂': direction with g' instead of g                       (7)

and leaves C in the optimizer state, so that the next ŵ = P(w, C) is a function of params and state (6). A plain update
is w ← w - η m̂ ⊘ C₁, which is loss-aware quantization.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import DTypeLike

from fobt._src.base.checks import check_no_holes, check_number, check_same_leaves, check_state
from fobt._src.optimizers.around import around
from fobt._src.optimizers.blending import anew, blend_trees, check_arguments, is_two_stage, norm_is_finite
from fobt._src.optimizers.preconditioner import Preconditioner, adam_preconditioner
from fobt._src.optimizers.quantized_optimizer import QuantizedOptimizer
from fobt._src.trees.batches import quantize_leaves
from fobt._src.trees.bounds import check_bounds, clip_updates
from fobt._src.trees.grad_fn import GradFn
from fobt._src.trees.leaves import TreeQuantizer, check_quantizer, leaf_quantizers
from fobt._src.trees.params import dequantize


def forward_backtrack(
    learning_rate: optax.ScalarOrSchedule | optax.GradientTransformation,
    quantizer: TreeQuantizer,
    *,
    a: float = 0.6,
    every: int | Callable[[jax.Array], Any] = 1,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    mu_dtype: DTypeLike | None = None,
    weight_bounds: Sequence[float] | None = None,
    grad_transform: optax.GradientTransformation | None = None,
    preconditioner: Preconditioner | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""One step forward and backtrack (BLAQ) with Adam's moments, for training weights of few bits.

    The update is called with gradients taken at `fobt.quantized_params(params, state, quantizer)` and with `grad_fn`:

        updates, state = tx.update(grads, state, params, grad_fn=grad_fn)

    `grad_fn` maps a tree of quantized weights to the gradients of the loss there, on the same minibatch and with the
    same random keys; batch statistics of that pass are to be dropped. It is evaluated once in a two-stage step and
    never in a plain one. `fobt.value_and_grad` makes it. An update takes one more keyword, `two_stage`, which overrides
    `every` for this step: a Python bool selects straight-line code (two compiled programs), a traced bool a `lax.cond`.
    Unknown keywords are ignored.

    Leaves that are not quantized take part in both stages with the identity as their projection. Where the norm of the
    trial gradient is not finite the step falls back to the plain one (the second moment to rounding).

    Args:
      learning_rate: η ≥ 0, or an Optax schedule, called with counts from 0: the optimizer under the method is Adam, as
        in the paper. Or another optimizer, learning rate included, whose second moment `nu` averages squared gradients:
        `optax.adamw`, lamb, rmsprop, or a chain or partition of such. Leaves that it leaves to an optimizer without a
        second moment take part with the blend of gradients alone.
      quantizer: what is quantized and how: the projection P.
      a: backtracking coefficient in (0, 1], the weight of the current gradient. a = 1 is `optax.adam`, and `grad_fn` is
        never called.
      every: the update is two-stage in every `every`-th step, counting from 1; or a predicate of that count. A period
        m ≥ 2 costs 1 + 1/m gradients a step. The paper's period counts epochs: for that, pass `two_stage`.
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the second moment, in [0, 1).
      eps: ε ≥ 0, added to the root of the second moment.
      mu_dtype: dtype in which the first moment is stored, as in `fobt.adam_preconditioner`; None is that of params.
      weight_bounds: (low, high) to which the latents of quantized leaves are clipped, w* and w; the code of LAQ has
        (-1, 1).
      grad_transform: a stateless transformation applied to both gradients, such as `optax.clip_by_global_norm(1.0)`.
        In a chain before this transformation it would change the first one only.
      preconditioner: what turns gradients into direction and curvature, instead of Adam with `b1`, `b2`, `eps` and
        `mu_dtype`, which are then to be left out.

    Returns:
      A transformation whose state is that of `optax.scale_by_adam`: `count`, `mu`, and `nu` in float32 or wider; around
      another optimizer, that of the optimizer. As it evaluates `grad_fn` on the whole tree, it goes outside of
      `optax.masked` and `optax.partition`; choose leaves with `fobt.per_leaf`.

    Raises:
      ValueError: an argument is out of range, or one of Adam's is given together with a preconditioner or optimizer, or
        the optimizer keeps no average of squared gradients; at `init` or `update`, params are missing, have holes, or
        do not match the gradients or the state, or `grad_fn` is missing (unless a = 1), returns other leaves than the
        params have, or was made by `fobt.value_and_grad` with another quantizer.

    Example:
      >>> import fobt, jax, optax
      >>> import jax.numpy as jnp
      >>> def loss_fn(weights):
      ...     return jnp.sum((weights - jnp.array([[1.0, -2.0, 1.5]])) ** 2)
      >>> quantizer = fobt.binary()
      >>> tx = fobt.forward_backtrack(0.1, quantizer, a=0.6)
      >>> params = jnp.array([[0.3, 0.2, -0.1]])
      >>> state = tx.init(params)
      >>> for _ in range(30):
      ...     loss, grads, grad_fn = fobt.value_and_grad(loss_fn, quantizer)(params, state)
      ...     updates, state = tx.update(grads, state, params, grad_fn=grad_fn)
      ...     params = optax.apply_updates(params, updates)
      >>> fobt.quantize(params, state, quantizer).codes
      Array([[ 1, -1,  1]], dtype=int8)

    References:
      Ma, Zhou, Ma, Yu, Li, One-Step Forward and Backtrack: Overcoming Zig-Zagging in Loss-Aware Quantization Training,
      AAAI 2024, Algorithm 1.
    """
    is_optimizer = isinstance(learning_rate, optax.GradientTransformation)
    if not callable(learning_rate) and not is_optimizer:
        check_number(
            "learning_rate", learning_rate, "at least 0 and finite, or a schedule", lambda x: 0 <= x < math.inf
        )
    check_quantizer(quantizer)
    check_number("a", a, "in (0, 1]", lambda x: 0 < x <= 1)
    if not callable(every):
        if getattr(every, "dtype", None) == np.bool_:
            raise ValueError(
                "every must be an integer of at least 1 or a predicate of the step count, got a bool. Where "
                "optax.inject_hyperparams has called the predicate as a schedule, name it: static_args=('quantizer', "
                "'every')."
            )
        check_number("every", every, "an integer of at least 1 or a predicate of the step count", _is_period)
    never = not isinstance(a, jax.core.Tracer) and a == 1
    adam = {"b1": (b1, 0.9), "b2": (b2, 0.999), "eps": (eps, 1e-8), "mu_dtype": (mu_dtype, None)}
    if is_optimizer:
        own = {"weight_bounds": weight_bounds, "grad_transform": grad_transform, "preconditioner": preconditioner}
        _check_left_out(
            "an optimizer, which has its own: put it there, as in optax.chain(optax.clip_by_global_norm(1.0), "
            "optax.adamw(1e-2), fobt.bound_weights((-1, 1), quantizer))",
            **adam,
            **{name: (value, None) for name, value in own.items()},
        )
        return around(learning_rate, quantizer, a, every, never)
    if weight_bounds is not None:
        check_bounds(weight_bounds)
    if preconditioner is None:
        preconditioner = adam_preconditioner(b1, b2, eps, mu_dtype=mu_dtype)
    else:
        _check_left_out("a preconditioner, which has its own: fobt.adam_preconditioner({name}=...), say", **adam)

    def init(params: optax.Params) -> Any:
        check_no_holes(params)
        leaf_quantizers(quantizer, params)
        if grad_transform is not None and jax.tree.leaves(grad_transform.init(params)):
            raise ValueError(
                "grad_transform must be stateless, as it is applied twice in a step; its state has leaves."
            )
        return preconditioner.init(params)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        *,
        grad_fn: GradFn | None = None,
        two_stage: Any = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        del extra_args
        check_arguments(updates, params, grad_fn, quantizer, never)
        check_state(state, preconditioner.init, params)
        quantizers = leaf_quantizers(quantizer, params)
        eta = learning_rate(state.count) if callable(learning_rate) else learning_rate

        def transform(grads: optax.Updates) -> optax.Updates:
            if grad_transform is None:
                return grads
            return grad_transform.update(grads, grad_transform.init(params), params)[0]

        def step(direction: optax.Updates, curvature: optax.Updates) -> optax.Updates:
            """The update -η m̂ ⊘ C, cut where it would leave the weight bounds."""
            steps = jax.tree.map(
                lambda m, c: jnp.asarray(-eta, c.dtype) * (m.astype(c.dtype) / c), direction, curvature
            )
            steps = optax.tree.cast_like(steps, params)
            return steps if weight_bounds is None else clip_updates(steps, params, weight_bounds, quantizers)

        def project(latents: optax.Params, curvature: optax.Updates) -> optax.Params:
            """P, of every leaf."""
            leaves, structure = jax.tree.flatten(latents)
            projected = quantize_leaves(leaves, quantizers, jax.tree.leaves(curvature))
            return dequantize(jax.tree.unflatten(structure, projected))

        grads = transform(updates)

        def plain_step() -> tuple[optax.Updates, Any]:
            direction, curvature, next_state = preconditioner.update(grads, state)
            return step(direction, curvature), next_state

        def two_stage_step(grad_fn: GradFn) -> tuple[optax.Updates, Any]:
            trial = optax.apply_updates(params, plain_step()[0])  # (5)
            # C₁ three times, for step, projection and blend: stored, it would take more time than its roots.
            _, curvature, _ = preconditioner.update(*anew((grads, state)))
            returned = grad_fn(project(trial, curvature))  # (4)
            check_same_leaves("the gradients that grad_fn returns", returned, "params", params)
            trial_grads = transform(jax.tree.unflatten(jax.tree.structure(updates), jax.tree.leaves(returned)))
            return backtrack(norm_is_finite(trial_grads), *anew((grads, trial_grads, state)))

        def backtrack(
            finite: jax.Array, grads: optax.Updates, trial_grads: optax.Updates, state: Any
        ) -> tuple[optax.Updates, Any]:
            _, curvature, plain_state = preconditioner.update(grads, state)
            _, trial_curvature, _ = preconditioner.update(trial_grads, plain_state)
            blended_grads = blend_trees(a, grads, trial_grads, finite)  # (8)
            blended_curvature = blend_trees(a, curvature, trial_curvature, finite)  # (9)
            direction, _, blended_state = preconditioner.update(blended_grads, state)
            # (7), and (6) of the next step. With a trial that is not finite all of this is the plain step again.
            held_curvature, next_state = preconditioner.with_curvature(blended_state, blended_curvature)
            return step(direction, held_curvature), next_state

        now = is_two_stage(every, two_stage, state.count)
        if never or grad_fn is None or now is False:
            return plain_step()
        if now is True:
            return two_stage_step(grad_fn)
        return jax.lax.cond(now, lambda: two_stage_step(grad_fn), plain_step)

    return QuantizedOptimizer(init, update, quantizer)


def _is_period(every: float) -> bool:
    return every >= 1 and every % 1 == 0


def _check_left_out(beside: str, **given: tuple[Any, Any]) -> None:
    """Raises a ValueError unless the arguments, pairs of value and default, are the defaults as far as is known."""
    for name, (value, default) in given.items():
        if not isinstance(value, jax.core.Tracer) and value is not default and (default is None or value != default):
            raise ValueError(f"{name} must be left out with {beside.replace('{name}', name)}; got {value!r}.")
