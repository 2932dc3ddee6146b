"""Quantizer and optimizer said once: all that a training loop needs, made of the functions below."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, Final, Literal, TypeAlias

import jax
import optax

from fobt._src.base.checks import check_arrays
from fobt._src.optimizers.optimistic import trial_point
from fobt._src.optimizers.quantized_optimizer import QuantizedOptimizer, gradients_at
from fobt._src.trees.annealing import annealed_params, inverse_slope_of
from fobt._src.trees.curvature import Curvature, check_second_moment
from fobt._src.trees.grad_fn import GradFn
from fobt._src.trees.leaves import TreeQuantizer, check_quantizer, check_same_choices
from fobt._src.trees.params import quantize, quantized_params
from fobt._src.trees.value_and_grad import value_and_grad

CurvatureChoice: TypeAlias = Literal["state", "ones"] | Callable[[optax.OptState], Any]


class _Missing(enum.Enum):
    """An argument that was left out, where None means something."""

    MISSING = "left out"


MISSING: Final = _Missing.MISSING


class Training:
    """Training of quantized weights: one quantizer, one optimizer, and what a loop does with both.

    Use it for a new training loop. Those who compose Optax transformations by hand find the same steps in
    `fobt.value_and_grad`, `fobt.quantized_params` and `fobt.quantize`; `optimizer` is the transformation itself.

    - `fobt.Training(optax.adam(1e-2), fobt.binary())` is loss-aware training (LAB, LAQ), with any Optax optimizer that
      keeps a second moment; of others, `curvature` says by what the projection is weighted;
    - `fobt.Training(fobt.forward_backtrack(1e-2, fobt.binary()))` is the method with two gradients in a step;
    - `fobt.Training(fobt.optimistic(fobt.forward_backtrack(1e-2, fobt.binary())))` is its form with one gradient,
      taken at the quantized weights one step ahead; with `look_ahead=True` and `optax.adam` it is quantized Nesterov;
    - `fobt.Training(fobt.anneal(optax.adam(1e-2), fobt.binary(), inverse_slope))` trains at weights that harden.

    Args:
      optimizer: an Optax transformation.
      quantizer: what is quantized and how. An optimizer that fobt has made with a quantizer knows it; all others, also
        a chain around one of these, need it.
      curvature: the curvature C of the projection: "state" reads it from the state of the optimizer, as
        `fobt.quantize` does; "ones" takes 1, for optimizers without a second moment such as `optax.sgd` and lion; or a
        function from the state to a tree like the params, for those that keep it in another form.
      look_ahead: whether gradients are taken at the quantized weights one step ahead; by default where the optimizer
        wants it, as `fobt.optimistic` does.

    Attributes:
      optimizer: the Optax transformation.
      quantizer: the quantizer.
      gradients_at: the weights at which gradients are taken: "quantized", "trial" (one step ahead) or "annealed".

    Raises:
      ValueError: no quantizer is given or known, or the `nu` of the optimizer grows with the gradient and not with its
        square, as that of `optax.adamax`; at `init`, it chooses other quantizers for the leaves than that of the
        optimizer, or the optimizer keeps no second moment, and no curvature is given; a curvature is given for
        `fobt.forward_backtrack`, which has its own.

    Example:
      >>> import fobt, jax, optax
      >>> import jax.numpy as jnp
      >>> def loss_fn(weights, target):
      ...     return jnp.sum((weights - target) ** 2)
      >>> training = fobt.Training(fobt.forward_backtrack(0.1, fobt.binary()))
      >>> step = jax.jit(training.step(loss_fn))
      >>> params, target = jnp.array([[0.3, 0.2, -0.1]]), jnp.array([[1.0, -2.0, 1.5]])
      >>> state = training.init(params)
      >>> for _ in range(30):
      ...     params, state, loss = step(params, state, target)
      >>> training.quantize(params, state).codes
      Array([[ 1, -1,  1]], dtype=int8)
    """

    def __init__(
        self,
        optimizer: optax.GradientTransformation,
        quantizer: TreeQuantizer | None = None,
        *,
        curvature: CurvatureChoice = "state",
        look_ahead: bool | None = None,
    ):
        self._known = optimizer.quantizer if isinstance(optimizer, QuantizedOptimizer) else None
        chosen = self._known if quantizer is None else quantizer
        if chosen is None:
            raise ValueError(
                "quantizer must be given, as in fobt.Training(optax.adam(1e-2), fobt.binary()): only optimizers that "
                "fobt makes with a quantizer know theirs, and a chain around one of them does not."
            )
        check_quantizer(chosen)
        if isinstance(optimizer, optax.MultiSteps):  # for Optax it is no transformation, and would lose the grad_fn
            optimizer = optax.GradientTransformationExtraArgs(optimizer.init, optimizer.update)
        self._check_curvature(curvature, optimizer)
        self._curvature = curvature
        self.quantizer = chosen
        self.optimizer = optax.with_extra_args_support(optimizer)
        self.gradients_at = gradients_at(optimizer)
        if look_ahead is not None:
            self.gradients_at = "trial" if look_ahead else "quantized"

    def init(self, params: optax.Params) -> optax.OptState:
        """The state of the optimizer before the first step, for full-precision params."""
        check_arrays(params)
        if self._known is not None:
            check_same_choices("the optimizer", self._known, "Training", self.quantizer, params)
        state = self.optimizer.init(params)
        jax.eval_shape(self.weights, params, state)  # what is wrong with the state is said now
        return state

    def weights(self, params: optax.Params, state: optax.OptState) -> optax.Params:
        """The quantized weights that are evaluated and shipped, as `fobt.quantized_params` gives them."""
        return quantized_params(params, self._curvature_state(state), self.quantizer)

    def quantize(self, params: optax.Params, state: optax.OptState) -> Any:
        """The same weights as codes and scales, as `fobt.quantize` gives them."""
        return quantize(params, self._curvature_state(state), self.quantizer)

    def gradient_weights(self, params: optax.Params, state: optax.OptState) -> optax.Params:
        """The weights at which gradients are taken: those of `weights`, or others, as `gradients_at` says.

        `value_and_grad` takes care of them; they are for those who take gradients in a way of their own.
        """
        if self.gradients_at == "trial":
            return self.weights(*trial_point(params, state, self.quantizer, self.optimizer))
        if self.gradients_at == "annealed":
            return annealed_params(params, self._curvature_state(state), self.quantizer, inverse_slope_of(state))
        return self.weights(params, state)

    def value_and_grad(
        self, loss_fn: Callable[..., Any], has_aux: bool = False
    ) -> Callable[..., tuple[Any, optax.Updates, GradFn | None]]:
        """Makes a function that evaluates a loss and its gradient where this training takes it.

        Args:
          loss_fn: a function of weights and further arguments to a scalar, or to (scalar, aux) if `has_aux`.
          has_aux: whether `loss_fn` returns a pair.

        Returns:
          A function `(params, state, *args, **kwargs) -> (value, grads, grad_fn)`, as `fobt.value_and_grad` makes it,
          at the quantized weights, or at those of `gradients_at`; then grad_fn is None.
        """
        if self.gradients_at == "quantized":
            at_quantized = value_and_grad(loss_fn, self.quantizer, has_aux)
            return lambda params, state, *args, **kwargs: at_quantized(
                params, self._curvature_state(state), *args, **kwargs
            )
        loss_value_and_grad = jax.value_and_grad(loss_fn, has_aux=has_aux)

        def value_and_grad_elsewhere(
            params: optax.Params, state: optax.OptState, *args: Any, **kwargs: Any
        ) -> tuple[Any, optax.Updates, None]:
            return *loss_value_and_grad(self.gradient_weights(params, state), *args, **kwargs), None

        return value_and_grad_elsewhere

    def update(
        self,
        grads: optax.Updates,
        state: optax.OptState,
        params: optax.Params,
        *,
        grad_fn: GradFn | _Missing | None = MISSING,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        """The updates of the optimizer and its next state; arguments as `value_and_grad` gives them.

        Args:
          grads: gradients at the quantized weights, or at those of `gradients_at`.
          state: the state of the optimizer.
          params: the full-precision params.
          grad_fn: the third value of `value_and_grad`. None says that `grads` were taken at `gradient_weights` in a way
            of your own, and that the optimizer needs no trial gradient.
          **extra_args: keywords of the optimizer's update, such as `two_stage=True` of `fobt.forward_backtrack`.

        Raises:
          ValueError: `grad_fn` is left out, as with gradients of `jax.grad`, which are those at the latents.
        """
        if isinstance(grad_fn, _Missing):
            raise ValueError(
                "grad_fn must be the third value of training.value_and_grad(loss_fn)(params, state, ...), whose "
                "gradients are those at the quantized weights: gradients at the latents would train other weights than "
                "those that are shipped. Write grad_fn=None for gradients taken at "
                "training.gradient_weights(params, state) in another way."
            )
        if grad_fn is not None:
            extra_args["grad_fn"] = grad_fn
        return self.optimizer.update(grads, state, params, **extra_args)

    def step(self, loss_fn: Callable[..., Any], has_aux: bool = False, **extra_args: Any) -> Callable[..., Any]:
        """Makes a whole training step: gradient, update and new params, to be jitted as one.

        Args:
          loss_fn: a function of weights and further arguments to a scalar, or to (scalar, aux) if `has_aux`.
          has_aux: whether `loss_fn` returns a pair.
          **extra_args: keywords of the optimizer's update, such as `two_stage=True`.

        Returns:
          A function `(params, state, *args, **kwargs) -> (params, state, value)`, where value is what `loss_fn`
          returned in the first pass. Donate params and state to it: `jax.jit(step, donate_argnums=(0, 1))`.
        """
        loss_and_grads = self.value_and_grad(loss_fn, has_aux)

        def step(params: optax.Params, state: optax.OptState, *args: Any, **kwargs: Any) -> tuple[Any, Any, Any]:
            value, grads, grad_fn = loss_and_grads(params, state, *args, **kwargs)
            updates, state = self.update(grads, state, params, grad_fn=grad_fn, **extra_args)
            return optax.apply_updates(params, updates), state, value

        return step

    def _curvature_state(self, state: optax.OptState) -> Any:
        """What the functions of params and state take for the state."""
        if self._curvature == "state":
            return state
        return None if self._curvature == "ones" else Curvature(self._curvature(state))

    def _check_curvature(self, curvature: Any, optimizer: optax.GradientTransformation) -> None:
        if curvature == "state":
            check_second_moment(optimizer)
        elif curvature != "ones" and not callable(curvature):
            raise ValueError(f"curvature must be 'state', 'ones' or a function of the state, got {curvature!r}.")
        elif self._known is not None and gradients_at(optimizer) != "annealed":
            raise ValueError(
                "curvature must be left out with an optimizer that quantizes weights itself, as fobt.forward_backtrack "
                "does with the curvature of its preconditioner."
            )
