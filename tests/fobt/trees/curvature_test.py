"""The curvature of an optimizer state is what the optimizer divides by, recovered from the steps that it takes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import fobt

SHAPE, STEPS, B1 = (3, 4), 8, 0.8
RNG = np.random.default_rng(0)
WEIGHTS = RNG.normal(size=SHAPE)
SCALES = 10 ** RNG.uniform(-1, 1, SHAPE)
GRADS = RNG.normal(size=(STEPS + 1, *SHAPE)) * SCALES
GRADS[3] *= np.where(RNG.random(SHAPE) < 0.5, 50, 1)  # a step with some large gradients


def gradient(t):
    """The direction of optimizers without momentum."""
    return GRADS[t]


def momentum(t):
    """Bias-corrected average of the gradients to step t."""
    return sum((1 - B1) * B1 ** (t - s) * GRADS[s] for s in range(t + 1)) / (1 - B1 ** (t + 1))


def slow_and_fast(t):
    """Direction of AdEMAMix with a slow average that is as fast as the other, without its bias correction."""
    return momentum(t) + 5 * (1 - B1 ** (t + 1)) * momentum(t)


def with_difference(t):
    """Direction of Adan without averages."""
    return 2 * GRADS[t] - GRADS[t - 1] if t else GRADS[0]


# Optimizer, its direction, and whether the state holds the divisor of the next step, which it makes of it.
DIVIDE = {
    "adam": (optax.adam(1.0, b1=B1), momentum, False),
    "adamw": (optax.adamw(1.0, b1=B1, weight_decay=0.0), momentum, False),
    "nadam": (optax.nadam(1.0, b1=0.0), gradient, False),
    "amsgrad": (optax.amsgrad(1.0, b1=B1, b2=0.9), momentum, False),
    "rmsprop": (optax.rmsprop(1.0), gradient, False),
    "rmsprop with bias correction": (optax.rmsprop(1.0, bias_correction=True), gradient, False),
    "centred rmsprop": (optax.rmsprop(1.0, centered=True), gradient, False),
    "adabelief": (optax.adabelief(1.0, b1=B1), momentum, False),
    "yogi": (optax.chain(optax.scale_by_yogi(b1=0.0, eps=1e-9), optax.scale(-1.0)), gradient, False),
    "radam": (optax.radam(1.0, b1=B1, b2=0.9), momentum, False),
    "lamb": (optax.lamb(1.0, b1=B1, eps_root=0.0), momentum, False),
    "ademamix": (optax.contrib.ademamix(1.0, b1=B1, b3=B1, alpha=5.0, weight_decay=0.0), slow_and_fast, False),
    "adagrad": (optax.adagrad(1.0), gradient, False),
    "adan": (optax.adan(1.0, b1=0.0, b2=0.0, weight_decay=0.0), with_difference, False),
    "adopt": (optax.contrib.adopt(1.0, b1=0.0, use_clipping=False), gradient, True),
    "acprop": (optax.contrib.acprop(1.0, weight_decay=0.0), gradient, True),
    "forward_backtrack": (fobt.forward_backtrack(1.0, fobt.binary(), a=1, b1=B1), momentum, False),
}


@pytest.mark.parametrize("name", DIVIDE)
def test_the_scale_is_that_of_the_divisor_of_the_optimizer(x64, name):
    tx, direction, of_next_step = DIVIDE[name]
    params = jnp.asarray(WEIGHTS)
    state, states = tx.init(params), []
    update = jax.jit(tx.update)
    for t in range(STEPS + of_next_step):
        states.append(state)
        updates, state = update(jnp.asarray(GRADS[t]), state, params)
    divisor = -direction(t) / np.asarray(updates)
    scale = fobt.quantize(params, states[-1] if of_next_step else state, fobt.binary()).scale
    assert np.all(divisor > 0)
    assert divisor.max() > 10 * divisor.min()
    np.testing.assert_allclose(scale, np.sum(divisor * np.abs(WEIGHTS)) / np.sum(divisor), rtol=1e-5)


def test_sophia_divides_by_the_hessian():
    """Where it is negative it divides by next to nothing; the weight has no say."""
    params = jnp.asarray([[1.0, -2.0, 3.0]])
    sophia, *rest = optax.contrib.sophia(0.1).init(params)
    state = (sophia._replace(nu=jnp.asarray([[1.0, 3.0, -5.0]])), *rest)
    np.testing.assert_allclose(fobt.quantize(params, state, fobt.binary()).scale, 7 / 4, rtol=1e-6)


def test_the_variance_of_constant_gradients_is_not_negative():
    params = jnp.asarray([[1.0, -2.0]])
    state = optax.scale_by_stddev().init(params)
    state = state._replace(mu=jnp.full((1, 2), 0.1), nu=jnp.square(jnp.full((1, 2), 0.1)) * jnp.float32(1 - 1e-6))
    np.testing.assert_allclose(fobt.quantize(params, state, fobt.binary()).scale, 1.5, rtol=1e-6)


WITHOUT_DIVISOR = {
    "ScaleByRStdDevWithCountState will not do.*without bias_correction it works": optax.rmsprop(
        0.1, centered=True, bias_correction=True
    ),
    "ScaleBySM3State will not do: .* momentum": optax.sm3(0.1),
    "ScaleByNovogradState will not do: .* curvature 1": optax.novograd(0.1),
    "GaLoreState will not do: .* another basis": optax.contrib.galore(0.1, rank=4),
}


@pytest.mark.parametrize("message", WITHOUT_DIVISOR)
def test_states_without_the_divisor_are_refused(message):
    params = {"kernel": jnp.ones((4, 4))}
    state = jax.eval_shape(WITHOUT_DIVISOR[message].init, params)
    with pytest.raises(ValueError, match=f"'kernel', found none.*{message}.*optax.adam, rmsprop"):
        fobt.quantize(params, state, fobt.binary())


def test_a_refused_state_may_belong_to_other_leaves():
    params = {"kernel": jnp.asarray([[1.0, -2.0]]), "bias": jnp.ones(3)}
    tx = optax.partition({"a": optax.adam(0.1), "b": optax.sm3(0.1)}, {"kernel": "a", "bias": "b"})
    np.testing.assert_allclose(fobt.quantize(params, tx.init(params), fobt.binary())["kernel"].scale, 1.5)


class Damped(NamedTuple):
    """A state that calls something else `nu`."""

    nu: float
    inner: optax.OptState


def test_the_second_moment_of_any_other_state():
    params = jnp.asarray([[1.0, -2.0, 4.0]])
    inner = optax.scale_by_rms().init(params)._replace(nu=jnp.asarray([[1.0, 4.0, 0.0]]))
    for state in (inner, (optax.EmptyState(), inner), Damped(0.5, inner), (Damped(0.5, {"nu": inner}),)):
        np.testing.assert_allclose(fobt.quantize(params, state, fobt.binary()).scale, 5 / 3, rtol=1e-6)


def test_params_and_state_swapped():
    params = {"kernel": jnp.ones((2, 2))}
    state = optax.adam(0.1).init(params)
    with pytest.raises(ValueError, match=r"params must be the weights .*quantize\(params, state, quantizer\)"):
        fobt.quantized_params(state, params, fobt.binary())
