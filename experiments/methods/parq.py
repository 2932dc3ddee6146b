"""PARQ: gradients at weights that go from the latents to their projection in the course of training."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

import fobt
from experiments.methods.method import Hyperparameters, Method
from experiments.methods.registry import register


@register(
    "PARQ",
    tuned={
        "PARQ": {},
        "PARQ, cosine over half": {"anneal": "cosine", "share": 0.5},
        "PARQ, sigmoid to the end": {"anneal": "sigmoid", "share": 1.0},
        "PARQ, curvature 1": {"weighted": False},
    },
)
def parq(
    hyper: Hyperparameters,
    quantizer: fobt.Quantizer,
    *,
    anneal: str = "linear",
    share: float = 0.8,
    weighted: bool = True,
) -> Method:
    """Adam with `fobt.anneal`, whose inverse slope falls from 1 to 0 in a share of the steps.

    After it training is loss-aware quantization. Where the slope still rises at the end of a short training, while the
    learning rate vanishes, the network does not adapt to its last weights. The publication's scales ignore the
    curvature, as those with `weighted=False` do.
    """
    assert hyper.steps is not None
    inverse_slope = ANNEALS[anneal](max(1, round(share * hyper.steps)))

    def annealed(params: Any, state: Any) -> Any:
        slope = optax.tree.get(state, "inverse_slope")
        return fobt.annealed_params(params, state if weighted else None, quantizer, slope)

    optimizer = fobt.anneal(hyper.bounded_adam(quantizer), quantizer, inverse_slope)
    return Method(optimizer, quantizer, weighted=weighted, lookahead=annealed)


def sigmoid_decay_schedule(init_value: float, decay_steps: int, steepness: float = 10.0) -> optax.Schedule:
    """From `init_value` to 0 along a mirrored sigmoid, as in `ProxPARQ` of torchao; the steepness is its default.

    With f the share of the steps, σ the logistic function and s the steepness the share of `init_value` is
    (σ(s (1/2 - f)) - σ(-s/2)) / (σ(s/2) - σ(-s/2)).

    Example:
        >>> schedule = sigmoid_decay_schedule(1.0, 100)
        >>> [round(float(schedule(step)), 3) for step in (0, 25, 50, 75, 100, 110)]
        [1.0, 0.93, 0.5, 0.07, 0.0, 0.0]
    """
    lowest, highest = (1 / (1 + math.exp(sign * steepness / 2)) for sign in (1, -1))

    def schedule(count: Any) -> jax.Array:
        falling = jax.nn.sigmoid(steepness * (0.5 - count / decay_steps))
        # Rounding must not leave the range either.
        return init_value * jnp.clip((falling - lowest) / (highest - lowest), 0, 1)

    return schedule


# From the steps of the annealing to its schedule.
ANNEALS: Mapping[str, Callable[[int], optax.Schedule]] = {
    "linear": lambda steps: optax.linear_schedule(1.0, 0.0, steps),
    "cosine": lambda steps: optax.cosine_decay_schedule(1.0, steps),
    "sigmoid": lambda steps: sigmoid_decay_schedule(1.0, steps),
}
