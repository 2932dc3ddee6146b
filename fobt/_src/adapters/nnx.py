"""Flax NNX: the optimizer and the gradients of its standard training loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from fobt._src.adapters.gradients import Gradients, checked_gradients
from fobt._src.training import CurvatureChoice, Training
from fobt._src.trees.grad_fn import QuantizedGradFn
from fobt._src.trees.leaves import TreeQuantizer


class Optimizer(nnx.Optimizer):
    """`flax.nnx.Optimizer` for quantized weights: what `fobt.Training` is for plain trees.

    The model holds the latents. `fobt.nnx.value_and_grad` takes gradients at the quantized weights, or wherever `tx`
    wants them, and `update` writes the new latents into the model. A checkpoint of the optimizer is
    `nnx.state(optimizer)`, as in Flax.

    Args:
      model: the model.
      tx: an Optax transformation, as for `fobt.Training`.
      quantizer: what is quantized and how, as for `fobt.Training`; paths of leaves are those of
        `nnx.state(model, wrt)`, such as "first/kernel".
      wrt: which variables are trained, a filter of Flax.
      curvature: as for `fobt.Training`.
      look_ahead: as for `fobt.Training`.

    Attributes:
      training: the `fobt.Training` of `tx` and `quantizer`.
      step, tx, opt_state, wrt: as in Flax.

    Raises:
      ValueError: as `fobt.Training` and its `init`.

    Example:
      >>> import fobt, jax, optax
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> model = nnx.Linear(3, 1, use_bias=False, rngs=nnx.Rngs(0))
      >>> optimizer = fobt.nnx.Optimizer(model, fobt.forward_backtrack(0.1, fobt.binary()), wrt=nnx.Param)
      >>> @nnx.jit
      ... def train_step(model, optimizer, x, y):
      ...     loss, grads = fobt.nnx.value_and_grad(loss_fn)(model, optimizer, x, y)
      ...     optimizer.update(model, grads)
      ...     return loss
      >>> def loss_fn(model, x, y):
      ...     return jnp.mean((model(x) - y) ** 2)
      >>> x = jax.random.normal(jax.random.key(0), (32, 3))
      >>> for _ in range(50):
      ...     loss = train_step(model, optimizer, x, x @ jnp.array([[2.0], [-2.0], [2.0]]))
      >>> optimizer.quantized_model(model).kernel.round(1).ravel()
      Array([ 2., -2.,  2.], dtype=float32)
    """

    def __init__(
        self,
        model: nnx.Module,
        tx: optax.GradientTransformation,
        quantizer: TreeQuantizer | None = None,
        *,
        wrt: Any = nnx.Param,
        curvature: CurvatureChoice = "state",
        look_ahead: bool | None = None,
    ):
        self.training = Training(tx, quantizer, curvature=curvature, look_ahead=look_ahead)
        jax.eval_shape(self.training.init, _arrays(model, wrt))  # what is wrong is said now
        super().__init__(model, self.training.optimizer, wrt=wrt)

    def update(self, model: nnx.Module, grads: Gradients, /, **extra_args: Any) -> optax.Updates:
        """Writes the new latents into the model, and the new state into the optimizer.

        Args:
          model: the model.
          grads: what `fobt.nnx.value_and_grad` returned, in the same jitted function.
          **extra_args: further keywords of the update, such as `two_stage` of `fobt.forward_backtrack`.

        Returns:
          The updates of the latents.

        Raises:
          ValueError: `grads` are others, such as those of `nnx.grad`, or as the transformation.
        """
        grads = checked_gradients(grads, "fobt.nnx.value_and_grad(loss_fn)(model, optimizer, ...)")
        if grads.grad_fn is not None:
            extra_args["grad_fn"] = grads.grad_fn
        return super().update(model, grads.tree, **extra_args)

    def quantized_model(self, model: nnx.Module) -> nnx.Module:
        """A copy of the model with the quantized weights, to evaluate; it shares no arrays or settings with the model.

        Args:
          model: the model, which keeps its latents.
        """
        graph, _, rest = nnx.split(model, self.wrt, ...)  # type: ignore[misc]
        weights = self.training.weights(_arrays(model, self.wrt), nnx.as_pure(self.opt_state))
        # Copied, because the next training step may be given the buffers of the model.
        weights, rest = jax.tree.map(jnp.copy, (weights, nnx.as_pure(rest)))
        return nnx.merge(graph, weights, rest)

    def quantize(self, model: nnx.Module) -> Any:
        """The quantized weights as codes and scales, to be packed and shipped, as `fobt.quantize` gives them.

        Args:
          model: the model.
        """
        return self.training.quantize(_arrays(model, self.wrt), nnx.as_pure(self.opt_state))


def value_and_grad(loss_fn: Callable[..., Any], has_aux: bool = False) -> Callable[..., tuple[Any, Gradients]]:
    """`flax.nnx.value_and_grad` at the weights where an optimizer wants its gradients.

    The result is called as `f(model, optimizer, *args, **kwargs)` and returns `(value, grads)`, where value is
    `loss_fn(model, *args, **kwargs)` with the quantized weights in the model. What this pass does to the other
    variables of the model and of the arguments counts: batch statistics, counts of random streams. The trial pass of
    the two-gradient method starts from the variables as they were before, so that it draws the same dropout masks, and
    leaves no trace. The model keeps its latents.

    Args:
      loss_fn: a function of the model and further arguments to a scalar, or to (scalar, aux) if `has_aux`.
      has_aux: whether `loss_fn` returns a pair.

    Returns:
      The function. Its gradients are for `update` of the optimizer, in the same jitted function.

    Raises:
      ValueError: when called, `optimizer` is not a `fobt.nnx.Optimizer`.

    Example:
      See `fobt.nnx.Optimizer`.
    """

    def positional(model: nnx.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return loss_fn(model, *args, **kwargs)  # nnx.value_and_grad takes no arguments that are keywords only

    def quantized_value_and_grad(
        model: nnx.Module, optimizer: Optimizer, *args: Any, **kwargs: Any
    ) -> tuple[Any, Gradients]:
        if not isinstance(optimizer, Optimizer):
            raise ValueError(
                "optimizer must be a fobt.nnx.Optimizer, got "
                f"{type(optimizer).__name__}: fobt.nnx.value_and_grad(loss_fn)(model, optimizer, ...)."
            )
        training, wrt = optimizer.training, optimizer.wrt
        value_and_grad_of_model = nnx.value_and_grad(positional, argnums=nnx.DiffState(0, wrt), has_aux=has_aux)
        graph, before = nnx.split((model, args, kwargs))
        before = nnx.as_pure(before)
        latents = _arrays(model, wrt)

        def grad_fn(weights: optax.Params) -> optax.Updates:
            trial_model, *trial_arguments = nnx.merge(graph, before)
            nnx.update(trial_model, weights)
            return nnx.as_pure(value_and_grad_of_model(trial_model, *trial_arguments)[1])

        nnx.update(model, training.gradient_weights(latents, nnx.as_pure(optimizer.opt_state)))
        try:
            value, grads = value_and_grad_of_model(model, args, kwargs)
        finally:
            nnx.update(model, latents)
        at_quantized = training.gradients_at == "quantized"
        return value, Gradients(grads, QuantizedGradFn(grad_fn, training.quantizer) if at_quantized else None)

    return quantized_value_and_grad


def _arrays(model: nnx.Module, wrt: Any) -> Any:
    """The trained variables of a model as a state of arrays."""
    return nnx.as_pure(nnx.state(model, wrt))
