"""The instrument around optimizers: what the bare ones do, the gradients of the forward passes, closed forms."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oscillation_cases import QUANTIZER, STEP, make_params, metrics, signs

import fobt

TERNARY = fobt.ternary(solver="exact")


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


@pytest.mark.slow
@pytest.mark.optimized
@pytest.mark.parametrize("row", ROWS)
def test_updates_and_inner_state_are_those_of_the_bare_optimizer_to_the_last_bit(row):
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


@pytest.mark.slow
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


@pytest.mark.slow
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


# --- What every transformation owes --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.optimized
def test_the_instrument_shares_the_projection_of_the_forward_pass():
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


@pytest.mark.slow
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


@pytest.mark.slow
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
