"""The baselines: full precision, and published methods without loss-aware scales."""

import optax

import fobt
from experiments.methods import straight_through
from experiments.methods.method import Hyperparameters, Method
from experiments.methods.registry import register
from experiments.methods.straight_through import ModelSide


@register("full precision", tuned={"full precision": {}})
def full_precision(hyper: Hyperparameters) -> Method:
    """Adam."""
    return Method(optax.adam(hyper.learning_rate, **hyper.moments), fobt.full_precision())


def _straight_through(hyper: Hyperparameters, model_side: ModelSide) -> Method:
    # Any quantizer serves to say that all weight tensors are bounded.
    return Method(hyper.bounded_adam(fobt.binary()), fobt.full_precision(), model_side=model_side)


@register("BinaryConnect", grids=("binary",), tuned={"BinaryConnect": {}})
def binary_connect(hyper: Hyperparameters) -> Method:
    """Adam on `straight_through.binary_connect`."""
    return _straight_through(hyper, straight_through.binary_connect())


@register("BinaryConnect, stochastic", grids=("binary",))
def binary_connect_stochastic(hyper: Hyperparameters) -> Method:
    """Adam on `straight_through.stochastic_binary_connect`."""
    return _straight_through(hyper, straight_through.stochastic_binary_connect())


@register("BWN", grids=("binary",))
def bwn(hyper: Hyperparameters) -> Method:
    """Adam at the binary projection that curvature does not weight, α = mean|w|."""
    return Method(hyper.bounded_adam(fobt.binary()), fobt.binary(), weighted=False)


@register("TWN", grids=("ternary", "linear2"), tuned={"TWN": {}})
def twn(hyper: Hyperparameters) -> Method:
    """Adam on `straight_through.ternary_weights`."""
    return _straight_through(hyper, straight_through.ternary_weights())


@register("DoReFa", bits=(1, 4), tuned={"DoReFa": {}})
def dorefa(hyper: Hyperparameters, *, bits: int) -> Method:
    """Adam on `straight_through.dorefa`, whose definition has no bounds of the weights."""
    adam = optax.adam(hyper.learning_rate, **hyper.moments)
    return Method(adam, fobt.full_precision(), model_side=straight_through.dorefa(bits))


@register("LSQ", bits=(2, 4), tuned={"LSQ": {}})
def lsq(hyper: Hyperparameters, *, bits: int) -> Method:
    """Adam on `straight_through.LearnedStepSize`, with a hundredth of the learning rate for step sizes.

    Adam moves every number by about the learning rate in a step, and a step size is about a hundredth of the range of
    the weights. The definition has no bounds of the weights.
    """
    optimizer = optax.partition(
        {
            "weights": optax.adam(hyper.learning_rate, **hyper.moments),
            "step_sizes": optax.adam(lambda count: 0.01 * hyper.learning_rate(count), **hyper.moments),
        },
        {"network": "weights", "step_sizes": "step_sizes"},
    )
    return Method(optimizer, fobt.full_precision(), model_side=straight_through.LearnedStepSize(bits))
