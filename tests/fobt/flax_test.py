"""Flax models with batch statistics and dropout: only the first pass leaves a trace, and both drop the same units."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import fobt

QUANTIZER = fobt.binary()
TX = fobt.forward_backtrack(0.05, QUANTIZER)


def make_batch():
    keys = jax.random.split(jax.random.key(1), 2)
    return jax.random.normal(keys[0], (16, 5)), jax.random.normal(keys[1], (16, 2))


# --- NNX -----------------------------------------------------------------------------------------------------------


class NnxModel(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(5, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.second = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x):
        return self.second(self.dropout(nnx.relu(self.norm(self.first(x)))))


def split(model):
    """The pattern: params, and everything else as pure arrays that a loss may close over and give back."""
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    return graph, params, nnx.as_pure(rest)


def make_loss_fn(graph):
    def loss_fn(weights, rest, x, y):
        model = nnx.merge(graph, weights, rest)
        loss = jnp.mean((model(x) - y) ** 2)
        return loss, nnx.as_pure(nnx.state(model, nnx.Not(nnx.Param)))

    return loss_fn


def nnx_single_pass(model, params, state):
    """One pass of the model at the quantized weights, and nothing else."""
    graph, _, rest = split(model)
    weights = fobt.quantized_params(params, state, QUANTIZER)
    return make_loss_fn(graph)(weights, rest, *make_batch())


@pytest.mark.slow
@pytest.mark.parametrize("two_stage", [True, False])
def test_nnx_first_pass_alone_changes_the_rest(two_stage):
    """Batch statistics and the counts of random streams after a step are those of a single forward pass."""
    model = NnxModel(nnx.Rngs(0))
    graph, params, rest = split(model)
    state = TX.init(params)
    before = rest

    @jax.jit
    def step(params, state, rest):
        f = fobt.value_and_grad(make_loss_fn(graph), QUANTIZER, has_aux=True)
        (loss, rest), grads, grad_fn = f(params, state, rest, *make_batch())
        updates, state = TX.update(grads, state, params, grad_fn=grad_fn, two_stage=two_stage)
        return optax.apply_updates(params, updates), state, rest, loss

    new_params, new_state, rest, loss = step(params, state, rest)
    expected_loss, expected_rest = nnx_single_pass(model, params, state)
    chex.assert_trees_all_close(loss, expected_loss, rtol=1e-5)
    chex.assert_trees_all_close(drop_keys(rest), drop_keys(expected_rest), rtol=1e-5)
    assert not np.allclose(rest["norm"]["mean"], before["norm"]["mean"])
    assert new_state.count == 1
    trained = nnx.merge(graph, new_params, rest)
    nnx.update(model, nnx.state(trained))
    np.testing.assert_array_equal(model.norm.mean[...], rest["norm"]["mean"])
    chex.assert_trees_all_equal_structs(new_params, params)


def drop_keys(tree):
    """Random keys as the numbers that they are made of."""
    is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)  # noqa: E731
    return jax.tree.map(lambda x: jax.random.key_data(x) if is_key(x) else x, nnx.to_pure_dict(tree))


@pytest.mark.slow
def test_nnx_optimizer():
    """nnx.Optimizer passes grad_fn and two_stage on, and does what a loop of one's own does."""
    model, batch = NnxModel(nnx.Rngs(0)), make_batch()
    optimizer = nnx.Optimizer(model, TX, wrt=nnx.Param)
    graph, params, rest = split(model)
    state = TX.init(params)
    f = fobt.value_and_grad(make_loss_fn(graph), QUANTIZER, has_aux=True)
    for two_stage in (True, False):
        (_, new_rest), grads, grad_fn = f(params, state, rest, *batch)
        updates, state = TX.update(grads, state, params, grad_fn=grad_fn, two_stage=two_stage)
        params, rest = optax.apply_updates(params, updates), new_rest

        own_params, own_rest = split(model)[1:]
        (_, own_rest), grads, grad_fn = f(own_params, nnx.as_pure(optimizer.opt_state), own_rest, *batch)
        optimizer.update(model, grads, grad_fn=grad_fn, two_stage=two_stage)
        nnx.update(model, own_rest)
    chex.assert_trees_all_close(jax.tree.leaves(split(model)[1]), jax.tree.leaves(params), rtol=1e-5)
    moments = nnx.as_pure(optimizer.opt_state).nu
    chex.assert_trees_all_close(jax.tree.leaves(moments), jax.tree.leaves(state.nu), rtol=1e-5)


@pytest.mark.slow
def test_nnx_optimizer_under_nnx_jit():
    model, batch = NnxModel(nnx.Rngs(0)), make_batch()
    optimizer = nnx.Optimizer(model, TX, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, x, y):
        graph, params, rest = split(model)
        f = fobt.value_and_grad(make_loss_fn(graph), QUANTIZER, has_aux=True)
        (loss, rest), grads, grad_fn = f(params, nnx.as_pure(optimizer.opt_state), rest, x, y)
        optimizer.update(model, grads, grad_fn=grad_fn)
        nnx.update(model, rest)
        return loss

    losses = [float(step(model, optimizer, *batch)) for _ in range(30)]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    assert optimizer.opt_state.count[...] == 30


# --- Linen ---------------------------------------------------------------------------------------------------------


class LinenModel(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(nn.Dense(8)(x)))
        return nn.Dense(2)(nn.Dropout(0.5, deterministic=not train)(x))


def linen_loss_fn(weights, statistics, key, x, y):
    variables = {"params": weights, "batch_stats": statistics}
    out, updated = LinenModel().apply(variables, x, True, rngs={"dropout": key}, mutable=["batch_stats"])
    return jnp.mean((out - y) ** 2), updated["batch_stats"]


@pytest.mark.slow
@pytest.mark.parametrize("two_stage", [True, False])
def test_linen_first_pass_alone_changes_batch_statistics(two_stage):
    batch, key = make_batch(), jax.random.key(3)
    variables = LinenModel().init(jax.random.key(0), batch[0], False)
    params, statistics = variables["params"], variables["batch_stats"]
    state = TX.init(params)

    @jax.jit
    def step(params, state, statistics, key):
        f = fobt.value_and_grad(linen_loss_fn, QUANTIZER, has_aux=True)
        (loss, statistics), grads, grad_fn = f(params, state, statistics, key, *batch)
        updates, state = TX.update(grads, state, params, grad_fn=grad_fn, two_stage=two_stage)
        return optax.apply_updates(params, updates), state, statistics, loss

    weights = fobt.quantized_params(params, state, QUANTIZER)
    expected_loss, expected = linen_loss_fn(weights, statistics, key, *batch)
    new_params, _, got, loss = step(params, state, statistics, key)
    chex.assert_trees_all_close((got, loss), (expected, expected_loss), rtol=1e-5, atol=1e-7)
    chex.assert_trees_all_equal_shapes_and_dtypes(new_params, params)
    assert not np.allclose(got["BatchNorm_0"]["mean"], statistics["BatchNorm_0"]["mean"])


# --- Dropout masks -------------------------------------------------------------------------------------------------


def linen_mask_loss(weights, key):
    """Linear in the weights, so that the gradient is the dropout mask itself, whatever the weights."""
    return jnp.sum(nn.Dropout(0.5, deterministic=False).apply({}, weights["kernel"], rngs={"dropout": key}))


def nnx_mask_loss(weights, key):
    return jnp.sum(nnx.Dropout(0.5, rngs=nnx.Rngs(dropout=key))(weights["kernel"]))


@pytest.mark.slow
@pytest.mark.parametrize("loss_fn", [linen_mask_loss, nnx_mask_loss])
def test_both_passes_drop_the_same_units(loss_fn):
    params = {"kernel": jax.random.normal(jax.random.key(0), (16, 16))}
    state = TX.init(params)
    masks = []
    for seed in range(2):
        _, grads, grad_fn = fobt.value_and_grad(loss_fn, QUANTIZER)(params, state, jax.random.key(seed))
        trial = []
        updates, state = TX.update(
            grads, state, params, grad_fn=lambda weights, f=grad_fn, trial=trial: trial.append(f(weights)) or trial[-1]
        )
        params = optax.apply_updates(params, updates)
        chex.assert_trees_all_equal(grads, trial[0])
        assert set(np.unique(grads["kernel"])) == {0.0, 2.0}
        masks.append(grads["kernel"])
    assert not np.array_equal(*masks)
