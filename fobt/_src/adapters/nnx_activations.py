"""Flax NNX: a module that holds the range of its activations, and ranges from a few batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fobt._src.quantizers.activations import fake_quantize, moving_average_range


class FakeQuantize(nnx.Module):
    """Activations of few bits, `fobt.fake_quantize`, with a range that the module holds.

    The range is a moving average, an `nnx.BatchStat`: in training the module takes the batch into it and uses the
    result, in evaluation it stays as it is. As for `nnx.BatchNorm`, `model.train()` and `model.eval()` say which. A
    range that is learned is an `nnx.Param`; set it with `fobt.nnx.calibrate_ranges` before the first step, because it
    begins as (0, 0).

    Args:
      bits: 2 to 8.
      symmetric: whether the zero point is in the middle.
      learned: whether the range is a parameter.
      decay: share of the moving average that stays, in [0, 1]; at first less, so that it is an average of all.
      use_running_average: whether the range stays as it is.

    Attributes:
      range: (low, high), shape (2,), a variable.
      count: batches that were taken into the range, a variable.

    Example:
      >>> import fobt, jax
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> model = nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.relu, fobt.nnx.FakeQuantize())
      >>> y = model(jax.random.normal(jax.random.key(0), (8, 2)))  # training
      >>> bool(jnp.allclose(model.layers[2].range[1], y.max()))
      True
      >>> model.eval()
      >>> y = model(2 * y[:, :2])
    """

    def __init__(
        self,
        *,
        bits: int = 8,
        symmetric: bool = False,
        learned: bool = False,
        decay: float = 0.99,
        use_running_average: bool = False,
    ):
        self.bits, self.symmetric, self.learned, self.decay = bits, symmetric, learned, decay
        self.use_running_average = use_running_average
        self.is_calibrating = False
        self.range: nnx.Variable[jax.Array] = (nnx.Param if learned else nnx.BatchStat)(jnp.zeros(2, jnp.float32))
        self.count = nnx.BatchStat(jnp.zeros((), jnp.float32))

    def __call__(self, x: jax.Array, use_running_average: bool | None = None) -> jax.Array:
        """The activations on the levels of the range.

        Args:
          x: Activations of any shape and floating dtype.
          use_running_average: whether the range stays as it is; by default the attribute says it.
        """
        is_frozen = self.use_running_average if use_running_average is None else use_running_average
        if self.is_calibrating or not (self.learned or is_frozen):
            decay = jnp.minimum(self.decay, self.count[...] / (self.count[...] + 1))
            self.range[...] = moving_average_range(self.range[...], x, decay)
            self.count[...] += 1
        return fake_quantize(x, self.range[...], bits=self.bits, symmetric=self.symmetric)


def calibrate_ranges(
    model: nnx.Module, batches: Iterable[Any], call: Callable[[Any, Any], Any] = lambda model, batch: model(batch)
) -> None:
    """Lets the `fobt.nnx.FakeQuantize` of a model see a few batches, and changes nothing else if it is in evaluation.

    For a network that was trained without them, and for ranges that are learned, before the first step. Ranges that
    are there already go into the average.

    Args:
      model: the model, whose ranges change.
      batches: inputs of the model.
      call: how it is called; by further arguments or `model.eval()` before one says that it is evaluation.

    Example:
      >>> import fobt
      >>> import jax.numpy as jnp
      >>> model = fobt.nnx.FakeQuantize(learned=True)
      >>> fobt.nnx.calibrate_ranges(model, [jnp.array([1.0, -1.0]), jnp.array([3.0, 0.0])])
      >>> model.range[...]
      Array([-0.5,  2. ], dtype=float32)
    """
    modules = [module for _, module in nnx.iter_modules(model) if isinstance(module, FakeQuantize)]
    for module in modules:
        module.is_calibrating = True
    try:
        for batch in batches:
            call(model, batch)
    finally:
        for module in modules:
            module.is_calibrating = False
