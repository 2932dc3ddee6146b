"""One gradient per step, taken at the trial point: the method without its second gradient.

The two-stage update takes the gradient g at ŵ to find the trial point, and g* there. Here the only gradient of step t
is g*ₜ, and a guess ĝ of g takes its place, known before the forward pass (numbers as in `forward_backtrack`):

    w* = w - η m̂ ⊘ C₁           m̂, C₁: direction and curvature with the guess ĝ         (5)
    ŵ* = P(w*, C₁)              forward and backward pass here: g*                        (4)
    g' = a ĝ + (1 - a) g*;      C, w: as in the two-stage update                        (7) to (9)

`optimistic` guesses the last trial gradient, ĝ = g*ₜ₋₁ with g*₀ = 0, as optimistic gradient methods do, and 0 where it
is not finite. The guess ĝ = 0 needs no memory and no blend: the step is the optimizer's own with g*, and the trial
point is where the momentum carries the weights: Nesterov's accelerated gradient. `quantized_trial_params` gives ŵ* of
both.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fobt._src.base.tree_paths import state_field
from fobt._src.optimizers.quantized_optimizer import QuantizedOptimizer
from fobt._src.trees.grad_fn import GradFn, QuantizedGradFn, is_quantized, with_function
from fobt._src.trees.leaves import TreeQuantizer, check_quantizer
from fobt._src.trees.params import quantized_params


class OptimisticState(NamedTuple):
    """State of `optimistic`.

    Attributes:
      inner: state of the two-stage optimizer.
      trial_grads: g* of the last step, 0 before the first, in the shapes and dtypes of the params.
    """

    inner: Any
    trial_grads: optax.Updates


def optimistic(optimizer: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    r"""The method at one gradient per step: the last trial gradient takes the place of the current one.

    The forward pass runs at the trial point, and no `grad_fn` is needed:

        weights = fobt.quantized_trial_params(params, state, quantizer, tx)
        loss, trial_grads = jax.value_and_grad(loss_fn)(weights)
        updates, state = tx.update(trial_grads, state, params)

    while `fobt.quantized_params(params, state, quantizer)` are the weights to evaluate and to ship. With a = 1 in
    `optimizer` the trial point is the next iterate, and training is loss-aware quantization with params one step behind
    (only that Adam's bias corrections count the first step, which has no gradient yet).

    Without momentum and with constant curvature C, where the loss is ½ L w² and x = η L / C, a step multiplies the pair
    (w, last trial gradient) by a matrix with trace 1 - (2 - a) x and determinant -(1 - a) x. It converges for
    0 < x < 2 / (3 - 2a), loss-aware quantization (a = 1) for x < 2: this form needs smaller steps, not larger ones.

    Args:
      optimizer: `fobt.forward_backtrack(...)`; its `every` does not matter.

    Returns:
      A transformation with the state `OptimisticState`: 4 bytes per float32 parameter more than that of `optimizer`.

    Raises:
      ValueError: at `update`, as `optimizer`, or the gradients come with a `grad_fn` that `fobt.value_and_grad` has
        made, so that they are those of the current quantized weights and not of the trial point.

    Example:
      >>> import fobt, jax, optax
      >>> import jax.numpy as jnp
      >>> def loss_fn(weights):
      ...     return jnp.sum((weights - jnp.array([[1.0, -2.0, 1.5]])) ** 2)
      >>> quantizer = fobt.binary()
      >>> tx = fobt.optimistic(fobt.forward_backtrack(0.1, quantizer, a=0.6))
      >>> params = jnp.array([[0.3, 0.2, -0.1]])
      >>> state = tx.init(params)
      >>> for _ in range(30):
      ...     trial_grads = jax.grad(loss_fn)(fobt.quantized_trial_params(params, state, quantizer, tx))
      ...     updates, state = tx.update(trial_grads, state, params)
      ...     params = optax.apply_updates(params, updates)
      >>> fobt.quantize(params, state, quantizer).codes
      Array([[ 1, -1,  1]], dtype=int8)

    References:
      Popov, A modification of the Arrow-Hurwicz method for search of saddle points, 1980 (the last extrapolated
      gradient in the place of the current one); Daskalakis, Ilyas, Syrgkanis, Zeng, Training GANs with Optimism, ICLR
      2018.
    """

    def init(params: optax.Params) -> OptimisticState:
        return OptimisticState(optimizer.init(params), optax.tree.zeros_like(params))

    def update(
        updates: optax.Updates,
        state: OptimisticState,
        params: optax.Params | None = None,
        *,
        two_stage: Any = True,
        grad_fn: GradFn | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, OptimisticState]:
        """Takes g*; with `two_stage=False` a plain step of `optimizer` along the given gradient instead.

        No use is made of `grad_fn`; it may come from a wrapper that makes use of it. But `fobt.value_and_grad` gives
        its own together with a gradient of the current point.
        """
        if two_stage is not False and is_quantized(grad_fn, params):
            raise ValueError(
                "grads must be taken at fobt.quantized_trial_params(params, state, quantizer, tx), got gradients at "
                "the current quantized weights with the grad_fn of fobt.value_and_grad. fobt.optimistic takes one "
                "gradient a step: "
                "trial_grads = jax.grad(loss_fn)(fobt.quantized_trial_params(params, state, quantizer, tx)), then "
                "tx.update(trial_grads, state, params) without grad_fn."
            )
        last = jax.tree.unflatten(jax.tree.structure(updates), jax.tree.leaves(_guess(state.trial_grads)))
        guess = jax.tree.map(lambda g_last, g: jnp.where(two_stage, g_last.astype(g.dtype), g), last, updates)
        trial_grad_fn = with_function(grad_fn, lambda _: updates)
        steps, inner = optimizer.update(
            guess, state.inner, params, grad_fn=trial_grad_fn, two_stage=two_stage, **extra_args
        )
        trial_grads = jax.tree.unflatten(jax.tree.structure(state.trial_grads), jax.tree.leaves(updates))
        return steps, OptimisticState(inner, optax.tree.cast_like(trial_grads, state.trial_grads))

    quantizer = optimizer.quantizer if isinstance(optimizer, QuantizedOptimizer) else None
    return QuantizedOptimizer(init, update, quantizer, gradients_at="trial")


def quantized_trial_params(
    params: optax.Params, state: optax.OptState, quantizer: TreeQuantizer, optimizer: optax.GradientTransformation
) -> optax.Params:
    """The quantized weights ŵ* one step ahead: where methods with one gradient per step take it.

    Takes the step that `optimizer` would take if the next gradient were the guess ĝ, and quantizes the weights there
    with the curvature of the state there. ĝ is the last trial gradient where `state` holds one (`fobt.optimistic`), and
    0 for any other optimizer: then momentum alone moves the weights, and training is the quantized Nesterov form,

        trial_grads = jax.grad(loss_fn)(fobt.quantized_trial_params(params, state, quantizer, tx))
        updates, state = tx.update(trial_grads, state, params)

    with tx = optax.adam(...), say. Without momentum these are the weights of `fobt.quantized_params`.

    Args:
      params: full-precision weights.
      state: state of `optimizer`, which keeps a second moment `nu` as for `fobt.quantized_params`.
      quantizer: what is quantized and how.
      optimizer: what takes the steps, learning rate included.

    Returns:
      A tree with the structure, shapes and dtypes of `params`.

    Raises:
      ValueError: as for `fobt.quantize`, or `optimizer` has been given another quantizer.

    Example:
      >>> import fobt, optax
      >>> import jax.numpy as jnp
      >>> tx = optax.adam(0.5)
      >>> params = jnp.array([[0.3, -2.0]])
      >>> updates, state = tx.update(jnp.array([[1.0, 1.0]]), tx.init(params), params)
      >>> params = optax.apply_updates(params, updates)
      >>> fobt.quantized_params(params, state, fobt.binary()).round(2)
      Array([[-1.35, -1.35]], dtype=float32)
      >>> fobt.quantized_trial_params(params, state, fobt.binary(), tx).round(1)
      Array([[-1.7, -1.7]], dtype=float32)

    References:
      Sutskever, Martens, Dahl, Hinton, On the importance of initialization and momentum in deep learning, ICML 2013,
      Eq. 3 and 4 (Nesterov's accelerated gradient as a gradient at the point to which momentum carries).
    """
    return quantized_params(*trial_point(params, state, quantizer, optimizer), quantizer)


def trial_point(
    params: optax.Params, state: optax.OptState, quantizer: TreeQuantizer, optimizer: optax.GradientTransformation
) -> tuple[optax.Params, optax.OptState]:
    """The latents w* one step ahead and the state there; arguments as for `quantized_trial_params`."""
    check_quantizer(quantizer)
    guess = _guess(state_field(state, "trial_grads", optax.tree.zeros_like(params)))
    updates, trial_state = optax.with_extra_args_support(optimizer).update(
        guess, state, params, grad_fn=QuantizedGradFn(_no_gradient, quantizer), two_stage=False
    )
    return optax.apply_updates(params, updates), trial_state


def _guess(trial_grads: optax.Updates) -> optax.Updates:
    """The last trial gradient, with 0 in the place of what is not finite."""
    return jax.tree.map(lambda g: jnp.where(jnp.isfinite(g), g, 0), trial_grads)


def _no_gradient(weights: optax.Params) -> optax.Updates:
    raise AssertionError("a plain step takes no trial gradient")
