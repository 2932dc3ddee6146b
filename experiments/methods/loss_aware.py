"""Loss-aware quantization: an optimizer of Optax, fed with gradients at the projection of the weights."""

import optax

import fobt
from experiments.methods.method import Hyperparameters, Method
from experiments.methods.registry import register


@register("LAQ", tuned={"LAQ": {}}, step_costs="loss-aware", memory_costs="loss-aware")
def laq(hyper: Hyperparameters, quantizer: fobt.Quantizer) -> Method:
    """Adam at the loss-aware projection: LAB and LAT with their grids."""
    return Method(hyper.bounded_adam(quantizer), quantizer)


@register(tuned={"curvature 1": {}})
def curvature_one(hyper: Hyperparameters, quantizer: fobt.Quantizer) -> Method:
    """Adam at the projection that curvature does not weight."""
    return Method(hyper.bounded_adam(quantizer), quantizer, weighted=False)


@register("LAQ with NAdam", tuned={"LAQ with NAdam": {}})
def nadam(hyper: Hyperparameters, quantizer: fobt.Quantizer) -> Method:
    """NAdam at the loss-aware projection."""
    return Method(hyper.bounded(optax.nadam(hyper.learning_rate, **hyper.moments), quantizer), quantizer)
