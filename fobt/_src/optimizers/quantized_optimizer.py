"""Optax transformations that know which weights they are for."""

from __future__ import annotations

from typing import Any

import optax

from fobt._src.trees.leaves import TreeQuantizer


class QuantizedOptimizer(optax.GradientTransformationExtraArgs):
    """An Optax transformation with the quantizer that it was made with.

    Attributes:
      quantizer: what is quantized and how; None where that is not known as a quantizer.
      looks_ahead: whether its gradients are those at the quantized weights one step ahead.
    """

    quantizer: TreeQuantizer | None
    looks_ahead: bool

    def __new__(
        cls, init: Any, update: Any, quantizer: TreeQuantizer | None, *, looks_ahead: bool = False
    ) -> QuantizedOptimizer:
        """Makes one of its two functions."""
        self = super().__new__(cls, init, update)
        self.quantizer, self.looks_ahead = quantizer, looks_ahead
        return self


def looks_ahead(optimizer: optax.GradientTransformation) -> bool:
    """Whether the gradients of an optimizer are known to be those one step ahead."""
    return isinstance(optimizer, QuantizedOptimizer) and optimizer.looks_ahead
