"""What each method of a comparison does: the weights of its forward pass, and its updates."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import optax

import fobt
from experiments import controls, remedies, straight_through
from experiments.rows import Row
from experiments.schedules import after_a_quarter
from experiments.straight_through import ModelSide


@dataclass(frozen=True)
class Method:
    """One way to train a network.

    Attributes:
        optimizer: Turns gradients at the weights of the forward pass into updates; called with `grad_fn` and
            `two_stage`.
        quantizer: The projection that gives these weights.
        weighted: Whether the projection is weighted by the curvature.
        model_side: What the model does with the weights itself, for methods whose quantizer is the identity.
        lookahead: The optimizer whose next step is foreseen, for methods that take their gradient there.
    """

    optimizer: optax.GradientTransformationExtraArgs
    quantizer: Any
    weighted: bool = True
    model_side: ModelSide | None = None
    lookahead: optax.GradientTransformation | None = None

    def init(self, params: Any) -> Any:
        """The parameters to train."""
        return params if self.model_side is None else self.model_side.init(params)

    def projected(self, params: Any, optimizer_state: Any) -> Any:
        """The weights at which a training step takes its gradient; a model-side quantizer comes after them."""
        if self.lookahead is not None:
            return fobt.quantized_trial_params(params, optimizer_state, self.quantizer, self.lookahead)
        return fobt.quantized_params(params, self._projection_state(optimizer_state), self.quantizer)

    def forward(self, weights: Any, key: jax.Array) -> Any:
        """The weights of the network in training, differentiable in the projected parameters."""
        return weights if self.model_side is None else self.model_side.forward(weights, key)[0]

    def codes(self, params: Any, optimizer_state: Any, key: jax.Array) -> list[jax.Array]:
        """Codes of the quantized leaves, in the order of the tree."""
        if self.model_side is not None:
            return self.model_side.forward(params, key)[1]
        quantized = fobt.quantize(params, self._projection_state(optimizer_state), self.quantizer)
        return [leaf.codes for leaf in quantized_leaves(quantized)]

    def evaluated(self, params: Any, optimizer_state: Any) -> Any:
        """The weights of the network in evaluation: those that would be shipped."""
        if self.model_side is not None:
            return self.model_side.evaluated(params)
        return fobt.quantized_params(params, self._projection_state(optimizer_state), self.quantizer)

    def _projection_state(self, optimizer_state: Any) -> Any:
        return optimizer_state if self.weighted else None

    def bits_per_weight(self, params: Any, optimizer_state: Any) -> float:
        """Bits that a weight takes on average, scales included; only parameters with two or more axes are weights."""
        shapes = [leaf.shape for leaf in jax.tree.leaves(params) if leaf.ndim >= 2]
        weights = sum(map(math.prod, shapes))
        if self.model_side is not None:
            return self.model_side.bits + 32 * self.model_side.scales * len(shapes) / weights
        quantized = jax.eval_shape(lambda p, s: fobt.quantize(p, s, self.quantizer), params, optimizer_state)
        bits = 0
        for leaf in jax.tree.leaves(quantized, is_leaf=lambda leaf: isinstance(leaf, fobt.Quantized)):
            if isinstance(leaf, fobt.Quantized):
                bits += leaf.codes.size * leaf.grid.bits + 8 * leaf.scale.size * leaf.scale.dtype.itemsize
            elif leaf.ndim >= 2:
                bits += 8 * leaf.size * leaf.dtype.itemsize
        return bits / weights


def quantized_leaves(tree: Any) -> list[fobt.Quantized]:
    """The quantized leaves of a tree that `fobt.quantize` made."""
    leaves = jax.tree.leaves(tree, is_leaf=lambda leaf: isinstance(leaf, fobt.Quantized))
    return [leaf for leaf in leaves if isinstance(leaf, fobt.Quantized)]


def make_quantizer(grid: str, solver: str | None, scales: int | None) -> fobt.Quantizer:
    """The projection with the name of its grid: binary, ternary, linear2 to linear8, logarithmic2 to logarithmic5."""
    if grid == "binary":
        return fobt.binary()
    options: dict[str, Any] = {} if solver is None else {"solver": solver}
    if scales is not None:
        options["scale_per_sign"] = scales == 2
    if grid == "ternary":
        return fobt.ternary(**options)
    return getattr(fobt, grid[:-1])(int(grid[-1]), **options)


def build(
    row: Row,
    learning_rate: optax.Schedule,
    weight_bounds: tuple[float, float],
    b1: float = 0.9,
    b2: float = 0.999,
    *,
    mu_dtype: str | None = None,
    steps: int | None = None,
) -> Method:
    """The method of a row.

    full_precision is Adam. laq (LAB and LAT with their grids) is Adam with gradients at the loss-aware projection; bwn
    is the same with the binary projection that curvature does not weight, α = mean|w|. laq_freezing and laq_dampening
    are laq with the published schedules of these remedies against oscillations. nadam is laq with Optax's NAdam;
    nesterov takes its only gradient where momentum carries the quantized weights, and optimistic where the method's
    step along its last trial gradient does. binary_connect, binary_connect_stochastic, twn, dorefa and lsq are Adam on a
    model of `experiments.straight_through`. sam and two_steps are the controls of `experiments.controls`.

    Args:
        row: Which method, with its settings.
        learning_rate: As a function of the minibatches seen before.
        weight_bounds: Bounds of the full-precision copies; dorefa and lsq, whose definitions have none, go without.
        b1: Decay rate of the first moment.
        b2: Decay rate of the second moment.
        mu_dtype: In which the first moment is stored; None is that of the parameters.
        steps: Minibatches of the whole training, for laq_freezing and laq_dampening.
    """
    moments: dict[str, Any] = {"b1": b1, "b2": b2, "mu_dtype": mu_dtype}
    adam = optax.adam(learning_rate, **moments)
    if row.method == "full_precision":
        return Method(optax.with_extra_args_support(adam), fobt.full_precision())
    if row.method == "dorefa":
        assert row.bits is not None
        return _on_model_side(adam, straight_through.dorefa(row.bits))
    if row.method == "lsq":
        assert row.bits is not None
        return _on_model_side(
            _learned_step_size_optimizer(learning_rate, moments), straight_through.LearnedStepSize(row.bits)
        )
    if row.method in MODEL_SIDE:
        # Any quantizer serves to say that all weight tensors are bounded.
        bounded = optax.chain(adam, fobt.bound_weights(weight_bounds, fobt.binary()))
        return _on_model_side(bounded, MODEL_SIDE[row.method]())
    if row.method == "bwn":
        bounded = optax.chain(adam, fobt.bound_weights(weight_bounds, fobt.binary()))
        return Method(optax.with_extra_args_support(bounded), fobt.binary(), weighted=False)

    assert row.grid is not None
    quantizer = make_quantizer(row.grid, row.solver, row.scales)
    bounds = fobt.bound_weights(weight_bounds, quantizer)
    if row.method == "laq":
        return Method(optax.with_extra_args_support(optax.chain(adam, bounds)), quantizer)
    if row.method == "laq_freezing":
        assert row.threshold is not None
        assert steps is not None
        # No frequency is above 1.
        threshold = after_a_quarter(steps, 1.0, 10 * row.threshold, row.threshold)
        return Method(fobt.oscillations.freeze_oscillations(optax.chain(adam, bounds), quantizer, threshold), quantizer)
    if row.method == "laq_dampening":
        assert row.dampening is not None
        assert steps is not None
        weight = after_a_quarter(steps, 0.0, 0.0, row.dampening)
        return Method(remedies.dampened(optax.chain(adam, bounds), quantizer, weight), quantizer)
    if row.method == "nadam":
        nadam = optax.nadam(learning_rate, **moments)
        return Method(optax.with_extra_args_support(optax.chain(nadam, bounds)), quantizer)
    if row.method == "nesterov":
        nesterov = optax.chain(adam, bounds)
        return Method(optax.with_extra_args_support(nesterov), quantizer, lookahead=nesterov)
    if row.method == "sam":
        assert row.rho is not None
        return Method(controls.sharpness_aware(optax.chain(adam, bounds), quantizer, row.rho), quantizer)
    if row.method == "two_steps":
        adam = optax.adam(lambda count: learning_rate(count // 2), **moments)
        return Method(controls.two_steps(optax.chain(adam, bounds), quantizer), quantizer)
    assert row.a is not None
    optimizer = fobt.forward_backtrack(learning_rate, quantizer, a=row.a, weight_bounds=weight_bounds, **moments)
    if row.method == "optimistic":
        optimistic = fobt.optimistic(optimizer)
        # Every step is one with a trial gradient: a plain transformation is not told which steps are two-stage.
        every_step = optax.with_extra_args_support(optax.GradientTransformation(optimistic.init, optimistic.update))
        return Method(every_step, quantizer, lookahead=optimistic)
    return Method(optimizer, quantizer)


MODEL_SIDE = {
    "binary_connect": straight_through.binary_connect,
    "binary_connect_stochastic": straight_through.stochastic_binary_connect,
    "twn": straight_through.ternary_weights,
}


def _on_model_side(optimizer: optax.GradientTransformation, model_side: ModelSide) -> Method:
    return Method(optax.with_extra_args_support(optimizer), fobt.full_precision(), model_side=model_side)


def _learned_step_size_optimizer(
    learning_rate: optax.Schedule, moments: dict[str, Any]
) -> optax.GradientTransformation:
    """Adam, with a hundredth of the learning rate for step sizes.

    Adam moves every number by about the learning rate in a step, and a step size is about a hundredth of the range of
    the weights.
    """
    return optax.partition(
        {
            "weights": optax.adam(learning_rate, **moments),
            "step_sizes": optax.adam(lambda count: 0.01 * learning_rate(count), **moments),
        },
        {"network": "weights", "step_sizes": "step_sizes"},
    )
