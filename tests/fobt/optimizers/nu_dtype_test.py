"""Params of 16 bits: the second moment is that of float32, where b2 = 0.999 is not lost in rounding."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fobt

QUANTIZER = fobt.binary()
WEIGHTS = np.array([[0.9, -0.4, 0.1], [-1.2, 0.3, -2.0]])
DTYPES = ["bfloat16", "float16"]


def params_of(dtype):
    return {"kernel": jnp.asarray(WEIGHTS, dtype), "bias": jnp.asarray(np.ones(3), dtype)}


def gradients(dtype, steps):
    """Gradients of about 1 as that dtype rounds them."""
    rng = np.random.default_rng(0)
    return [
        jax.tree.map(lambda w: jnp.asarray(1 + 0.1 * rng.normal(size=w.shape), dtype), params_of(dtype))
        for _ in range(steps)
    ]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kwargs", [{"a": 1}, {"every": 1000}, {"a": 1, "mu_dtype": "float32"}])
def test_the_second_moment_of_plain_steps(dtype, kwargs):
    """In NumPy: v ← b2 v + (1 - b2) g². In bfloat16 it would stop growing at 0.25: there 0.001 is half a unit."""
    tx, params = fobt.forward_backtrack(1e-3, QUANTIZER, **kwargs), params_of(dtype)
    state = tx.init(params)
    update = jax.jit(lambda grads, state, params: tx.update(grads, state, params, grad_fn=lambda weights: weights))
    expected = np.zeros((2, 3))
    for grads in gradients(dtype, 400):
        updates, new_state = update(grads, state, params)
        chex.assert_trees_all_equal_shapes_and_dtypes((updates, new_state), (params, state))
        state, params = new_state, optax.apply_updates(params, updates)
        expected = 0.999 * expected + 0.001 * np.float64(grads["kernel"]) ** 2
    assert state.nu["kernel"].dtype == jnp.float32
    assert np.all(expected > 0.3)
    np.testing.assert_allclose(state.nu["kernel"], expected, rtol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_two_gradients_are_those_of_float32_to_rounding(dtype):
    target = np.array([[1.0, -1.0, 1.0], [-1.0, 1.0, -1.0]])

    def loss_fn(weights):
        return jnp.sum(jnp.square(weights["kernel"] - jnp.asarray(target, weights["kernel"].dtype)))

    def run(params):
        training = fobt.Training(fobt.forward_backtrack(0.05, QUANTIZER, weight_bounds=(-2, 2)))
        state, step = training.init(params), jax.jit(training.step(loss_fn))
        for _ in range(10):
            params, state, _ = step(params, state)
        return params, state

    params, state = run(params_of(dtype))
    wide_params, wide_state = run(jax.tree.map(lambda w: w.astype(jnp.float32), params_of(dtype)))
    eps = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(np.float32(params["kernel"]), wide_params["kernel"], atol=20 * eps)
    np.testing.assert_allclose(state.nu["kernel"], wide_state.nu["kernel"], rtol=40 * eps, atol=1e-4)


@pytest.mark.parametrize("g", [100.0, 300.0, 6e4])
def test_squares_that_float16_cannot_hold(g):
    """Nor the ε of the default: a weight without gradients stands still."""
    tx = fobt.forward_backtrack(1e-3, QUANTIZER)
    params = {"kernel": jnp.asarray(WEIGHTS, jnp.float16)}
    grads = {"kernel": jnp.asarray([[g, 1.0, 1.0], [1.0, 1.0, 0.0]], jnp.float16)}
    updates, state = tx.update(grads, tx.init(params), params, grad_fn=lambda _: grads)
    np.testing.assert_allclose(
        np.float64(state.nu["kernel"][0, 0]), 0.001 * np.float64(grads["kernel"][0, 0]) ** 2, rtol=1e-3
    )
    np.testing.assert_allclose(np.float32(updates["kernel"]), [[-1e-3] * 3, [-1e-3, -1e-3, 0]], rtol=1e-2)
