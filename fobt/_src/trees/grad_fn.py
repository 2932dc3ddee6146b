"""Functions from quantized weights to gradients, and what is known of the gradients that belong to them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias

import optax

from fobt._src.trees.leaves import TreeQuantizer, check_same_choices, leaf_quantizers

GradFn: TypeAlias = Callable[[optax.Params], optax.Updates]


@dataclasses.dataclass(frozen=True, eq=False)
class QuantizedGradFn:
    """A gradient function that knows how the weights of the current gradient were quantized.

    Attributes:
      function: from quantized weights to gradients.
      quantizer: what was quantized, and how, where the gradients of the current step were taken.
    """

    function: GradFn
    quantizer: TreeQuantizer

    def __call__(self, weights: optax.Params) -> optax.Updates:
        """Returns the gradients at `weights`."""
        return self.function(weights)


def with_function(grad_fn: GradFn | None, function: GradFn) -> GradFn:
    """`function`, with what `grad_fn` knows."""
    if isinstance(grad_fn, QuantizedGradFn):
        return dataclasses.replace(grad_fn, function=function)
    return function


def is_quantized(grad_fn: Any, params: optax.Params) -> bool:
    """Whether the current gradient is known to be that at quantized weights of params.

    With `fobt.full_precision` it is taken at whatever is given: at weights that are quantized already, or by a loss
    that quantizes them.
    """
    return isinstance(grad_fn, QuantizedGradFn) and any(leaf_quantizers(grad_fn.quantizer, params))


def check_same_quantizer(grad_fn: Any, quantizer: TreeQuantizer, params: optax.Params) -> None:
    """Raises a ValueError where the current gradient is known to be that at weights of another quantizer."""
    if not is_quantized(grad_fn, params) or grad_fn.quantizer is quantizer:
        return
    check_same_choices(
        "fobt.value_and_grad or fobt.quantized_trial_params", grad_fn.quantizer, "the optimizer", quantizer, params
    )
