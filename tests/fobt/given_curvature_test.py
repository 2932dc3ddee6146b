"""Optimizers whose state holds no second moment `nu`: the curvature of the projection is given."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from flax import nnx

import fobt

QUANTIZER = fobt.binary()
X = jax.random.normal(jax.random.key(0), (16, 4))
Y = X @ jax.random.normal(jax.random.key(1), (4, 3))


def first_params():
    return {"kernel": jax.random.normal(jax.random.key(2), (4, 3)), "bias": jnp.ones(3)}


def loss_fn(weights, x, y):
    return jnp.mean((x @ weights["kernel"] + weights["bias"][None] - y) ** 2)


def prodigy_curvature(state):
    return jax.tree.map(jnp.sqrt, optax.tree.get(state, "exp_avg_sq"))


def numpy_binary(weights, curvature):
    """The closed form of the binary projection."""
    w, c = (np.asarray(x, np.float64) for x in (weights, curvature))
    return np.sign(w) * np.sum(c * np.abs(w)) / np.sum(c)


def run(training, steps=3):
    step, params, state = jax.jit(training.step(loss_fn)), first_params(), training.init(first_params())
    for _ in range(steps):
        params, state, _ = step(params, state, X, Y)
    return params, state


@pytest.mark.parametrize(
    "tx", [optax.sgd(0.1), optax.lion(0.01), optax.contrib.muon(0.01)], ids=["sgd", "lion", "muon"]
)
def test_ones_are_the_mean_magnitude(tx):
    training = fobt.Training(tx, QUANTIZER, curvature="ones")
    params, state = run(training)
    weights = training.weights(params, state)
    np.testing.assert_allclose(weights["kernel"], numpy_binary(params["kernel"], np.ones((4, 3))), rtol=1e-5)
    np.testing.assert_array_equal(training.quantize(params, state)["kernel"].codes, np.sign(params["kernel"]))


def test_a_function_of_the_state():
    training = fobt.Training(optax.contrib.prodigy(estim_lr0=0.1), QUANTIZER, curvature=prodigy_curvature)
    params, state = run(training)
    expected = numpy_binary(params["kernel"], np.sqrt(state.exp_avg_sq["kernel"]))
    np.testing.assert_allclose(training.weights(params, state)["kernel"], expected, rtol=1e-4)
    assert not np.allclose(expected, numpy_binary(params["kernel"], np.ones((4, 3))), rtol=1e-3)
    assert np.all(np.asarray(training.weights(params, state)["bias"] == params["bias"]))


def test_gradients_are_taken_at_these_weights():
    training = fobt.Training(optax.contrib.prodigy(estim_lr0=0.1), QUANTIZER, curvature=prodigy_curvature)
    params, state = run(training)
    _, grads, _ = training.value_and_grad(loss_fn)(params, state, X, Y)
    kernel = numpy_binary(params["kernel"], np.sqrt(state.exp_avg_sq["kernel"]))
    expected = jax.grad(loss_fn)({"kernel": jnp.asarray(kernel, jnp.float32), "bias": params["bias"]}, X, Y)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), grads, expected)


def test_one_step_ahead():
    """Momentum alone moves the latents to the trial point, by -0.1 · 0.9 · trace."""
    training = fobt.Training(optax.sgd(0.1, momentum=0.9), QUANTIZER, curvature="ones", look_ahead=True)
    params, state = run(training)
    ahead = np.asarray(params["kernel"]) - 0.1 * 0.9 * np.asarray(state[0].trace["kernel"])
    got = training.gradient_weights(params, state)["kernel"]
    np.testing.assert_allclose(got, numpy_binary(ahead, np.ones((4, 3))), rtol=1e-5)


def test_annealed():
    training = fobt.Training(
        fobt.anneal(optax.lion(0.01), QUANTIZER, optax.constant_schedule(0.5)), QUANTIZER, curvature="ones"
    )
    params, state = run(training)
    expected = fobt.annealed_params(params, None, QUANTIZER, 0.5)
    jax.tree.map(np.testing.assert_array_equal, training.gradient_weights(params, state), expected)


def test_in_the_loop_of_flax():
    model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    optimizer = fobt.nnx.Optimizer(model, optax.lion(0.01), QUANTIZER, wrt=nnx.Param, curvature="ones")
    _, grads = fobt.nnx.value_and_grad(lambda model: jnp.mean((model(X) - Y) ** 2))(model, optimizer)
    optimizer.update(model, grads)
    expected = numpy_binary(model.kernel[...], np.ones((4, 3)))
    np.testing.assert_allclose(optimizer.quantized_model(model).kernel[...], expected, rtol=1e-5)


def test_what_cannot_be():
    with pytest.raises(ValueError, match=r"found none.*fobt\.Training\(optimizer, quantizer, curvature='ones'\)"):
        fobt.Training(optax.lion(0.1), QUANTIZER).init(first_params())
    with pytest.raises(ValueError, match="curvature must be 'state', 'ones' or a function of the state, got None"):
        fobt.Training(optax.lion(0.1), QUANTIZER, curvature=None)
    for tx in (fobt.forward_backtrack(0.1, QUANTIZER), fobt.optimistic(fobt.forward_backtrack(0.1, QUANTIZER))):
        with pytest.raises(ValueError, match="curvature must be left out with an optimizer that quantizes"):
            fobt.Training(tx, curvature="ones")
    with pytest.raises(ValueError, match=r"curvature must have the shapes of params, got \(3,\) instead of \(4, 3\)"):
        fobt.Training(optax.lion(0.1), QUANTIZER, curvature=lambda _: {"kernel": jnp.ones(3), "bias": 1.0}).init(
            first_params() | {"bias": 1.0}
        )
