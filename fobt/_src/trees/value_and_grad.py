"""Loss and gradient at the quantized weights, and the function that takes the trial gradient on the same data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax

from fobt._src.trees.grad_fn import GradFn, QuantizedGradFn
from fobt._src.trees.leaves import TreeQuantizer, check_quantizer
from fobt._src.trees.params import quantized_params


def value_and_grad(
    loss_fn: Callable[..., Any], quantizer: TreeQuantizer, has_aux: bool = False
) -> Callable[..., tuple[Any, optax.Updates, GradFn]]:
    """Makes a function that evaluates a loss and its gradient at the quantized weights.

    The result is called as `f(params, state, *args, **kwargs)` and returns `(value, grads, grad_fn)`, where

    - `value` is `loss_fn(weights, *args, **kwargs)`, with its aux output if it has one, at
      `weights = fobt.quantized_params(params, state, quantizer)`;
    - `grads` is the gradient with respect to these weights, which the optimizer applies to `params`;
    - `grad_fn(weights)` is the gradient at other weights, with the same arguments, so on the same minibatch and with
      the same random keys, its aux output dropped. Batch statistics returned as aux so come from the first pass alone.
      It knows `quantizer`: an optimizer that has been given another one raises a ValueError, unless this one is
      `fobt.full_precision()`.

    With `fobt.full_precision()` this is plain training, or the gradient at weights that are quantized already.

    Args:
      loss_fn: a function of weights and further arguments to a scalar, or to (scalar, aux) if `has_aux`.
      quantizer: what is quantized and how.
      has_aux: whether `loss_fn` returns a pair.

    Returns:
      The function.

    Raises:
      ValueError: `quantizer` is not one; when called, as `fobt.quantized_params`.

    Example:
      >>> import fobt, optax
      >>> import jax.numpy as jnp
      >>> def loss_fn(weights, x, y):
      ...     error = x @ weights - y
      ...     return jnp.sum(error**2), error
      >>> params = jnp.array([[0.5], [-1.5]])
      >>> state = optax.adam(1e-3).init(params)
      >>> f = fobt.value_and_grad(loss_fn, fobt.binary(), has_aux=True)
      >>> (loss, error), grads, grad_fn = f(params, state, jnp.array([[1.0, 2.0]]), jnp.array([[1.0]]))
      >>> loss, grads.ravel(), grad_fn(params).ravel()
      (Array(4., dtype=float32), Array([-4., -8.], dtype=float32), Array([ -7., -14.], dtype=float32))
    """
    check_quantizer(quantizer)
    loss_value_and_grad = jax.value_and_grad(loss_fn, has_aux=has_aux)

    def quantized_value_and_grad(
        params: optax.Params, state: optax.OptState | None, *args: Any, **kwargs: Any
    ) -> tuple[Any, optax.Updates, GradFn]:
        def grad_fn(weights: optax.Params) -> optax.Updates:
            return loss_value_and_grad(weights, *args, **kwargs)[1]

        weights = quantized_params(params, state, quantizer)
        value, grads = loss_value_and_grad(weights, *args, **kwargs)
        return value, grads, QuantizedGradFn(grad_fn, quantizer)

    return quantized_value_and_grad
