"""Flax Linen: the train state of its usual training loop, and the gradients for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import optax
from flax import struct
from flax.training import train_state

from fobt._src.adapters.gradients import Gradients, checked_gradients
from fobt._src.training import CurvatureChoice, Training
from fobt._src.trees.leaves import TreeQuantizer


class TrainState(train_state.TrainState):
    """`flax.training.train_state.TrainState` for quantized weights: what `fobt.Training` is for plain trees.

    Its params are the latents. Classes with more fields, such as batch statistics, derive from it as from that of Flax.

    Attributes:
      training: the `fobt.Training` of the optimizer and the quantizer.
      step, apply_fn, params, tx, opt_state: as in Flax.

    Example:
      >>> import fobt, jax, optax
      >>> import flax.linen as nn
      >>> import jax.numpy as jnp
      >>> model = nn.Dense(1, use_bias=False)
      >>> x = jax.random.normal(jax.random.key(0), (32, 3))
      >>> params = model.init(jax.random.key(1), x)["params"]
      >>> tx = fobt.forward_backtrack(0.1, fobt.binary())
      >>> state = fobt.linen.TrainState.create(apply_fn=model.apply, params=params, tx=tx)
      >>> @jax.jit
      ... def train_step(state, x, y):
      ...     def loss_fn(weights):
      ...         return jnp.mean((state.apply_fn({"params": weights}, x) - y) ** 2)
      ...     loss, grads = fobt.linen.value_and_grad(loss_fn)(state)
      ...     return state.apply_gradients(grads=grads), loss
      >>> for _ in range(50):
      ...     state, loss = train_step(state, x, x @ jnp.array([[2.0], [-2.0], [2.0]]))
      >>> state.quantize()["kernel"].codes.ravel()
      Array([ 1, -1,  1], dtype=int8)
    """

    training: Training = struct.field(pytree_node=False)

    @classmethod
    def create(
        cls,
        *,
        apply_fn: Callable[..., Any],
        params: optax.Params,
        tx: optax.GradientTransformation,
        quantizer: TreeQuantizer | None = None,
        curvature: CurvatureChoice = "state",
        look_ahead: bool | None = None,
        **fields: Any,
    ) -> TrainState:
        """The state before the first step.

        Args:
          apply_fn: usually `model.apply`.
          params: the latents.
          tx: an Optax transformation, as for `fobt.Training`.
          quantizer: what is quantized and how, as for `fobt.Training`.
          curvature: as for `fobt.Training`.
          look_ahead: as for `fobt.Training`.
          **fields: those that a class of one's own adds.

        Raises:
          ValueError: as `fobt.Training` and its `init`.
        """
        training = Training(tx, quantizer, curvature=curvature, look_ahead=look_ahead)
        return cls(
            step=0,
            apply_fn=apply_fn,
            params=params,
            tx=training.optimizer,
            opt_state=training.init(params),
            training=training,
            **fields,
        )

    def apply_gradients(
        self, *, grads: Gradients, update_args: Mapping[str, Any] | None = None, **fields: Any
    ) -> TrainState:
        """The state after a step.

        Args:
          grads: what `fobt.linen.value_and_grad` returned, in the same jitted function.
          update_args: keywords of the optimizer's update, such as `{"two_stage": False}`.
          **fields: new values of other fields.

        Raises:
          ValueError: `grads` are others, such as those of `jax.grad`, or as the optimizer.
        """
        grads = checked_gradients(grads, "fobt.linen.value_and_grad(loss_fn)(state, ...)")
        updates, opt_state = self.training.update(
            grads.tree, self.opt_state, self.params, grad_fn=grads.grad_fn, **(update_args or {})
        )
        params = optax.apply_updates(self.params, updates)
        return self.replace(step=self.step + 1, params=params, opt_state=opt_state, **fields)

    def weights(self) -> optax.Params:
        """The quantized weights that are evaluated and shipped, as `fobt.quantized_params` gives them."""
        return self.training.weights(self.params, self.opt_state)

    def quantize(self) -> Any:
        """The same weights as codes and scales, as `fobt.quantize` gives them."""
        return self.training.quantize(self.params, self.opt_state)


def value_and_grad(loss_fn: Callable[..., Any], has_aux: bool = False) -> Callable[..., tuple[Any, Gradients]]:
    """`jax.value_and_grad` at the weights where a train state wants its gradients.

    The result is called as `f(state, *args, **kwargs)` and returns `(value, grads)`, where value is
    `loss_fn(weights, *args, **kwargs)`. The trial pass of the two-gradient method runs the loss once more, with the
    same arguments and so the same random keys, and drops its aux output.

    Args:
      loss_fn: a function of the params and further arguments to a scalar, or to (scalar, aux) if `has_aux`.
      has_aux: whether `loss_fn` returns a pair.

    Returns:
      The function. Its gradients are for `apply_gradients` of the state, in the same jitted function.

    Raises:
      ValueError: when called, `state` is not a `fobt.linen.TrainState`.

    Example:
      See `fobt.linen.TrainState`.
    """

    def quantized_value_and_grad(state: TrainState, *args: Any, **kwargs: Any) -> tuple[Any, Gradients]:
        if not isinstance(state, TrainState):
            raise ValueError(
                f"state must be a fobt.linen.TrainState, got {type(state).__name__}: "
                "fobt.linen.value_and_grad(loss_fn)(state, ...)."
            )
        loss_and_grads = state.training.value_and_grad(loss_fn, has_aux)
        value, grads, grad_fn = loss_and_grads(state.params, state.opt_state, *args, **kwargs)
        return value, Gradients(grads, grad_fn)

    return quantized_value_and_grad
