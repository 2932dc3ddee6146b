"""A checkpoint of optax.adam, continued with the method: the reference from Adam's moments and step number on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from two_layers import B1, B2, EPS, LEARNING_RATE, PROJECTIONS, initial_params, loss_fn, minibatch, numpy_grads

import fobt

QUANTIZER, PROJECT = PROJECTIONS["binary"]


@pytest.mark.parametrize("part", ["state[0]", "state"])
def test_an_adam_state_continued(x64, part):
    params = jax.tree.map(jnp.asarray, initial_params(0))
    adam = optax.adam(LEARNING_RATE, B1, B2, EPS)
    state = adam.init(params)
    for t in range(5):
        updates, state = jax.jit(adam.update)(jax.grad(loss_fn)(params, *minibatch(0, t)), state, params)
        params = optax.apply_updates(params, updates)

    training = fobt.Training(fobt.forward_backtrack(LEARNING_RATE, QUANTIZER, b1=B1, b2=B2, eps=EPS))
    step = jax.jit(training.step(loss_fn))
    if part == "state":
        with pytest.raises(ValueError, match=r"Its part state\[0\] may be meant"):
            step(params, state, *minibatch(0, 5))
        return
    state, projections = state[0], {"W": PROJECT, "V": PROJECT}
    expected, moments = (
        jax.tree.map(np.float64, params),
        {"count": 5} | {name: jax.tree.map(np.float64, getattr(state, name)) for name in ("mu", "nu")},
    )
    for t in range(5, 9):
        x, y = minibatch(0, t)
        params, state, _ = step(params, state, x, y)
        expected, moments = reference.forward_backtrack_step(
            expected,
            moments,
            numpy_grads(reference.quantized(expected, moments, projections), x, y),
            functools.partial(numpy_grads, x=x, y=y),
            LEARNING_RATE,
            0.6,
            projections,
            B1,
            B2,
            EPS,
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), params, expected)
    assert state.count == 9
