"""The instrument against definitions written out, hand-made sequences, closed forms, and the bare optimizers."""

import itertools
import sys
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from forward_backtrack_test import toy_loss, toy_preconditioner

import fobt
from fobt._src.oscillations.followed import strides

MOMENTUM = 0.1
metrics = jax.jit(fobt.oscillations.oscillation_metrics)


@pytest.fixture(autouse=True)
def compile_fast(request):
    """These tests compile much and run little; those that take `optimized` compile as always."""
    jax.config.update("jax_disable_most_optimizations", "optimized" not in request.fixturenames)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def optimized():
    """For tests of what XLA makes of the instrument."""


# --- Single weights ------------------------------------------------------------------------------------------------


def given_codes(params):
    """Codes that are given beside the latents."""
    return {"latents": params["codes"].astype(jnp.int8), "codes": None}


def followed(codes, latents, dtype="float32"):
    """State after updates that see these codes and latents, with time as the first axis."""
    tx = fobt.oscillations.track_oscillations(optax.sgd(0.0), given_codes, decay=1 - MOMENTUM)
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


# --- Around optimizers ---------------------------------------------------------------------------------------------

QUANTIZER = fobt.binary()
TERNARY = fobt.ternary(solver="exact")
STEP = 0.05


def make_params(dtype="float32"):
    """A leaf with the name of Adam's second moment, which must not be taken for one."""
    return {"nu": {"kernel": jax.random.normal(jax.random.key(0), (16, 8), dtype)}, "bias": jnp.zeros(8, dtype)}


def make_batch(seed):
    first, second = jax.random.split(jax.random.key(1000 + seed))
    return jax.random.normal(first, (16, 16)), jax.random.normal(second, (16, 8))


def loss_fn(weights, x, y):
    kernel, bias = weights["nu"]["kernel"], weights["bias"]
    return jnp.mean((jnp.tanh(x.astype(bias.dtype) @ kernel + bias[None]) - y.astype(bias.dtype)) ** 2)


def straight_through_loss(latents, x, y):
    kernel = latents["nu"]["kernel"]
    quantized = jnp.sign(kernel) * jnp.mean(jnp.abs(kernel))
    return loss_fn(latents | {"nu": {"kernel": kernel + jax.lax.stop_gradient(quantized - kernel)}}, x, y)


def signs(params):
    return jax.tree.map(lambda w: jnp.sign(w).astype(jnp.int8) if w.ndim == 2 else None, params)


class Row(NamedTuple):
    """An optimizer, what gives the codes for the instrument, the forward pass, and a traced keyword of update."""

    bare: optax.GradientTransformation
    codes: Any
    forward: Any
    loss: Any = loss_fn
    two_stage: Any = None


METHOD = fobt.forward_backtrack(STEP, QUANTIZER)
CHAIN = optax.chain(optax.clip(1.0), optax.adamw(STEP), fobt.bound_weights((-1, 1), QUANTIZER))
ROWS = {
    "chain": Row(CHAIN, QUANTIZER, QUANTIZER),
    "forward_backtrack": Row(fobt.forward_backtrack(STEP, TERNARY), TERNARY, TERNARY),
    "period": Row(fobt.forward_backtrack(STEP, QUANTIZER, every=2), QUANTIZER, QUANTIZER),
    "traced": Row(METHOD, QUANTIZER, QUANTIZER, two_stage=True),
    "straight through": Row(optax.adam(STEP), signs, fobt.full_precision(), straight_through_loss),
}


def make_step(row, *, tracked, **options):
    """The transformation and its jitted step, which gives params, state, updates, weights and gradients."""
    bare, codes, forward, loss, two_stage = ROWS[row]
    tx = (
        fobt.oscillations.track_oscillations(bare, codes, **options) if tracked else optax.with_extra_args_support(bare)
    )

    @jax.jit
    def step(params, state, batch, kwargs):
        _, grads, grad_fn = fobt.value_and_grad(loss, forward)(params, state, *batch)
        weights = fobt.quantized_params(params, state, forward)
        updates, state = tx.update(grads, state, params, grad_fn=grad_fn, **kwargs)
        return optax.apply_updates(params, updates), state, updates, weights, grads

    kwargs = {} if two_stage is None else {"two_stage": two_stage}
    return tx, lambda params, state, batch: step(params, state, batch, kwargs)


@pytest.mark.parametrize("row", ROWS)
def test_updates_and_inner_state_are_those_of_the_bare_optimizer_to_the_last_bit(row, optimized):
    bare, bare_step = make_step(row, tracked=False)
    tx, step = make_step(row, tracked=True, sample=50)
    params = expected = make_params()
    state, expected_state = jax.jit(tx.init)(params), bare.init(params)
    for i in range(5):
        params, state, *got = step(params, state, make_batch(i))
        expected, expected_state, *wanted = bare_step(expected, expected_state, make_batch(i))
        if row == "traced":  # another `lax.cond`, whose branches XLA rounds in its own way
            chex.assert_trees_all_close((got, state.inner), (wanted, expected_state), rtol=1e-4, atol=1e-6)
        else:
            chex.assert_trees_all_equal((got, state.inner), (wanted, expected_state))
    total = metrics(state)["total"]
    assert total["gradient_cosine"] != 0
    assert np.isnan(total["trial_gradient_cosine"]) == (row not in ("forward_backtrack", "traced"))
    assert np.isnan(total["gradient_quantization_error"])


def numpy_cosine(x, y):
    x, y = np.ravel(x).astype(np.float64), np.ravel(y).astype(np.float64)
    return x @ y / np.linalg.norm(x) / np.linalg.norm(y)


@pytest.mark.parametrize("row", ["chain", "forward_backtrack", "straight through"])
def test_flips_and_gradients_are_those_of_the_forward_passes(row):
    """The codes up to a factor are the signs of the weights of the forward pass, or of the latents."""
    tx, step = make_step(row, tracked=True, full_precision_gradient=True, sample=None)
    params, latents_grad = make_params(), jax.jit(jax.grad(ROWS[row].loss))
    state = jax.jit(tx.init)(params)
    codes_before = grads_before = None
    for i in range(4):
        at_latents = latents_grad(params, *make_batch(i))["nu"]["kernel"]
        params, state, _, weights, grads = step(params, state, make_batch(i))
        codes, grads = np.sign(weights["nu"]["kernel"]), grads["nu"]["kernel"]
        measures = metrics(state)
        leaf = measures["leaves"].pop("nu/kernel")
        assert not measures["leaves"]
        chex.assert_trees_all_close(leaf, measures["total"], rtol=1e-6)
        if i > 0:
            np.testing.assert_allclose(leaf["flip_share"], np.mean(codes != codes_before), rtol=1e-6)
            np.testing.assert_allclose(leaf["gradient_cosine"], numpy_cosine(grads, grads_before), atol=1e-5)
        np.testing.assert_allclose(leaf["full_precision_gradient_cosine"], numpy_cosine(grads, at_latents), atol=1e-5)
        error = np.linalg.norm(grads - at_latents) / np.linalg.norm(at_latents)
        np.testing.assert_allclose(leaf["gradient_quantization_error"], error, rtol=1e-4, atol=1e-6)
        codes_before, grads_before = codes, grads


# --- The trial gradient --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("every", "two_stage", "known", "jit"),
    [
        (1, None, True, True),
        (1, None, True, False),
        (1, True, True, True),
        (1, False, False, True),
        (1, "traced", True, True),
        (1, "traced", True, False),
        (2, True, True, True),
        (2, None, False, True),
        (2, None, False, False),
    ],
)
def test_the_trial_gradient_on_a_quadratic(every, two_stage, known, jit):
    """First binary step on ½ Σ L (w - c)² with C = |g|: w* = w - η sign(g), ŵ* = sign(w*) Σ |g w*| / Σ |g|."""
    eta, w = 0.5, np.array([[0.3, -0.4, 0.8]])
    slopes, c = np.array([[1.0, 3.0, 0.5]]), np.array([[-1.0, 0.5, 2.0]])
    tx = fobt.oscillations.track_oscillations(fobt.forward_backtrack(eta, QUANTIZER, every=every), QUANTIZER)
    w_hat = np.sign(w) * np.mean(np.abs(w))
    g = slopes * (w_hat - c)
    trial = w - eta * np.sign(g)
    trial_hat = np.sign(trial) * np.sum(np.abs(g * trial)) / np.sum(np.abs(g))
    trial_g = slopes * (trial_hat - c)
    params = jnp.asarray(w, jnp.float32)
    state = tx.init(params)

    def update(grads, state, params, now):
        traced = two_stage == "traced"
        more = {} if two_stage is None else {"two_stage": now if traced else two_stage}
        return tx.update(grads, state, params, grad_fn=lambda weights: jnp.asarray(slopes) * (weights - c), **more)

    update = jax.jit(update) if jit else update
    _, state = update(jnp.asarray(g, jnp.float32), state, params, True)
    got = float(metrics(state)["total"]["trial_gradient_cosine"])
    if two_stage == "traced" and jit:  # the other branch of the same program
        _, plain = update(jnp.asarray(g, jnp.float32), state, params, False)
        assert np.isnan(metrics(plain)["total"]["trial_gradient_cosine"])
    np.testing.assert_allclose(got, numpy_cosine(g, trial_g) if known else np.nan, rtol=1e-5)


def test_an_unknown_measure_is_nan_and_0_in_a_search_for_nan():
    state = fobt.oscillations.track_oscillations(optax.sgd(STEP), signs).init(make_params())
    assert np.isnan(fobt.oscillations.oscillation_metrics(state)["total"]["trial_gradient_cosine"])
    with jax.debug_nans(True):
        assert fobt.oscillations.oscillation_metrics(state)["total"]["trial_gradient_cosine"] == 0
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state))


def test_the_first_of_several_trial_gradients_counts():
    def update(grads, state, params=None, *, grad_fn):
        return jax.tree.map(jnp.add, grad_fn(params), grad_fn(-params)), state

    tx = fobt.oscillations.track_oscillations(
        optax.GradientTransformationExtraArgs(optax.init_empty_state, update), signs
    )
    params = jnp.array([[1.0, 2.0]])
    _, state = tx.update(params, tx.init(params), params, grad_fn=lambda weights: 3 * weights)
    np.testing.assert_allclose(metrics(state)["total"]["trial_gradient_cosine"], 1, rtol=1e-6)


def test_full_precision_gradient_needs_grad_fn():
    tx = fobt.oscillations.track_oscillations(optax.adam(STEP), QUANTIZER, full_precision_gradient=True)
    params = jnp.ones((2, 2))
    with pytest.raises(ValueError, match="grad_fn must be given with full_precision_gradient"):
        tx.update(params, tx.init(params), params)


# --- Sampling ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(7,), (3, 3, 20, 50), (1, 5000), (64, 64), (0, 4), (2, 3), ()])
@pytest.mark.parametrize("sample", [1, 50, 1000, None])
def test_strides_take_at_most_the_sample_and_not_much_less(shape, sample):
    size = int(np.prod(shape))
    taken = np.empty(shape)[strides(shape, sample)].size
    assert taken == size if sample is None or size <= sample else sample / 4 < taken <= sample


def test_the_followed_weights_are_those_at_the_strides():
    params = {"kernel": jnp.arange(96.0).reshape(4, 24)}
    tx = fobt.oscillations.track_oscillations(optax.sgd(1.0), signs, sample=20)
    _, state = tx.update(params, tx.init(params), params)
    leaf = state.leaves["kernel"]
    assert leaf.size == 96
    np.testing.assert_array_equal(leaf.gradient, np.arange(96.0).reshape(4, 24)[:, ::8])
    np.testing.assert_array_equal(leaf.followed.codes, np.sign(leaf.gradient))


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


# --- What every transformation owes --------------------------------------------------------------------------------


def test_the_instrument_shares_the_projection_of_the_forward_pass(optimized):
    """By the sorts of the exact solver in the compiled program; without a forward pass there would be one more each."""
    sorts = []
    for tracked in (False, True):
        tx = optax.with_extra_args_support(optax.adam(STEP))
        tx = fobt.oscillations.track_oscillations(tx, TERNARY) if tracked else tx

        def step(params, state, batch, tx=tx):
            _, grads, _ = fobt.value_and_grad(loss_fn, TERNARY)(params, state, *batch)
            return tx.update(grads, state, params)

        params = make_params()
        compiled = jax.jit(step).lower(params, tx.init(params), make_batch(0)).compile()
        sorts.append(compiled.as_text().count(" sort("))
    assert sorts[0] == sorts[1] > 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
@pytest.mark.parametrize("row", ["chain", "traced"])
def test_dtypes_stay_the_second_call_compiles_nothing_and_buffers_can_be_donated(row, dtype):
    with jax.enable_x64(dtype == "float64"):
        tx = fobt.oscillations.track_oscillations(ROWS[row].bare, QUANTIZER, sample=None)
        two_stage = jnp.array(True)
        params = make_params(dtype)
        state = tx.init(params)

        def step(params, state, batch):
            _, grads, grad_fn = fobt.value_and_grad(loss_fn, QUANTIZER)(params, state, *batch)
            updates, state = tx.update(grads, state, params, grad_fn=grad_fn, two_stage=two_stage)
            return optax.apply_updates(params, updates), state

        jitted = jax.jit(chex.assert_max_traces(step, 1), donate_argnums=(0, 1))
        chex.clear_trace_counter()
        form = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)  # noqa: E731
        before = form((params, state))
        for i in range(3):
            params, state = jitted(params, state, make_batch(i))
        assert form((params, state)) == before
        wide = "float64" if dtype == "float64" else "float32"
        assert {x.dtype for x in jax.tree.leaves(state.leaves["nu/kernel"]) if x.dtype.kind == "f"} == {jnp.dtype(wide)}
        total = fobt.oscillations.oscillation_metrics(state)["total"]
        assert total["gradient_cosine"] != 0
        assert 0 <= total["flip_share"] <= 1


def test_vmap_over_seeds_is_a_loop_over_them():
    tx = fobt.oscillations.track_oscillations(METHOD, QUANTIZER, sample=50)

    def train(params):
        state = tx.init(params)
        for i in range(2):
            _, grads, grad_fn = fobt.value_and_grad(loss_fn, QUANTIZER)(params, state, *make_batch(i))
            updates, state = tx.update(grads, state, params, grad_fn=grad_fn)
            params = optax.apply_updates(params, updates)
        return fobt.oscillations.oscillation_metrics(state)

    seeds = [make_params(), jax.tree.map(lambda w: w[::-1] * 1.5, make_params())]
    together = jax.jit(jax.vmap(train))(jax.tree.map(lambda *x: jnp.stack(x), *seeds))
    for i, seed in enumerate(seeds):
        chex.assert_trees_all_close(jax.tree.map(lambda x, i=i: x[i], together), jax.jit(train)(seed), rtol=1e-4)


def test_a_saved_state_goes_on():
    """Leaves and the structure of a new state are all that a checkpoint keeps."""
    tx, step = make_step("chain", tracked=True)
    params = make_params()
    params, state, *_ = step(params, tx.init(params), make_batch(0))
    saved = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
    restored = jax.tree.unflatten(jax.tree.structure(tx.init(params)), saved)
    chex.assert_trees_all_equal(step(params, restored, make_batch(1)), step(params, state, make_batch(1)))


# --- Measures and their figure -------------------------------------------------------------------------------------


def test_histogram_and_oscillating_share():
    """One weight oscillates always, one never, and one did once: f = 1 - 0.9⁴, 0, and 0.1 · 0.9²."""
    codes = np.array([[1, -1, 1, -1, 1, -1], [1] * 6, [1, -1, 1, 1, 1, 1], [1] * 6]).T[:, None]
    state = followed(codes, codes)
    np.testing.assert_allclose(state.leaves["latents"].followed.frequency, [[0.3439, 0, 0.0729, 0]], rtol=1e-5)
    # The third weight oscillated in the third step; the last bins are from 10^-1.5, 10^-1 and 10^-0.5.
    total = fobt.oscillations.oscillation_metrics(state)["total"]
    np.testing.assert_array_equal(total["frequency_histogram"], [0.5, 0, 0, 0, 0, 0, 0.25, 0, 0.25])
    assert total["oscillating_share"] == 0.5
    assert fobt.oscillations.oscillation_metrics(state, threshold=0.1)["total"]["oscillating_share"] == 0.25
    np.testing.assert_allclose(total["oscillation_frequency"], (0.3439 + 0.0729) / 4, rtol=1e-5)


@pytest.mark.parametrize("quantizer", [fobt.full_precision(), fobt.binary()])
def test_nothing_to_follow_and_zeros_give_no_nan(quantizer):
    params = {"bias": jnp.ones(3), "empty": jnp.zeros((0, 4)), "zeros": jnp.zeros((2, 2))}
    tx = fobt.oscillations.track_oscillations(optax.adam(STEP), quantizer, full_precision_gradient=True)
    zeros = jax.tree.map(jnp.zeros_like, params)
    _, state = tx.update(zeros, tx.init(params), params, grad_fn=lambda weights: zeros)
    total = fobt.oscillations.oscillation_metrics(state)["total"]
    chex.assert_tree_all_finite({name: value for name, value in total.items() if name != "trial_gradient_cosine"})
    assert total["flip_share"] == total["gradient_cosine"] == total["gradient_quantization_error"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"quantizer": "binary"}, "quantizer must be made by fobt.binary"),
        ({"sample": 0}, r"sample must be an integer of at least 1, or None, got 0"),
        ({"decay": 1}, r"decay must be in \[0, 1\), got 1"),
        ({"decay": -0.5}, r"decay must be in \[0, 1\), got -0.5"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        fobt.oscillations.track_oscillations(optax.adam(STEP), **({"quantizer": QUANTIZER} | arguments))


@pytest.mark.parametrize(
    "codes",
    [
        lambda w: {"kernel": w["kernel"] > 0, "bias": None},
        lambda w: {"kernel": jnp.ones((2, 3), int), "bias": None},
        lambda w: w,
    ],
)
def test_codes_that_are_none(codes):
    params = {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}
    with pytest.raises(ValueError, match="quantizer must return integer codes in the shape of each quantized leaf"):
        fobt.oscillations.track_oscillations(optax.sgd(1.0), codes).init(params)


def test_missing_params_and_states():
    tx = fobt.oscillations.track_oscillations(optax.adam(STEP), QUANTIZER)
    params = jnp.ones((2, 2))
    state = tx.init(params)
    with pytest.raises(ValueError, match="params must be given"):
        tx.update(params, state)
    with pytest.raises(ValueError, match="state must hold one state of track_oscillations, found 0"):
        fobt.oscillations.oscillation_metrics(state.inner)
    with pytest.raises(ValueError, match="found 2"):
        fobt.oscillations.oscillation_metrics((state, state))
    with pytest.raises(ValueError, match=r"threshold must be in \[0, 1\), got 1"):
        fobt.oscillations.oscillation_metrics(state, threshold=1)


def test_the_figure_has_the_numbers_of_the_history(tmp_path):
    measures = fobt.oscillations.oscillation_metrics(followed(np.ones((2, 1, 1)), np.ones((2, 1, 1))))
    history = [{"total": measures["total"] | {"flip_share": share}} for share in (0.1, 0.3, 0.2)]
    figure = fobt.oscillations.plot_oscillations(history)
    flips = figure.axes[0].lines[0]
    np.testing.assert_array_equal(flips.get_xdata(), [1, 2, 3])
    np.testing.assert_allclose(flips.get_ydata(), [0.1, 0.3, 0.2])
    bars = figure.axes[-1].patches
    np.testing.assert_allclose([bar.get_height() for bar in bars], measures["total"]["frequency_histogram"])
    assert [len(axes.lines) // 2 for axes in figure.axes] == [1, 2, 1, 1, 0, 0]  # what is NaN is left out
    figure.savefig(tmp_path / "figure.png")


def test_the_figure_needs_a_history_and_matplotlib(monkeypatch):
    with pytest.raises(ValueError, match="history must hold the metrics of at least one update"):
        fobt.oscillations.plot_oscillations([])
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="plot_oscillations needs Matplotlib"):
        fobt.oscillations.plot_oscillations([{}])
