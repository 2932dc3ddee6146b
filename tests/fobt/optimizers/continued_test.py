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


def method(optimizer=LEARNING_RATE, **kwargs):
    return fobt.forward_backtrack(optimizer, QUANTIZER, **kwargs)


ADAM = optax.adam(LEARNING_RATE, B1, B2, EPS)
CONTINUED = {
    "the method, with its part of the state": (method(b1=B1, b2=B2, eps=EPS), lambda state: state[0]),
    "the method around Adam, with the state": (method(ADAM), lambda state: state),
}


def test_the_part_that_is_meant_is_named():
    params = jax.tree.map(jnp.asarray, initial_params(0))
    with pytest.raises(ValueError, match=r"Its part state\[0\] may be meant"):
        method().update(params, ADAM.init(params), params, grad_fn=lambda weights: weights)


@pytest.mark.parametrize("name", CONTINUED)
def test_an_adam_state_continued(x64, name):
    params = jax.tree.map(jnp.asarray, initial_params(0))
    state = ADAM.init(params)
    for t in range(5):
        updates, state = jax.jit(ADAM.update)(jax.grad(loss_fn)(params, *minibatch(0, t)), state, params)
        params = optax.apply_updates(params, updates)

    tx, part = CONTINUED[name]
    step = jax.jit(fobt.Training(tx).step(loss_fn))
    projections = {"W": PROJECT, "V": PROJECT}
    expected, moments = (
        jax.tree.map(np.float64, params),
        {"count": 5} | {moment: jax.tree.map(np.float64, getattr(state[0], moment)) for moment in ("mu", "nu")},
    )
    state = part(state)
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
    assert optax.tree.get(state, "count") == 9
