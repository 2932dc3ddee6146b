"""Oscillations of single weights against definitions written out and hand-made sequences; which are followed."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oscillation_cases import MOMENTUM, followed, metrics, signs
from toy_problem import toy_loss, toy_preconditioner

import fobt
from fobt._src.oscillations.followed import strides


def expected_oscillations(codes, latents):
    """Amplitude and frequency of one weight, from its whole history."""
    changes = [t for t in range(1, len(codes)) if codes[t] != codes[t - 1]]
    directions = [np.sign(int(codes[t]) - int(codes[t - 1])) for t in changes]
    extremes = []
    for (start, end), direction in zip(itertools.pairwise([*changes, len(codes)]), directions, strict=True):
        extremes.append(max(latents[start:end], key=lambda w, direction=direction: direction * w))
    amplitude, frequency = 0.0, 0.0
    for i in range(1, len(changes)):
        if directions[i] != directions[i - 1]:
            amplitude = max(amplitude, directions[i] * (extremes[i] - extremes[i - 1]))
            frequency += MOMENTUM * (1 - MOMENTUM) ** (len(codes) - 1 - changes[i])
    return amplitude, frequency


@pytest.mark.parametrize("levels", [(-1, 1), (-1, 0, 1), tuple(range(-7, 8)), (-127, 127)], ids=len)
def test_any_codes_and_latents_as_defined(levels):
    """Latents independent of codes are the hardest case; with a scale that moves they are nearly so."""
    rng = np.random.default_rng(len(levels))
    steps, shape = 60, (5, 8)
    stay = rng.random((steps, *shape)) < 0.6
    codes = rng.choice(levels, (steps, *shape))
    for t in range(1, steps):
        codes[t] = np.where(stay[t], codes[t - 1], codes[t])
    latents = rng.normal(size=(steps, *shape)).cumsum(0).astype(np.float32)

    state = followed(codes, latents)
    got = state.leaves["latents"].followed
    for index in np.ndindex(shape):
        amplitude, frequency = expected_oscillations(codes[:, *index], latents[:, *index])
        np.testing.assert_allclose(got.amplitude[index], amplitude, rtol=1e-6)
        np.testing.assert_allclose(got.frequency[index], frequency, rtol=1e-5)
    total = metrics(state)["total"]
    np.testing.assert_allclose(total["flip_share"], np.mean(codes[-1] != codes[-2]), rtol=1e-6)
    np.testing.assert_allclose(total["largest_amplitude"], np.max(got.amplitude))
    np.testing.assert_allclose(total["oscillation_frequency"], np.mean(got.frequency), rtol=1e-6)


@pytest.mark.parametrize(
    ("codes", "latents", "oscillations", "amplitude"),
    [
        ([1, 1, 1, 1], [1, 5, -5, 2], 0, 0),
        ([-1, 1, 1, 1], [-3, 2, 4, 1], 0, 0),  # one change is no oscillation
        ([-2, -1, 0, 1], [-2, -1, 0, 1], 0, 0),  # nor is a drift over several levels
        ([-1, 1, -1, 1, -1], [-2, 3, -2, 3, -2], 3, 5),  # between +p and -q: p + q
        ([-1, 1, 1, 1, -1, -1], [-1, 1, 4, 2, -1, -3], 1, 7),  # from the extreme, and growing after the oscillation
        ([0, 1, 1, 0, -1, -1], [0, 1, 2, 0, -5, -9], 1, 2),  # until the next change, to whatever side
        ([1, -1, 1, 1, 1, 0], [1, -1, 1, 8, 0, 0], 2, 9),
    ],
)
def test_by_hand(codes, latents, oscillations, amplitude):
    column = np.reshape(codes, (-1, 1, 1)), np.reshape(latents, (-1, 1, 1))
    leaf = followed(*column).leaves["latents"].followed
    assert leaf.amplitude == amplitude
    assert (leaf.frequency > 0) == (oscillations > 0)
    np.testing.assert_allclose(expected_oscillations(codes, latents)[0], amplitude)


@pytest.mark.slow
@pytest.mark.parametrize(("w", "c"), [(0.3, 1.0), (-2.0, 5.0)])
@pytest.mark.parametrize(("two_stage", "amplitude_of_w"), [(False, 2), (True, 0)])
def test_the_toy_problem(w, c, two_stage, amplitude_of_w):
    """Loss-aware quantization alternates, w ← -w, in every step; the method, w ← 0.6 w, never changes a code."""
    bare = fobt.forward_backtrack(1.0, fobt.binary(), a=0.6, preconditioner=toy_preconditioner(c))
    # The state of the toy's optimizer has no second moment.
    tx = fobt.oscillations.track_oscillations(
        bare, lambda params: fobt.quantize(params, None, fobt.binary()).codes, decay=1 - MOMENTUM
    )
    params, flips, steps = jnp.full((1, 1), w), [], 20
    state = tx.init(params)
    for _ in range(steps):
        _, grads, grad_fn = fobt.value_and_grad(toy_loss, fobt.binary())(params, None, c)
        updates, state = tx.update(grads, state, params, grad_fn=grad_fn, two_stage=two_stage)
        params = optax.apply_updates(params, updates)
        flips.append(int(metrics(state)["total"]["flip_share"]))
    total = metrics(state)["total"]
    np.testing.assert_allclose(total["largest_amplitude"], amplitude_of_w * abs(w), rtol=1e-5)
    assert flips == [0] + [0 if two_stage else 1] * (steps - 1)
    oscillating_steps = 0 if two_stage else steps - 2  # all but the first step and the first change
    np.testing.assert_allclose(total["oscillation_frequency"], 1 - (1 - MOMENTUM) ** oscillating_steps, rtol=1e-5)
    np.testing.assert_allclose(total["gradient_cosine"], 1 if two_stage else -1, rtol=1e-6)
    np.testing.assert_equal(float(total["trial_gradient_cosine"]), -1.0 if two_stage else np.nan)


# --- Sampling ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(7,), (3, 3, 20, 50), (1, 5000), (64, 64), (0, 4), (2, 3), ()])
@pytest.mark.parametrize("sample", [1, 50, 1000, None])
def test_strides_take_at_most_the_sample_and_not_much_less(shape, sample):
    size = int(np.prod(shape))
    taken = np.empty(shape)[strides(shape, sample)].size
    assert taken == size if sample is None or size <= sample else sample / 4 < taken <= sample


@pytest.mark.slow
def test_the_followed_weights_are_those_at_the_strides():
    params = {"kernel": jnp.arange(96.0).reshape(4, 24)}
    tx = fobt.oscillations.track_oscillations(optax.sgd(1.0), signs, sample=20)
    _, state = tx.update(params, tx.init(params), params)
    leaf = state.leaves["kernel"]
    assert leaf.size == 96
    np.testing.assert_array_equal(leaf.gradient, np.arange(96.0).reshape(4, 24)[:, ::8])
    np.testing.assert_array_equal(leaf.followed.codes, np.sign(leaf.gradient))


@pytest.mark.slow
def test_each_followed_weight_stands_for_its_share_of_the_leaf():
    """Half of the followed weights of the large leaf flip, none of the small one."""
    params = {"large": jnp.tile(jnp.array([[1.0], [-1.0]]), (8, 100)), "small": jnp.ones((4, 100))}
    codes = lambda w: jax.tree.map(lambda x: jnp.sign(x).astype(jnp.int8), w)  # noqa: E731
    tx = fobt.oscillations.track_oscillations(optax.sgd(1.0), codes, sample=400)
    after = {"large": jnp.ones((16, 100)), "small": params["small"]}
    _, state = tx.update(after, tx.init(params), after)
    measures = fobt.oscillations.oscillation_metrics(state)
    assert state.leaves["large"].gradient.shape == (16, 25)
    assert measures["leaves"]["large"]["flip_share"] == 0.5
    np.testing.assert_allclose(measures["total"]["flip_share"], 0.5 * 1600 / 2000)
    _, state = tx.update({"large": after["large"], "small": -after["small"]}, state, after)
    cosine = fobt.oscillations.oscillation_metrics(state)["total"]["gradient_cosine"]
    np.testing.assert_allclose(cosine, (1600 - 400) / 2000, rtol=1e-6)
