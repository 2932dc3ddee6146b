"""Re-estimated batch statistics against NumPy, for Flax NNX and Linen and for other running averages."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import fobt

BATCHES = [np.random.default_rng(i).normal(i, 1 + i, size=(16, 3)).astype(np.float32) for i in range(4)]
MEAN = np.mean([batch.mean(0) for batch in BATCHES], axis=0)
VARIANCE = np.mean([batch.var(0) for batch in BATCHES], axis=0)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 0.99])
def test_nnx(momentum):
    model = nnx.BatchNorm(3, momentum=momentum, rngs=nnx.Rngs(0))
    model(7 * BATCHES[0] + 5)  # running averages that must not matter
    graph, weights, batch_stats, rest = nnx.split(model, nnx.Param, nnx.BatchStat, ...)

    @jax.jit
    def update_fn(batch_stats, images):
        model = nnx.merge(graph, weights, batch_stats, rest)
        model(images, use_running_average=False)
        return nnx.as_pure(nnx.state(model, nnx.BatchStat))

    got = fobt.reestimate_batch_stats(update_fn, nnx.as_pure(batch_stats), iter(BATCHES))
    np.testing.assert_allclose(got["mean"], MEAN, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(got["var"], VARIANCE, rtol=1e-4, atol=1e-4)
    assert update_fn._cache_size() == 1


@pytest.mark.parametrize("momentum", [0.5, 0.99])
def test_linen(momentum):
    model = nn.BatchNorm(use_running_average=False, momentum=momentum)
    variables = model.init(jax.random.key(0), BATCHES[0])

    def update_fn(batch_stats, images):
        inputs = {"params": variables["params"], "batch_stats": batch_stats}
        return model.apply(inputs, images, mutable=["batch_stats"])[1]["batch_stats"]

    got = fobt.reestimate_batch_stats(update_fn, variables["batch_stats"], BATCHES)
    np.testing.assert_allclose(got["mean"], MEAN, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(got["var"], VARIANCE, rtol=1e-4, atol=1e-4)


def test_every_leaf_has_its_own_rate_and_dtype():
    stats = {"slow": jnp.array([100.0], jnp.bfloat16), "fast": jnp.array(-3.0)}

    def update_fn(stats, batch):
        return {"slow": 0.75 * stats["slow"] + 0.25 * batch, "fast": 0.5 * stats["fast"] + 0.5 * batch**2}

    got = fobt.reestimate_batch_stats(update_fn, stats, [jnp.array(1.0), jnp.array(3.0)])
    assert got["slow"].dtype == jnp.bfloat16
    np.testing.assert_allclose(got["slow"].astype(float), [2.0])
    np.testing.assert_allclose(got["fast"], 5.0, rtol=1e-6)


def test_no_batches_is_an_error():
    with pytest.raises(ValueError, match="batches must not be empty"):
        fobt.reestimate_batch_stats(lambda stats, batch: stats, {"mean": jnp.ones(2)}, [])


@pytest.mark.parametrize("rate", [1.0, 1.5, -0.5])
def test_what_is_no_running_average_is_an_error(rate):
    with pytest.raises(ValueError, match=rf"m in \[0, 1\), got m = {rate:g} at 'mean'"):
        fobt.reestimate_batch_stats(lambda s, b: {"mean": rate * s["mean"] + b}, {"mean": jnp.ones(2)}, [jnp.ones(2)])


def test_other_leaves_are_an_error():
    with pytest.raises(ValueError, match="what update_fn returns"):
        fobt.reestimate_batch_stats(lambda s, b: {}, {"mean": jnp.ones(2)}, [jnp.ones(2)])
