"""The first moment in bfloat16, as `optax.adam` offers it."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from two_layers import (
    B1,
    B2,
    EPS,
    LEARNING_RATE,
    PROJECTIONS,
    initial_params,
    loss_fn,
    minibatch,
    numpy_grads,
)

import fobt

QUANTIZER = fobt.binary()
METHOD = functools.partial(fobt.forward_backtrack, LEARNING_RATE, QUANTIZER, mu_dtype=jnp.bfloat16)
OPTIMIZERS = {
    "loss-aware": optax.adam(LEARNING_RATE, mu_dtype=jnp.bfloat16),
    "two-stage": METHOD(),
    "lax.cond": METHOD(every=2),
    "injected": optax.inject_hyperparams(
        fobt.forward_backtrack, static_args=("quantizer", "every", "b1", "b2", "eps", "mu_dtype")
    )(LEARNING_RATE, QUANTIZER, mu_dtype=jnp.bfloat16),
    "optimistic": fobt.optimistic(METHOD()),
}


def float_params(dtype=jnp.float32):
    return jax.tree.map(lambda w: jnp.asarray(w, dtype), initial_params(0))


def make_step(tx):
    tx = optax.with_extra_args_support(tx)

    @jax.jit
    @functools.partial(chex.assert_max_traces, n=1)
    def step(params, state, x, y):
        _, grads, grad_fn = fobt.value_and_grad(loss_fn, QUANTIZER)(params, state, x, y)
        # A plain function: "optimistic" refuses that of `value_and_grad`, whose gradients are not of the trial point.
        updates, state = tx.update(grads, state, params, grad_fn=lambda weights: grad_fn(weights))
        return optax.apply_updates(params, updates), state

    return step


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_has_6_bytes_per_parameter_and_keeps_its_dtypes(name):
    chex.clear_trace_counter()
    tx, params = OPTIMIZERS[name], float_params()
    first = state = tx.init(params)
    step = make_step(tx)
    for t in range(3):
        params, state = step(params, state, *minibatch(0, t))
    chex.assert_trees_all_equal_shapes_and_dtypes((params, state), (float_params(), first))
    chex.assert_tree_all_finite((params, state))
    mu, nu = optax.tree.get(state, "mu"), optax.tree.get(state, "nu")
    assert {leaf.dtype for leaf in jax.tree.leaves(mu)} == {jnp.dtype(jnp.bfloat16)}
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert sum(leaf.nbytes for leaf in jax.tree.leaves((mu, nu))) == 6 * parameters
    assert any(np.any(leaf) for leaf in jax.tree.leaves(mu))


# Not a moment wider than the params: the updates of optax.adam have its dtype then, and ours always that of the params.
@pytest.mark.parametrize(
    ("params_dtype", "mu_dtype"),
    [("float32", "bfloat16"), ("float64", "bfloat16"), ("float64", "float32")],
)
def test_plain_steps_are_those_of_adam_to_the_last_bit(params_dtype, mu_dtype):
    with jax.enable_x64(params_dtype == "float64"):
        params = adam_params = float_params(params_dtype)
        tx = fobt.forward_backtrack(LEARNING_RATE, QUANTIZER, a=1, mu_dtype=mu_dtype)
        adam = optax.adam(LEARNING_RATE, mu_dtype=mu_dtype)
        state, adam_state = tx.init(params), adam.init(params)
        for t in range(3):
            grads = numpy_grads(jax.tree.map(np.float64, params), *minibatch(0, t))
            grads = jax.tree.map(lambda g, w: jnp.asarray(g, w.dtype), grads, params)
            updates, state = jax.jit(functools.partial(tx.update, grad_fn=loss_fn))(grads, state, params)
            adam_updates, adam_state = jax.jit(adam.update)(grads, adam_state, adam_params)
            params, adam_params = optax.apply_updates(params, updates), optax.apply_updates(adam_params, adam_updates)
            chex.assert_trees_all_equal(params, adam_params)
            chex.assert_trees_all_equal(state, adam_state[0])


@pytest.mark.slow
def test_each_step_is_that_of_the_reference_to_the_rounding_of_bfloat16():
    """The reference takes each step from the state that the last one left, so that roundings do not add up."""
    projections = {"W": PROJECTIONS["binary"][1], "V": PROJECTIONS["binary"][1]}
    with jax.enable_x64(True):
        tx = METHOD(a=0.6, b1=B1, b2=B2, eps=EPS)
        params = float_params(jnp.float64)
        state, step = tx.init(params), make_step(tx)
        for t in range(10):
            x, y = minibatch(0, t)
            before = jax.tree.map(np.float64, params)
            moments = {name: jax.tree.map(np.float64, getattr(state, name)) for name in ("mu", "nu")}
            before_state = {"count": t, **moments}
            expected, expected_state = reference.forward_backtrack_step(
                before,
                before_state,
                numpy_grads(reference.quantized(before, before_state, projections), x, y),
                lambda weights, x=x, y=y: numpy_grads(weights, x, y),
                LEARNING_RATE,
                0.6,
                projections,
                B1,
                B2,
                EPS,
            )
            params, state = step(params, state, x, y)
            for name, w in expected.items():
                mu = expected_state["mu"][name]
                # b1 m and the sum are rounded, by 2^-9 at most, and the trial point has moved a little too.
                error = np.abs(state.mu[name].astype(float) - mu)
                np.testing.assert_array_less(error, 2.0**-8 * (np.abs(moments["mu"][name]) + np.abs(mu)) + 1e-3)
                np.testing.assert_allclose(params[name], w, atol=LEARNING_RATE * 2.0**-7)
                np.testing.assert_allclose(state.nu[name], expected_state["nu"][name], rtol=1e-3)
