"""The modules that hold ranges of activations: averages in NumPy, the same in Linen and NNX, in usual loops."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import fobt

BATCHES = np.random.default_rng(0).normal(0, 1, (4, 16, 3)).astype(np.float32) * np.array([1, 3, 2, 1])[:, None, None]
Y = jnp.asarray(BATCHES[0] @ [[1.0], [-2.0], [0.5]], jnp.float32)


class LinenNetwork(nn.Module):
    learned: bool = False

    @nn.compact
    def __call__(self, x, train):
        x = fobt.linen.FakeQuantize(learned=self.learned, decay=0.6, name="first")(x)
        x = nn.BatchNorm(use_running_average=not train, name="norm")(nn.Dense(4)(x))
        return nn.Dense(1)(fobt.linen.FakeQuantize(learned=self.learned, decay=0.6, name="second")(nn.relu(x)))


class NNXNetwork(nnx.Module):
    def __init__(self, learned=False):
        self.first = fobt.nnx.FakeQuantize(learned=learned, decay=0.6)
        self.dense = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
        self.norm = nnx.BatchNorm(4, rngs=nnx.Rngs(0))
        self.second = fobt.nnx.FakeQuantize(learned=learned, decay=0.6)
        self.last = nnx.Linear(4, 1, rngs=nnx.Rngs(1))

    def __call__(self, x):
        return self.last(self.second(nnx.relu(self.norm(self.dense(self.first(x))))))


def averaged(decay):
    range = np.zeros(2)
    for t, batch in enumerate(BATCHES):
        share = min(decay, t / (t + 1))
        range = share * range + (1 - share) * np.array([min(batch.min(), 0), max(batch.max(), 0)])
    return range


def test_linen_averages_in_training_and_is_frozen_in_evaluation():
    model = LinenNetwork()
    variables = model.init(jax.random.key(0), BATCHES[0], train=True)
    np.testing.assert_array_equal(variables["batch_stats"]["first"]["range"], [0, 0])

    @jax.jit
    def train(variables, x):
        return model.apply(variables, x, train=True, mutable=["batch_stats"])

    for batch in BATCHES:
        _, updated = train(variables, batch)
        variables = {**variables, **updated}
    first = variables["batch_stats"]["first"]
    np.testing.assert_allclose(first["range"], averaged(0.6), rtol=1e-6)
    assert first["count"] == 4
    x = jnp.array([[100.0, -100.0, 0.1]])
    y = model.apply(variables, x, train=False)
    expected = model.apply(variables, fobt.fake_quantize(x, first["range"]), train=False)
    np.testing.assert_array_equal(y, expected)


def test_nnx_averages_in_training_and_is_frozen_in_evaluation():
    model = NNXNetwork()
    train = nnx.jit(lambda model, x: model(x))
    for batch in BATCHES:
        train(model, batch)
    np.testing.assert_allclose(model.first.range[...], averaged(0.6), rtol=1e-6)
    model.eval()
    before = jax.tree.leaves(nnx.state(model))
    train(model, 100 * BATCHES[0])
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.leaves(nnx.state(model)))


def test_batches_calibrate_ranges_and_nothing_else():
    model = LinenNetwork()
    before = model.init(jax.random.key(0), BATCHES[0], train=True)
    after = fobt.linen.calibrate_ranges(
        lambda variables, x, mutable: model.apply(variables, x, train=False, mutable=mutable), before, BATCHES
    )
    np.testing.assert_allclose(after["batch_stats"]["first"]["range"], averaged(0.6), rtol=1e-6)
    assert np.all(after["batch_stats"]["second"]["range"] >= 0)
    for same in (("batch_stats", "norm"), ("params", "Dense_0")):
        jax.tree.map(np.testing.assert_array_equal, before[same[0]][same[1]], after[same[0]][same[1]])
    network = NNXNetwork()
    network.eval()
    mean = network.norm.mean[...]
    fobt.nnx.calibrate_ranges(network, BATCHES)
    np.testing.assert_allclose(network.first.range[...], averaged(0.6), rtol=1e-6)
    np.testing.assert_array_equal(network.norm.mean[...], mean)
    assert not network.first.is_calibrating


@pytest.mark.parametrize("learned", [False, True])
def test_nnx_trains_with_fobt(learned):
    model = NNXNetwork(learned)
    if learned:
        fobt.nnx.calibrate_ranges(model, BATCHES)
    start = model.first.range[...]
    optimizer = fobt.nnx.Optimizer(model, fobt.forward_backtrack(0.03, fobt.ternary()), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        def loss_fn(model):
            return jnp.mean((model(BATCHES[0]) - Y) ** 2)

        loss, grads = fobt.nnx.value_and_grad(loss_fn)(model, optimizer)
        optimizer.update(model, grads)
        return loss

    losses = [step(model, optimizer) for _ in range(30)]
    assert losses[-1] < 0.5 * losses[0]
    assert learned == bool(jnp.any(model.first.range[...] != start) and isinstance(model.first.range, nnx.Param))
    assert model.second.range[0] == 0


def test_linen_learns_ranges():
    model = LinenNetwork(learned=True)
    variables = model.init(jax.random.key(0), BATCHES[0], train=True)
    evaluate = lambda variables, x, mutable: model.apply(variables, x, train=False, mutable=mutable)  # noqa: E731
    variables = fobt.linen.calibrate_ranges(evaluate, variables, BATCHES)
    np.testing.assert_allclose(variables["params"]["first"]["range"], averaged(0.6), rtol=1e-6)
    training = fobt.Training(optax.adam(0.03), fobt.ternary())

    def loss_fn(params, batch_stats):
        y, updated = model.apply(
            {"params": params, "batch_stats": batch_stats}, BATCHES[0], train=True, mutable=["batch_stats"]
        )
        return jnp.mean((y - Y) ** 2), updated["batch_stats"]

    step = jax.jit(training.step(loss_fn, has_aux=True))
    params, batch_stats = variables["params"], variables["batch_stats"]
    state = training.init(params)
    for _ in range(30):
        params, state, (loss, batch_stats) = step(params, state, batch_stats)
    assert np.all(params["first"]["range"] != variables["params"]["first"]["range"])
    assert loss < 1
    assert batch_stats["first"]["count"] == 4  # of the calibration
