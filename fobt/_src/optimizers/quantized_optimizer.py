"""Optax transformations that know which weights they are for."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import optax

from fobt._src.trees.leaves import TreeQuantizer

# The projection of the latents, that of the latents one step ahead, or weights between latents and projection.
GradientPoint: TypeAlias = Literal["quantized", "trial", "annealed"]


class QuantizedOptimizer(optax.GradientTransformationExtraArgs):
    """An Optax transformation with the quantizer that it was made with.

    Attributes:
      quantizer: what is quantized and how; None where that is not known as a quantizer.
      gradients_at: the weights at which its gradients are taken.
    """

    quantizer: TreeQuantizer | None
    gradients_at: GradientPoint

    def __new__(
        cls, init: Any, update: Any, quantizer: TreeQuantizer | None, *, gradients_at: GradientPoint = "quantized"
    ) -> QuantizedOptimizer:
        """Makes one of its two functions."""
        self = super().__new__(cls, init, update)
        self.quantizer, self.gradients_at = quantizer, gradients_at
        return self


def gradients_at(optimizer: optax.GradientTransformation) -> GradientPoint:
    """The weights at which an optimizer is known to want its gradients; of any other, the quantized ones."""
    return optimizer.gradients_at if isinstance(optimizer, QuantizedOptimizer) else "quantized"
