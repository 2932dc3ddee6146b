"""Flax Linen: a module that holds the range of its activations, and ranges from a few batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fobt._src.quantizers.activations import fake_quantize, moving_average_range


class FakeQuantize(nn.Module):
    """Activations of few bits, `fobt.fake_quantize`, with a range that the module holds.

    The range is a moving average in the collection batch_stats: where this is mutable, as in training, the module takes
    the batch into it and uses the result; otherwise it stays as it is. A range that is learned is a parameter; set it
    with `fobt.linen.calibrate_ranges` before the first step, because it begins as (0, 0).

    Attributes:
      bits: 2 to 8.
      symmetric: whether the zero point is in the middle.
      learned: whether the range is a parameter.
      decay: share of the moving average that stays, in [0, 1]; at first less, so that it is an average of all.

    Example:
      >>> import fobt, jax
      >>> import flax.linen as nn
      >>> import jax.numpy as jnp
      >>> model = nn.Sequential([nn.Dense(3), nn.relu, fobt.linen.FakeQuantize()])
      >>> x = jax.random.normal(jax.random.key(0), (8, 2))
      >>> variables = model.init(jax.random.key(1), x)
      >>> y, updated = model.apply(variables, x, mutable=["batch_stats"])  # training
      >>> bool(jnp.allclose(updated["batch_stats"]["layers_2"]["range"][1], y.max()))
      True
      >>> y = model.apply({**variables, **updated}, x)  # evaluation
    """

    bits: int = 8
    symmetric: bool = False
    learned: bool = False
    decay: float = 0.99

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """The activations on the levels of the range.

        Args:
          x: Activations of any shape and floating dtype.
        """
        count = self.variable("batch_stats", "count", jnp.zeros, (), jnp.float32)
        if self.learned:
            range = self.param("range", nn.initializers.zeros, (2,), jnp.float32)
        else:
            range = self.variable("batch_stats", "range", jnp.zeros, (2,), jnp.float32).value
        holder = "params" if self.learned else "batch_stats"
        if self.is_mutable_collection(holder) and not self.is_initializing():
            decay = jnp.minimum(self.decay, count.value / (count.value + 1))
            range = moving_average_range(range, x, decay)
            self.put_variable(holder, "range", range)
            count.value += 1
        return fake_quantize(x, range, bits=self.bits, symmetric=self.symmetric)


def calibrate_ranges(apply_fn: Callable[..., Any], variables: Any, batches: Iterable[Any]) -> Any:
    """Variables of a model whose `fobt.linen.FakeQuantize` have seen a few batches, in evaluation.

    For a network that was trained without them, and for ranges that are learned, before the first step. Ranges that
    are there already go into the average.

    Args:
      apply_fn: called as `apply_fn(variables, batch, mutable=[...])`; `model.apply`, or a function that says by further
        arguments that it is evaluation.
      variables: those of the model.
      batches: inputs of the model.

    Returns:
      The variables with new ranges.

    Example:
      >>> import fobt, jax
      >>> import flax.linen as nn
      >>> import jax.numpy as jnp
      >>> model = fobt.linen.FakeQuantize()
      >>> batches = [jnp.array([1.0, -1.0]), jnp.array([3.0, 0.0])]
      >>> variables = fobt.linen.calibrate_ranges(model.apply, model.init(jax.random.key(0), batches[0]), batches)
      >>> variables["batch_stats"]["range"]
      Array([-0.5,  2. ], dtype=float32)
    """
    for batch in batches:
        _, updated = apply_fn(variables, batch, mutable=["params", "batch_stats"])
        variables = {**variables, **updated}
    return variables
