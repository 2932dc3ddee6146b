"""fobt.linen in the usual training loop of Flax Linen: the numbers of fobt.Training on the same trees."""

from typing import Any

import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.training import train_state

import fobt

QUANTIZER = fobt.binary()
METHOD = fobt.forward_backtrack(0.05, QUANTIZER, a=0.6)
OPTIMIZERS = {
    "two gradients": METHOD,
    "loss-aware": optax.adam(0.05),
    "optimistic": fobt.optimistic(METHOD),
    "annealed": fobt.anneal(optax.adam(0.05), QUANTIZER, optax.linear_schedule(1.0, 0.0, 3)),
}
X, Y = jax.random.normal(jax.random.key(1), (16, 5)), jax.random.normal(jax.random.key(2), (16, 2))


class Network(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(nn.Dense(8)(x)))
        return nn.Dense(2)(nn.Dropout(0.5, deterministic=not train)(x))


class TrainState(fobt.linen.TrainState):
    batch_stats: Any


def make_state(tx):
    model = Network()
    variables = model.init(jax.random.key(0), X, train=False)
    return TrainState.create(
        apply_fn=model.apply,
        params=variables["params"],
        tx=tx,
        quantizer=QUANTIZER,
        batch_stats=variables["batch_stats"],
    )


@jax.jit
def train_step(state, x, y):
    def loss_fn(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        key = jax.random.fold_in(jax.random.key(3), state.step)
        out, updated = state.apply_fn(variables, x, train=True, mutable=["batch_stats"], rngs={"dropout": key})
        return jnp.mean((out - y) ** 2), updated["batch_stats"]

    (loss, batch_stats), grads = fobt.linen.value_and_grad(loss_fn, has_aux=True)(state)
    return state.apply_gradients(grads=grads, batch_stats=batch_stats), loss


def by_hand(tx, steps):
    """Losses, params, state and batch statistics of the functional form."""
    variables = Network().init(jax.random.key(0), X, train=False)
    params, batch_stats = variables["params"], variables["batch_stats"]

    def loss_fn(weights, batch_stats, key):
        variables = {"params": weights, "batch_stats": batch_stats}
        out, updated = Network().apply(variables, X, train=True, mutable=["batch_stats"], rngs={"dropout": key})
        return jnp.mean((out - Y) ** 2), updated["batch_stats"]

    training = fobt.Training(tx, QUANTIZER)
    step, state, losses = jax.jit(training.step(loss_fn, has_aux=True)), training.init(params), []
    for i in range(steps):
        params, state, (loss, batch_stats) = step(params, state, batch_stats, jax.random.fold_in(jax.random.key(3), i))
        losses.append(loss)
    return losses, params, state, batch_stats, training.weights(params, state)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_loop_has_the_numbers_of_the_functional_form(name):
    state, losses = make_state(OPTIMIZERS[name]), []
    for _ in range(4):
        state, loss = train_step(state, X, Y)
        losses.append(loss)
    got = losses, state.params, state.opt_state, state.batch_stats, state.weights()
    expected = by_hand(OPTIMIZERS[name], 4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), got, expected)
    kernel = state.quantize()["Dense_0"]["kernel"]
    np.testing.assert_allclose(kernel.dequantize(), expected[-1]["Dense_0"]["kernel"], rtol=1e-4)
    assert state.step == 4


def test_keywords_of_the_update():
    """A plain step of the method is Adam's."""

    def loss_fn(params):
        return optax.tree.norm(params, squared=True)

    after = []
    for tx, update_args in ((METHOD, {"two_stage": False}), (optax.adam(0.05), None)):
        state = make_state(tx)
        _, grads = fobt.linen.value_and_grad(loss_fn)(state)
        after.append(state.apply_gradients(grads=grads, update_args=update_args).params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), *after)


def test_serialization_of_flax():
    state, _ = train_step(make_state(METHOD), X, Y)
    restored = flax.serialization.from_bytes(make_state(METHOD), flax.serialization.to_bytes(state))
    jax.tree.map(np.testing.assert_array_equal, jax.tree.leaves(restored), jax.tree.leaves(state))
    train_step(restored, X, Y)


def test_what_users_write_instead():
    state = make_state(optax.adam(0.05))

    def loss_fn(params):
        return optax.tree.norm(params, squared=True)

    with pytest.raises(ValueError, match=r"grads must be what fobt\.linen\.value_and_grad\(loss_fn\).*got dict"):
        state.apply_gradients(grads=jax.grad(loss_fn)(state.params))
    plain = train_state.TrainState.create(apply_fn=state.apply_fn, params=state.params, tx=METHOD)
    with pytest.raises(ValueError, match=r"state must be a fobt\.linen\.TrainState, got TrainState"):
        fobt.linen.value_and_grad(loss_fn)(plain)
    with pytest.raises(ValueError, match=r"grad_fn must be .*in a loop of Flax, fobt\.nnx and fobt\.linen pass it on"):
        plain.apply_gradients(grads=state.params)
    with pytest.raises(ValueError, match="quantizer must be given"):
        TrainState.create(apply_fn=None, params=state.params, tx=optax.adam(0.05), batch_stats=None)
