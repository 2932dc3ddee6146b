"""Two controls: loss-aware quantization that spends two gradients per minibatch, neither of them a trial gradient."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

import fobt
from experiments.methods.method import Hyperparameters, Method
from experiments.methods.registry import register


@register("LAQ with SAM", gradients=2, tuned={"SAM": {"rho": 0.05}})
def sam(hyper: Hyperparameters, quantizer: Any, *, rho: float) -> Method:
    """`sharpness_aware` loss-aware quantization; with the identity as quantizer this is SAM."""
    return Method(sharpness_aware(hyper.bounded_adam(quantizer), quantizer, rho), quantizer)


@register("two LAQ steps", gradients=2, tuned={"two LAQ steps": {}})
def two_steps(hyper: Hyperparameters, quantizer: fobt.Quantizer) -> Method:
    """`twice` the step of loss-aware quantization, on a schedule that counts minibatches."""
    halved = dataclasses.replace(hyper, learning_rate=lambda count: hyper.learning_rate(count // 2))
    return Method(twice(halved.bounded_adam(quantizer), quantizer), quantizer)


def sharpness_aware(optimizer: optax.GradientTransformation, quantizer: Any, rho: float) -> Any:
    """Sharpness-aware minimisation (SAM) of the loss at the quantized weights ŵ.

    The gradient that the optimizer gets is the one at ŵ + ρ ĝ/‖ĝ‖, where ĝ is the gradient at ŵ and the norm runs over
    all parameters.

    Args:
        optimizer: Keeps a second moment `nu`.
        quantizer: Gives ŵ from parameters and state.
        rho: ρ.

    Returns:
        A transformation whose update takes `grad_fn`.

    References:
        Foret, Kleiner, Mobahi, Neyshabur, Sharpness-Aware Minimization, ICLR 2021, Eq. 2.
    """
    adversary = optax.chain(optax.contrib.normalize(), optax.sgd(rho))
    inner = optax.contrib.sam(optimizer, adversary, opaque_mode=True)

    def update(grads: Any, state: Any, params: Any = None, *, grad_fn: Any, **extra_args: Any) -> tuple[Any, Any]:
        del extra_args
        quantized = fobt.quantized_params(params, state, quantizer)

        def grad_at_perturbed(perturbed_params: Any, step: int) -> Any:
            del step
            return grad_fn(jax.tree.map(lambda w_hat, p, w: w_hat + (p - w), quantized, perturbed_params, params))

        return inner.update(grads, state, params, grad_fn=grad_at_perturbed)

    return optax.GradientTransformationExtraArgs(inner.init, update)


def twice(optimizer: optax.GradientTransformation, quantizer: Any) -> Any:
    """Two successive loss-aware steps on the same minibatch; the optimizer counts both.

    Args:
        optimizer: Keeps a second moment `nu`.
        quantizer: Gives the quantized weights from parameters and state.

    Returns:
        A transformation whose update takes `grad_fn`.
    """

    def update(grads: Any, state: Any, params: Any = None, *, grad_fn: Any, **extra_args: Any) -> tuple[Any, Any]:
        del extra_args
        first, state = optimizer.update(grads, state, params)
        between = optax.apply_updates(params, first)
        grads = grad_fn(fobt.quantized_params(between, state, quantizer))
        second, state = optimizer.update(grads, state, between)
        return jax.tree.map(jnp.add, first, second), state

    return optax.GradientTransformationExtraArgs(optimizer.init, update)
