"""Variants of loss-aware quantization: each differs from it in the one thing that it says."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fobt
from experiments.methods.method import Hyperparameters
from experiments.methods.registry import METHODS

STEPS = 8
QUANTIZER = fobt.ternary()
HYPER = Hyperparameters(optax.cosine_decay_schedule(0.1, STEPS), 0.6, 0.9, weight_bounds=None, steps=STEPS)


def run(name: str, **options):
    """Parameters and quantized weights along a training with given gradients."""
    method = METHODS[name].make(HYPER, quantizer=QUANTIZER, **options)
    rng = np.random.default_rng(0)
    params = {"kernel": jnp.asarray(rng.normal(size=(5, 4)), jnp.float32)}
    state = method.optimizer.init(params)
    path = []
    for _ in range(STEPS):
        grads = {"kernel": jnp.asarray(rng.normal(size=(5, 4)) * np.linspace(0.1, 2, 4), jnp.float32)}
        updates, state = method.optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        path.append((grads, params, method.evaluated(params, state)))
    return path


@pytest.mark.parametrize(("power", "like"), [(1.0, "laq"), (0.0, "curvature_one")])
def test_a_power_of_the_curvature_lies_between_two_methods(power: float, like: str):
    for (_, params, weights), (_, expected_params, expected) in zip(
        run("powered_curvature", power=power), run(like), strict=True
    ):
        np.testing.assert_array_equal(params["kernel"], expected_params["kernel"])
        np.testing.assert_allclose(weights["kernel"], expected["kernel"], rtol=1e-5)


def test_a_slow_average_weights_the_projection_and_nothing_else():
    average = np.zeros((5, 4))
    for (grads, params, weights), (_, expected_params, _) in zip(
        run("slow_curvature", decay=0.99), run("laq"), strict=True
    ):
        np.testing.assert_array_equal(params["kernel"], expected_params["kernel"])
        average = 0.99 * average + 0.01 * np.asarray(grads["kernel"], np.float64) ** 2
        state = optax.ScaleByRmsState(nu={"kernel": jnp.asarray(average, jnp.float32)})
        np.testing.assert_allclose(
            weights["kernel"], fobt.quantized_params(params, state, QUANTIZER)["kernel"], rtol=1e-4
        )


@pytest.mark.parametrize(
    ("constant", "rates"), [(0.0, np.linspace(0.1, 0.0125, STEPS)), (0.5, [0.1] * 4 + [0.1, 0.075, 0.05, 0.025])]
)
def test_the_learning_rate_ends_on_a_line(constant: float, rates):
    """Read off steps of Adam, whose direction the rate does not change."""
    plain = METHODS["laq"].make(Hyperparameters(1.0, 0.6, 0.9, weight_bounds=None), quantizer=QUANTIZER)
    state = plain.optimizer.init({"kernel": jnp.zeros((5, 4))})
    before = None
    for (grads, params, _), rate in zip(run("linear_end", constant=constant), rates, strict=True):
        updates, state = plain.optimizer.update(grads, state)
        if before is not None:
            step = jax.tree.map(jnp.subtract, params, before)
            np.testing.assert_allclose(step["kernel"], rate * updates["kernel"], rtol=1e-3, atol=1e-6)
        before = params
