"""The rows of the comparison: what each method quantizes, how it updates, and when it takes two gradients."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import optax

import fobt
from experiments.config import TrainConfig


@dataclass(frozen=True)
class Method:
    """One way to train a network.

    Attributes:
        name: As on the command line.
        label: For tables and plots.
        quantizer: Gives the weights of every forward pass; anything that `fobt.value_and_grad` takes.
        optimizer: Turns gradients at these weights into updates; called with `grad_fn` and `two_stage`.
        is_two_stage: Whether a step takes a trial gradient, as a function of its epoch and its number, both from 1.
    """

    name: str
    label: str
    quantizer: Any
    optimizer: optax.GradientTransformationExtraArgs
    is_two_stage: Callable[[int, int], bool]


def build_methods(config: TrainConfig, learning_rate: optax.Schedule) -> list[Method]:
    """One method for each row that the configuration asks for, in its order."""
    methods = []
    for name in config.methods:
        if name == "full_precision":
            methods.append(full_precision(learning_rate))
        elif name == "laq":
            methods.append(laq(config, learning_rate))
        else:
            methods.extend(forward_backtrack(config, learning_rate, period) for period in config.every)
    return methods


def full_precision(learning_rate: optax.Schedule) -> Method:
    """Adam at full-precision weights."""
    optimizer = optax.with_extra_args_support(optax.adam(learning_rate))
    return Method("full_precision", "full precision", fobt.identity(), optimizer, lambda epoch, step: False)


def laq(config: TrainConfig, learning_rate: optax.Schedule) -> Method:
    """Loss-aware quantization: Adam with gradients taken at the quantized weights."""
    quantizer = config.make_quantizer()
    optimizer = optax.chain(optax.adam(learning_rate), fobt.bound_weights(config.weight_bounds, quantizer))
    return Method("laq", "LAQ", quantizer, optax.with_extra_args_support(optimizer), lambda epoch, step: False)


def forward_backtrack(config: TrainConfig, learning_rate: optax.Schedule, period: int) -> Method:
    """One step forward and backtrack in every `period`-th step, or in every step of each `period`-th epoch."""
    quantizer = config.make_quantizer()
    optimizer = fobt.forward_backtrack(learning_rate, quantizer, a=config.a, weight_bounds=config.weight_bounds)
    in_epochs = config.every_unit == "epochs"

    def is_two_stage(epoch: int, step: int) -> bool:
        return config.a < 1 and (epoch if in_epochs else step) % period == 0

    often = "every step" if period == 1 else f"every {period} {config.every_unit}"
    return Method("forward_backtrack", f"forward-backtrack, {often}", quantizer, optimizer, is_two_stage)
