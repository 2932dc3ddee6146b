"""What a method of training is: the weights at which it takes its gradient, and its updates."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import optax

import fobt
from experiments.methods.straight_through import ModelSide


@dataclass(frozen=True)
class Hyperparameters:
    """What a method gets from the training that it is part of; numbers may be traced.

    Attributes:
        learning_rate: A number, or a function of the minibatches seen before, which methods with a schedule of their
            own need.
        b1: Decay rate of the first moment.
        b2: Decay rate of the second moment.
        mu_dtype: In which the first moment is stored; None is that of the parameters.
        weight_bounds: Bounds of the full-precision copies of quantized weights, or None.
        steps: Minibatches of the whole training, for methods that change over it.
    """

    learning_rate: Any
    b1: Any = 0.9
    b2: Any = 0.999
    mu_dtype: str | None = None
    weight_bounds: tuple[float, float] | None = (-1.0, 1.0)
    steps: int | None = None

    @property
    def moments(self) -> dict[str, Any]:
        """The arguments that Optax's Adam, NAdam and the method have in common."""
        return {"b1": self.b1, "b2": self.b2, "mu_dtype": self.mu_dtype}

    def bounded(self, optimizer: optax.GradientTransformation, quantizer: Any) -> optax.GradientTransformation:
        """The optimizer, with the full-precision copies of what `quantizer` quantizes kept within the bounds."""
        if self.weight_bounds is None:
            return optimizer
        return optax.chain(optimizer, fobt.bound_weights(self.weight_bounds, quantizer))

    def bounded_adam(self, quantizer: Any) -> optax.GradientTransformation:
        """Adam within the bounds: with gradients at quantized weights, this is loss-aware quantization."""
        return self.bounded(optax.adam(self.learning_rate, **self.moments), quantizer)

    def forward_backtrack(self, quantizer: Any, a: Any) -> optax.GradientTransformationExtraArgs:
        """One step forward and backtrack within the bounds, with the coefficient `a`."""
        return fobt.forward_backtrack(
            self.learning_rate, quantizer, a=a, weight_bounds=self.weight_bounds, **self.moments
        )


@dataclass(frozen=True)
class Method:
    """One way to train a network.

    Attributes:
        optimizer: Turns gradients into updates; called with `grad_fn` and `two_stage` where it takes them.
        quantizer: The projection that gives the quantized weights.
        weighted: Whether the projection is weighted by the curvature.
        model_side: What the model does with the weights itself, for methods whose quantizer is the identity.
        lookahead: From parameters and optimizer state to the weights at which the gradient is taken, for methods that
            do not take it at the quantized weights.
        quantize: From parameters and optimizer state to codes and scales, for methods whose quantized weights are not
            the projection of the parameters.
    """

    optimizer: optax.GradientTransformation
    quantizer: Any
    weighted: bool = True
    model_side: ModelSide | None = None
    lookahead: Callable[[Any, Any], Any] | None = None
    quantize: Callable[[Any, Any], Any] | None = None

    def init(self, params: Any) -> Any:
        """The parameters to train."""
        return params if self.model_side is None else self.model_side.init(params)

    def gradient_point(self, params: Any, optimizer_state: Any) -> Any:
        """The weights at which a training step takes its gradient; a model-side quantizer comes after them."""
        if self.lookahead is not None:
            return self.lookahead(params, optimizer_state)
        return fobt.dequantize(self._quantized(params, optimizer_state))

    def forward(self, weights: Any, key: jax.Array) -> Any:
        """The weights of the network in training, differentiable in those of `gradient_point`."""
        return weights if self.model_side is None else self.model_side.forward(weights, key)[0]

    def codes(self, params: Any, optimizer_state: Any, key: jax.Array) -> list[jax.Array]:
        """Codes of the quantized leaves, in the order of the tree."""
        if self.model_side is not None:
            return self.model_side.forward(params, key)[1]
        leaves = jax.tree.leaves(self._quantized(params, optimizer_state), is_leaf=_is_quantized)
        return [leaf.codes for leaf in leaves if _is_quantized(leaf)]

    def evaluated(self, params: Any, optimizer_state: Any) -> Any:
        """The weights of the network in evaluation: those that would be shipped."""
        if self.model_side is not None:
            return self.model_side.evaluated(params)
        return fobt.dequantize(self._quantized(params, optimizer_state))

    def _quantized(self, params: Any, optimizer_state: Any) -> Any:
        if self.quantize is not None:
            return self.quantize(params, optimizer_state)
        return fobt.quantize(params, optimizer_state if self.weighted else None, self.quantizer)

    def bits_per_weight(self, params: Any, optimizer_state: Any) -> float:
        """Bits that a weight takes on average, scales included; only parameters with two or more axes are weights."""
        shapes = [leaf.shape for leaf in jax.tree.leaves(params) if leaf.ndim >= 2]
        weights = sum(map(math.prod, shapes))
        if self.model_side is not None:
            return self.model_side.bits + 32 * self.model_side.scales * len(shapes) / weights
        quantized = jax.eval_shape(self._quantized, params, optimizer_state)
        bits = 0
        for leaf in jax.tree.leaves(quantized, is_leaf=_is_quantized):
            if _is_quantized(leaf):
                bits += leaf.codes.size * leaf.grid.bits + 8 * leaf.scale.size * leaf.scale.dtype.itemsize
            elif leaf.ndim >= 2:
                bits += 8 * leaf.size * leaf.dtype.itemsize
        return bits / weights


def _is_quantized(leaf: Any) -> bool:
    return isinstance(leaf, fobt.Quantized)


def make_quantizer(grid: str, solver: str | None = None, scales: int | None = None) -> fobt.Quantizer:
    """The projection with the name of its grid: binary, ternary, linear2 to linear8, logarithmic2 to logarithmic5."""
    if grid == "binary":
        return fobt.binary()
    options: dict[str, Any] = {} if solver is None else {"solver": solver}
    if scales is not None:
        options["scale_per_sign"] = scales == 2
    if grid == "ternary":
        return fobt.ternary(**options)
    return getattr(fobt, grid[:-1])(int(grid[-1]), **options)
