"""The second moment of a new state from minibatches, against its definition in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fobt

B2 = 0.9
PARAMS = {"kernel": jax.random.normal(jax.random.key(0), (6, 4)), "bias": jnp.ones(4)}
X, Y = np.random.default_rng(0).normal(size=(2, 3, 5, 6)).astype(np.float32)
BATCHES = [(x, y[:, :4]) for x, y in zip(X, Y, strict=True)]


def loss_fn(weights, x, y):
    return jnp.sum((x @ weights["kernel"] + weights["bias"][None] - y) ** 2)


def squared_gradients(limit=np.inf):
    """The mean of the squared gradients at PARAMS, each clipped to a norm."""
    kernel, bias = np.asarray(PARAMS["kernel"], float), np.asarray(PARAMS["bias"], float)
    squares = []
    for x, y in BATCHES:
        error = 2 * (x @ kernel + bias - y)
        grads = {"kernel": x.T @ error, "bias": error.sum(0)}
        norm = np.sqrt(sum(np.sum(grad**2) for grad in grads.values()))
        squares.append({name: (grad * min(1, limit / norm)) ** 2 for name, grad in grads.items()})
    return {name: np.mean([square[name] for square in squares], axis=0) for name in PARAMS}


QUANTIZER = fobt.binary()
OPTIMIZERS = {
    "adam": optax.adam(0.1, b2=B2),
    "rmsprop": optax.rmsprop(0.1, decay=B2),
    "with a schedule": optax.adamw(optax.linear_schedule(0.1, 0.0, 10), b2=B2),
    "injected": optax.inject_hyperparams(optax.adam)(0.1, b2=B2),
    "forward_backtrack": fobt.forward_backtrack(0.1, QUANTIZER, b2=B2),
    "forward_backtrack around adamw": fobt.forward_backtrack(optax.adamw(0.1, b2=B2), QUANTIZER),
    "anneal": fobt.anneal(optax.adam(0.1, b2=B2), QUANTIZER, optax.cosine_decay_schedule(1.0, 10)),
    "optimistic": fobt.optimistic(fobt.forward_backtrack(0.1, QUANTIZER, b2=B2)),
    "clipped": optax.chain(optax.clip_by_global_norm(1.5), optax.adam(0.1, b2=B2)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_mean_of_squared_gradients(name):
    optimizer = OPTIMIZERS[name]
    state = optimizer.init(PARAMS)
    calibrated = fobt.calibrate(optimizer, loss_fn, PARAMS, state, BATCHES)
    expected = squared_gradients(1.5 if name == "clipped" else np.inf)
    (moment,) = [value for path, value in optax.tree_utils.tree_get_all_with_path(calibrated, "nu")]
    for leaf, square in expected.items():
        np.testing.assert_allclose(moment[leaf], (1 - B2) * square, rtol=1e-4)
    # Everything else is as before.
    zeros = jax.tree.map(jnp.zeros_like, moment)
    before = optax.tree_utils.tree_set(calibrated, nu=zeros)
    jax.tree.map(np.testing.assert_array_equal, before, state)


def test_a_state_that_has_a_second_moment_takes_one_more_gradient():
    optimizer = OPTIMIZERS["adam"]
    once = fobt.calibrate(optimizer, loss_fn, PARAMS, optimizer.init(PARAMS), BATCHES)
    twice = fobt.calibrate(optimizer, loss_fn, PARAMS, once, iter(BATCHES))
    for leaf, square in squared_gradients().items():
        np.testing.assert_allclose(twice[0].nu[leaf], (1 + B2) * (1 - B2) * square, rtol=1e-4)


def test_the_first_projection_is_weighted():
    training = fobt.Training(optax.adam(0.1), QUANTIZER)
    state = fobt.calibrate(training.optimizer, loss_fn, PARAMS, training.init(PARAMS), BATCHES)
    curvature = np.sqrt(squared_gradients()["kernel"])
    expected = np.sum(curvature * np.abs(PARAMS["kernel"])) / np.sum(curvature)
    np.testing.assert_allclose(training.quantize(PARAMS, state)["kernel"].scale, expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("optimizer", "batches", "message"),
    [
        (optax.adam(0.1), [], "batches must hold at least one minibatch, got none"),
        (optax.adam(0.1), [X[0]], "batches must hold tuples .* got a ndarray"),
        (optax.sgd(0.1), BATCHES, "state must hold a second moment `nu`.* got one of type tuple"),
        (optax.MultiSteps(optax.adam(0.1), 4), BATCHES, "as under optax.MultiSteps"),
    ],
)
def test_errors(optimizer, batches, message):
    with pytest.raises(ValueError, match=message):
        fobt.calibrate(optimizer, loss_fn, PARAMS, optimizer.init(PARAMS), batches)
