"""The instrument against definitions written out, hand-made sequences, closed forms, and the bare optimizers."""

import itertools
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from forward_backtrack_test import toy_loss, toy_preconditioner
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import fobt

MOMENTUM = 0.1


# --- Single weights ------------------------------------------------------------------------------------------------


def given_codes(params):
    """Codes that are given beside the latents."""
    return {"latents": params["codes"].astype(jnp.int8), "codes": None}


def followed(codes, latents, dtype="float32"):
    """State after updates that see these codes and latents, with time as the first axis."""
    tx = fobt.track_oscillations(optax.sgd(0.0), given_codes, momentum=MOMENTUM)
    sequence = [
        {"latents": jnp.asarray(w, dtype), "codes": jnp.asarray(c, "float32")}
        for c, w in zip(codes, latents, strict=True)
    ]
    state = tx.init(sequence[0])
    update = jax.jit(tx.update)
    for params in sequence:
        _, state = update(params, state, params)
    return state


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
    total = fobt.oscillation_metrics(state)["total"]
    assert total["flip_share"] == np.float32(np.mean(codes[-1] != codes[-2]))
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


@pytest.mark.parametrize(("w", "c"), [(0.3, 1.0), (-2.0, 5.0)])
@pytest.mark.parametrize(("two_stage", "amplitude_of_w"), [(False, 2), (True, 0)])
def test_the_toy_problem(w, c, two_stage, amplitude_of_w):
    """Loss-aware quantization alternates, w ← -w, in every step; the method, w ← 0.6 w, never changes a code."""
    bare = fobt.forward_backtrack(1.0, fobt.binary(), a=0.6, preconditioner=toy_preconditioner(c))
    tx = fobt.track_oscillations(bare, fobt.binary(), momentum=MOMENTUM)
    params, flips, steps = jnp.full((1, 1), w), [], 20
    state = tx.init(params)
    for _ in range(steps):
        _, grads, grad_fn = fobt.value_and_grad(toy_loss, fobt.binary())(params, None, c)
        updates, state = tx.update(grads, state, params, grad_fn=grad_fn, two_stage=two_stage)
        params = optax.apply_updates(params, updates)
        flips.append(int(fobt.oscillation_metrics(state)["total"]["flip_share"]))
    total = fobt.oscillation_metrics(state)["total"]
    np.testing.assert_allclose(total["largest_amplitude"], amplitude_of_w * abs(w), rtol=1e-5)
    assert flips == [0] + [0 if two_stage else 1] * (steps - 1)
    oscillating_steps = 0 if two_stage else steps - 2  # all but the first step and the first change
    np.testing.assert_allclose(total["oscillation_frequency"], 1 - (1 - MOMENTUM) ** oscillating_steps, rtol=1e-5)
    np.testing.assert_allclose(total["gradient_cosine"], 1 if two_stage else -1, rtol=1e-6)
    np.testing.assert_equal(float(total["trial_gradient_cosine"]), -1.0 if two_stage else np.nan)


# --- Around optimizers ---------------------------------------------------------------------------------------------

QUANTIZER = fobt.ternary()
STEP = 0.05


def make_params(dtype="float32", shape=(64, 32)):
    first, second = jax.random.split(jax.random.key(0))
    return {
        "kernel": jax.random.normal(first, shape, dtype),
        "nu": {"kernel": jax.random.normal(second, shape[::-1], dtype)},
        "bias": jnp.zeros(shape[1], dtype),
    }


def make_batch(seed, inputs=64):
    return tuple(jax.random.normal(key, (16, inputs)) for key in jax.random.split(jax.random.key(1000 + seed)))


def loss_fn(weights, x, y):
    hidden = jnp.tanh(x.astype(weights["bias"].dtype) @ weights["kernel"] + weights["bias"][None])
    return jnp.mean((hidden @ weights["nu"]["kernel"] - y.astype(weights["bias"].dtype)) ** 2)


def straight_through(latent):
    return latent + jax.lax.stop_gradient(jnp.sign(latent) * jnp.mean(jnp.abs(latent)) - latent)


def straight_through_loss(latents, x, y):
    return loss_fn(jax.tree.map(lambda w: straight_through(w) if w.ndim == 2 else w, latents), x, y)


def signs(params):
    return jax.tree.map(lambda w: jnp.sign(w).astype(jnp.int8) if w.ndim == 2 else None, params)


IDENTITY = fobt.identity()
# Optimizer, quantizer of the instrument, loss, quantizer of the forward pass, keywords of update.
ROWS = {
    "adam": (optax.adam(STEP), QUANTIZER, loss_fn, QUANTIZER, {}),
    "chain": (
        optax.chain(optax.clip(1.0), optax.adamw(STEP), fobt.bound_weights((-1, 1), QUANTIZER)),
        QUANTIZER,
        loss_fn,
        QUANTIZER,
        {},
    ),
    "forward_backtrack": (fobt.forward_backtrack(STEP, QUANTIZER), QUANTIZER, loss_fn, QUANTIZER, {}),
    "plain": (fobt.forward_backtrack(STEP, QUANTIZER), QUANTIZER, loss_fn, QUANTIZER, {"two_stage": False}),
    "period": (fobt.forward_backtrack(STEP, QUANTIZER, every=2), QUANTIZER, loss_fn, QUANTIZER, {}),
    "traced": (fobt.forward_backtrack(STEP, QUANTIZER), QUANTIZER, loss_fn, QUANTIZER, {"two_stage": jnp.array(True)}),
    "per leaf": (
        optax.adam(STEP),
        fobt.per_leaf(("kernel", fobt.linear(4))),
        loss_fn,
        fobt.per_leaf(("kernel", fobt.linear(4))),
        {},
    ),
    "straight through": (optax.adam(STEP), signs, straight_through_loss, IDENTITY, {}),
}
TRIAL_KNOWN = {"forward_backtrack", "traced"}


def make_step(row, *, tracked, full_precision_gradient=False, sample=100):
    """The transformation and its jitted step, which gives params, state, updates, weights and gradients."""
    bare, quantizer, loss, forward_quantizer, kwargs = ROWS[row]
    tx = optax.with_extra_args_support(bare)
    if tracked:
        tx = fobt.track_oscillations(bare, quantizer, sample=sample, full_precision_gradient=full_precision_gradient)

    def step(params, state, batch, kwargs):
        _, grads, grad_fn = fobt.value_and_grad(loss, forward_quantizer)(params, state, *batch)
        weights = fobt.quantized_params(params, state, forward_quantizer)
        updates, state = tx.update(grads, state, params, grad_fn=grad_fn, **kwargs)
        return optax.apply_updates(params, updates), state, updates, weights, grads

    # Python bools are static: straight-line code.
    if isinstance(kwargs.get("two_stage"), bool):
        return tx, jax.jit(lambda params, state, batch: step(params, state, batch, kwargs))
    jitted = jax.jit(step)
    return tx, lambda params, state, batch: jitted(params, state, batch, kwargs)


@pytest.mark.parametrize("row", ROWS)
def test_updates_and_inner_state_are_those_of_the_bare_optimizer_to_the_last_bit(row):
    bare, bare_step = make_step(row, tracked=False)
    tx, step = make_step(row, tracked=True)
    params = expected = make_params()
    state, expected_state = tx.init(params), bare.init(params)
    for i in range(5):
        params, state, updates, weights, _ = step(params, state, make_batch(i))
        expected, expected_state, expected_updates, expected_weights, _ = bare_step(
            expected, expected_state, make_batch(i)
        )
        got, wanted = (updates, state.inner, weights), (expected_updates, expected_state, expected_weights)
        if row == "traced":  # another `lax.cond`, whose branches XLA rounds in its own way
            chex.assert_trees_all_close(got, wanted, rtol=1e-4, atol=1e-6)
        else:
            chex.assert_trees_all_equal(got, wanted)
    assert fobt.oscillation_metrics(state)["total"]["flip_share"] > 0


def numpy_cosine(x, y):
    x, y = (np.concatenate([np.ravel(leaf).astype(np.float64) for leaf in tree]) for tree in (x, y))
    return x @ y / np.linalg.norm(x) / np.linalg.norm(y)


@pytest.mark.parametrize("row", ROWS)
def test_flips_and_gradients_are_those_of_the_forward_passes(row):
    """All weights followed: flips counted on the weights of the forward pass, cosines of whole gradients."""
    tx, step = make_step(row, tracked=True, full_precision_gradient=True, sample=None)
    quantized = [name for name in ("kernel", "nu/kernel") if row != "per leaf" or name == "kernel"]
    pick = lambda tree: [{"kernel": tree["kernel"], "nu/kernel": tree["nu"]["kernel"]}[name] for name in quantized]  # noqa: E731
    params = make_params()
    state = tx.init(params)
    before = None
    for i in range(4):
        latents = params
        params, state, _, weights, grads = step(params, state, make_batch(i))
        measures = fobt.oscillation_metrics(state)
        assert sorted(measures["leaves"]) == sorted(quantized)
        total = measures["total"]
        if row == "straight through":
            weights = latents  # its signs are the codes
        codes = pick(jax.tree.map(codes_of(row), weights))
        if before is not None:
            flips = [old != new for old, new in zip(before[0], codes, strict=True)]
            np.testing.assert_allclose(
                total["flip_share"], sum(np.sum(f) for f in flips) / sum(f.size for f in flips), rtol=1e-6
            )
            for name, flipped in zip(quantized, flips, strict=True):
                np.testing.assert_allclose(measures["leaves"][name]["flip_share"], np.mean(flipped), rtol=1e-6)
            np.testing.assert_allclose(total["gradient_cosine"], numpy_cosine(before[1], pick(grads)), atol=1e-5)
        loss = ROWS[row][2]
        at_latents = pick(jax.grad(loss)(latents, *make_batch(i)))
        np.testing.assert_allclose(
            total["full_precision_gradient_cosine"], numpy_cosine(pick(grads), at_latents), atol=1e-5
        )
        error = np.sqrt(sum(np.sum((x - y) ** 2) for x, y in zip(pick(grads), at_latents, strict=True)))
        norm = np.sqrt(sum(np.sum(y**2) for y in at_latents))
        np.testing.assert_allclose(total["gradient_quantization_error"], error / norm, rtol=1e-4, atol=1e-6)
        assert np.isnan(total["trial_gradient_cosine"]) == (row not in TRIAL_KNOWN)
        before = codes, pick(grads)


def codes_of(row):
    """Recovers codes, up to a factor, from weights of one scale."""
    if row == "per leaf":
        return lambda w: np.round(7 * np.asarray(w) / np.max(np.abs(w), initial=1e-30))
    return lambda w: np.sign(np.asarray(w))
