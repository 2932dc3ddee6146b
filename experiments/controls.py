"""Two controls: loss-aware quantization that spends two gradients per minibatch, neither of them a trial gradient."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

import fobt


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


def two_steps(optimizer: optax.GradientTransformation, quantizer: Any) -> Any:
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
