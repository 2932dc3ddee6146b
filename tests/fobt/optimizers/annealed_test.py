"""Training at weights that harden."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fobt

STEPS = 20
TARGET = np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32)
PARAMS = {"kernel": 0.3 * TARGET[::-1], "bias": np.zeros(4, np.float32)}


def loss_fn(weights):
    return jnp.sum((weights["kernel"] - TARGET) ** 2) + jnp.sum((weights["bias"] - 1.0) ** 2)


def slopes(step):
    return optax.linear_schedule(1.0, 0.0, 15)(step)


def test_steps_are_those_of_the_optimizer_at_annealed_weights_whose_slope_counts_updates():
    """Written out with a slope from NumPy: 1, 14/15, ..., 0 from the 16th step on."""
    adam, quantizer = optax.adam(0.05, b1=0.6, b2=0.9), fobt.ternary()
    params, state = PARAMS, adam.init(PARAMS)
    training = fobt.Training(fobt.anneal(adam, quantizer, slopes))
    step = jax.jit(training.step(loss_fn))
    annealed, annealed_state = PARAMS, training.init(PARAMS)
    for number in range(STEPS):
        weights = fobt.annealed_params(params, state, quantizer, max(0.0, 1 - number / 15))
        updates, state = adam.update(jax.grad(loss_fn)(weights), state, params)
        params = optax.apply_updates(params, updates)
        annealed, annealed_state, loss = step(annealed, annealed_state)
        np.testing.assert_allclose(loss, loss_fn(weights), rtol=1e-4)
        for leaf in PARAMS:
            np.testing.assert_allclose(annealed[leaf], params[leaf], rtol=1e-4, atol=1e-5)
    assert annealed_state.inverse_slope == 0


def test_it_begins_as_full_precision_and_ends_as_loss_aware_training():
    adam = optax.adam(0.05)
    tx = fobt.anneal(adam, fobt.binary(), slopes)
    state = tx.init(PARAMS)
    jax.tree.map(np.testing.assert_array_equal, fobt.annealed_params(PARAMS, state, fobt.binary()), PARAMS)
    hard = state._replace(inverse_slope=jnp.float32(0))
    jax.tree.map(
        np.testing.assert_array_equal,
        fobt.annealed_params(PARAMS, hard, fobt.binary()),
        fobt.quantized_params(PARAMS, hard, fobt.binary()),
    )


def test_instruments_around_it_keep_where_gradients_are_taken():
    tx = fobt.oscillations.track_oscillations(fobt.anneal(optax.adam(0.05), fobt.binary(), slopes), fobt.binary())
    training = fobt.Training(tx)
    assert training.gradients_at == "annealed"
    state = training.init(PARAMS)
    _, grads, grad_fn = training.value_and_grad(loss_fn)(PARAMS, state)
    assert grad_fn is None
    # At ρ = 1 the gradient is that of the latents.
    np.testing.assert_allclose(grads["kernel"], 2 * (PARAMS["kernel"] - TARGET), rtol=1e-5)


def test_misuse_is_refused():
    tx = fobt.anneal(optax.adam(0.05), fobt.binary(), slopes)
    state = tx.init(PARAMS)
    _, grads, grad_fn = fobt.value_and_grad(loss_fn, fobt.binary())(PARAMS, state)
    with pytest.raises(ValueError, match=r"grads must be taken at fobt\.annealed_params"):
        tx.update(grads, state, PARAMS, grad_fn=grad_fn)
    with pytest.raises(ValueError, match=r"inverse_slope must be a function of the number of updates.*got 0\.5"):
        fobt.anneal(optax.adam(0.05), fobt.binary(), 0.5)
    with pytest.raises(ValueError, match=r"inverse_slope must be given where state is none of fobt\.anneal"):
        fobt.annealed_params(PARAMS, optax.adam(0.05).init(PARAMS), fobt.binary())
