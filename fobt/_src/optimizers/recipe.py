"""The training recipe that is recommended: Adam at weights that harden, with moments and schedules that suit them."""

from __future__ import annotations

import optax

from fobt._src.base.checks import check_number
from fobt._src.optimizers.annealed import anneal
from fobt._src.trees.leaves import TreeQuantizer

# The share of the steps over which weights harden; the rest trains at the projection itself.
_SOFT = 0.8


def recipe(
    learning_rate: float, quantizer: TreeQuantizer, steps: int, *, b1: float = 0.6, b2: float = 0.8
) -> optax.GradientTransformationExtraArgs:
    r"""The recipe to start with: one gradient per step, weights that harden over four fifths of the training.

    It is `fobt.anneal` around Adam: the learning rate falls to 0 along half a cosine over the training, and the inverse
    slope from 1 to 0 along a line over its first four fifths. The averages of Adam are short: gradients at quantized
    weights change from step to step, as codes flip. The page "Does it help?" of the documentation compares it with
    every other method at equal cost.

        training = fobt.Training(fobt.recipe(0.03, fobt.binary(), steps=10_000))

    Args:
      learning_rate: that of the first step; with normalised layers start with 0.03, without with 0.003.
      quantizer: what is quantized and how.
      steps: steps of the whole training, at least 1.
      b1: decay rate of Adam's first moment.
      b2: decay rate of Adam's second moment.

    Returns:
      A transformation with the state of `fobt.anneal`.

    Raises:
      ValueError: `steps` is no integer of at least 1.

    Example:
      >>> import fobt, jax
      >>> import jax.numpy as jnp
      >>> def loss_fn(weights, target):
      ...     return jnp.sum((weights - target) ** 2)
      >>> training = fobt.Training(fobt.recipe(0.1, fobt.binary(), steps=30))
      >>> step = jax.jit(training.step(loss_fn))
      >>> params, target = jnp.array([[0.3, 0.2, -0.1]]), jnp.array([[1.0, -2.0, 1.5]])
      >>> state = training.init(params)
      >>> for _ in range(30):
      ...     params, state, loss = step(params, state, target)
      >>> training.quantize(params, state).codes
      Array([[ 1, -1,  1]], dtype=int8)
    """
    check_number("steps", steps, "an integer of at least 1", lambda n: n >= 1 and n % 1 == 0)
    adam = optax.adam(optax.cosine_decay_schedule(learning_rate, int(steps)), b1, b2)
    return anneal(adam, quantizer, optax.linear_schedule(1.0, 0.0, max(1, round(_SOFT * steps))))
