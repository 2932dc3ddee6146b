"""forward_backtrack together with the wrappers of Optax and the transformations of JAX."""

import chex
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fobt

QUANTIZER = fobt.binary()
LEARNING_RATE = 0.05


def make_params(seed=0):
    first, second = jax.random.split(jax.random.key(seed))
    return {"kernel": jax.random.normal(first, (5, 3)), "bias": jax.random.normal(second, (3,))}


def make_batch(seed, size=8):
    first, second = jax.random.split(jax.random.key(1000 + seed))
    return jax.random.normal(first, (size, 5)), jax.random.normal(second, (size, 3))


def loss_fn(weights, x, y):
    return jnp.mean((jnp.tanh(x @ weights["kernel"] + weights["bias"][None]) - y) ** 2)


value_and_grad = fobt.value_and_grad(loss_fn, QUANTIZER)


def run(tx, steps=4, *, params=None, update_kwargs=lambda i: {}, jit=True):
    """The params and the state after each of some steps."""
    params = make_params() if params is None else params
    state = tx.init(params)

    def step(params, state, batch, kwargs):
        _, grads, grad_fn = value_and_grad(params, state, *batch)
        updates, state = tx.update(grads, state, params, grad_fn=grad_fn, **kwargs)
        return optax.apply_updates(params, updates), state

    step = jax.jit(step) if jit else step
    history = []
    for i in range(steps):
        params, state = step(params, state, make_batch(i), update_kwargs(i))
        history.append((params, state))
    return history


def method(learning_rate=LEARNING_RATE, **kwargs):
    return fobt.forward_backtrack(learning_rate, QUANTIZER, **kwargs)


def first_step(tx, grad_fn=None):
    """Updates and new state of one step, not jitted, with the gradients that went in."""
    params = make_params()
    state = tx.init(params)
    _, grads, own_grad_fn = value_and_grad(params, state, *make_batch(0))
    return *tx.update(grads, state, params, grad_fn=grad_fn or own_grad_fn), grads


# --- Chains --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_chain_before_changes_the_first_gradient_only():
    halve = optax.scale(0.5)
    updates, _, grads = first_step(optax.chain(halve, method()))
    tx, params = method(), make_params()
    grad_fn = value_and_grad(params, None, *make_batch(0))[2]
    halved = jax.tree.map(lambda g: 0.5 * g, grads)
    expected, _ = tx.update(halved, tx.init(params), params, grad_fn=grad_fn)
    chex.assert_trees_all_equal(updates, expected)
    both = first_step(method(grad_transform=halve))[0]
    assert not np.allclose(updates["kernel"], both["kernel"], rtol=1e-3)


@pytest.mark.slow
def test_a_chain_after_changes_the_real_update():
    after = optax.chain(optax.add_decayed_weights(-0.1), optax.scale(0.5))
    updates, (state, _), _ = first_step(optax.chain(method(), after))
    plain_updates, plain_state, _ = first_step(method())
    params = make_params()
    expected = jax.tree.map(lambda u, w: 0.5 * (u - 0.1 * w), plain_updates, params)
    chex.assert_trees_all_close(updates, expected, rtol=1e-6)
    chex.assert_trees_all_equal(state, plain_state)


def test_quantized_params_after_a_chain_are_those_of_the_final_params():
    params, state = run(optax.chain(method(), optax.add_decayed_weights(-0.1)))[-1]
    got = fobt.quantized_params(params, state, QUANTIZER)["kernel"]
    expected = QUANTIZER(params["kernel"], jnp.sqrt(state[0].nu["kernel"]) + 1e-8).dequantize()
    chex.assert_trees_all_equal(got, expected)


def test_grad_transform_applies_to_both_gradients():
    clip = optax.clip_by_global_norm(0.05)
    params, tx = make_params(), method(grad_transform=clip)
    plain = method()
    _, grads, grad_fn = value_and_grad(params, None, *make_batch(0))

    def clipped(grads):
        norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads)))
        assert norm > 0.05
        return jax.tree.map(lambda g: g / norm * 0.05, grads)

    got = tx.update(grads, tx.init(params), params, grad_fn=grad_fn)
    expected = plain.update(
        clipped(grads), plain.init(params), params, grad_fn=lambda weights: clipped(grad_fn(weights))
    )
    chex.assert_trees_all_close(got, expected, rtol=1e-5)


# --- Hyperparameters -----------------------------------------------------------------------------------------------


def injected(**kwargs):
    factory = optax.inject_hyperparams(fobt.forward_backtrack, static_args=("quantizer", "every", "weight_bounds"))
    return factory(quantizer=QUANTIZER, **kwargs)


@pytest.mark.parametrize("every", [1, 2])
def test_inject_hyperparams(every):
    history = run(injected(learning_rate=LEARNING_RATE, every=every, weight_bounds=(-1, 1)))
    expected = run(method(every=every, weight_bounds=(-1, 1)))
    for (params, state), (expected_params, expected_state) in zip(history, expected, strict=True):
        chex.assert_trees_all_close(params, expected_params, rtol=1e-5, atol=1e-6)
        chex.assert_trees_all_close(state.inner_state, expected_state, rtol=1e-5, atol=1e-6)
    assert state.hyperparams["a"] == jnp.float32(0.6)


@pytest.mark.slow
def test_inject_hyperparams_schedules_any_number():
    a = optax.linear_schedule(0.5, 0.9, 3)
    learning_rate = optax.cosine_decay_schedule(LEARNING_RATE, 10)
    params, state = run(injected(learning_rate=learning_rate, a=a))[-1]
    expected = make_params()
    expected_state = method().init(expected)
    for i in range(4):
        tx = method(float(learning_rate(i)), a=float(a(i)))
        _, grads, grad_fn = value_and_grad(expected, expected_state, *make_batch(i))
        updates, expected_state = tx.update(grads, expected_state, expected, grad_fn=grad_fn)
        expected = optax.apply_updates(expected, updates)
    chex.assert_trees_all_close((params, state.inner_state), (expected, expected_state), rtol=1e-4, atol=1e-6)


def test_a_schedule_is_called_as_by_optax():
    schedule = optax.piecewise_constant_schedule(0.1, {1: 0.5, 3: 0.1})
    ours = run(method(schedule, every=100), steps=6, jit=False)
    adam = run(optax.with_extra_args_support(optax.adam(schedule)), steps=6, jit=False)
    for (params, _), (expected, _) in zip(ours, adam, strict=True):
        chex.assert_trees_all_equal(params, expected)


def test_no_first_moment():
    """With b1 = 0 the blended gradient itself is the direction."""
    updates, state, grads = first_step(method(b1=0.0, a=0.7))
    params = make_params()
    trial = optax.apply_updates(params, jax.tree.map(lambda g: -LEARNING_RATE * g / (jnp.abs(g) + 1e-8), grads))
    curvature = jnp.abs(grads["kernel"]) + 1e-8
    weights = {**trial, "kernel": QUANTIZER(trial["kernel"], curvature).dequantize()}
    trial_grads = jax.grad(loss_fn)(weights, *make_batch(0))
    blend = jax.tree.map(lambda g, t: 0.7 * g + 0.3 * t, grads, trial_grads)
    chex.assert_trees_all_close(state.mu, blend, rtol=1e-5, atol=1e-7)

    def expected(g, t, blended):
        trial_nu = (0.999 * 0.001 * g**2 + 0.001 * t**2) / (1 - 0.999**2)
        return -LEARNING_RATE * blended / (0.7 * jnp.abs(g) + 0.3 * jnp.sqrt(trial_nu) + 1e-8)

    chex.assert_trees_all_close(updates, jax.tree.map(expected, grads, trial_grads, blend), rtol=1e-4)


@pytest.mark.slow
def test_every_and_two_stage():
    """A period, a predicate, and both kinds of override choose the same steps."""
    second = [bool((i + 1) % 2 == 0) for i in range(4)]
    static, opposite = method(), method(every=lambda count: count % 2 == 1)
    expected = []
    params = make_params()
    state = static.init(params)
    for i, two_stage in enumerate(second):
        _, grads, grad_fn = value_and_grad(params, state, *make_batch(i))
        updates, state = static.update(grads, state, params, grad_fn=grad_fn, two_stage=two_stage)
        params = optax.apply_updates(params, updates)
        expected.append((params, state))
    variants = {
        "period": run(method(every=2)),
        "period of NumPy": run(method(every=np.int64(2))),
        "predicate": run(method(every=lambda count: count % 2 == 0)),
        "not jitted": run(method(every=2), jit=False),
        "traced override": run(opposite, update_kwargs=lambda i: {"two_stage": second[i]}),
        "injected and so traced": run(
            optax.inject_hyperparams(fobt.forward_backtrack, "quantizer")(LEARNING_RATE, QUANTIZER, every=2)
        ),
    }
    for name, history in variants.items():
        for (params, _), (expected_params, _) in zip(history, expected, strict=True):
            chex.assert_trees_all_close(params, expected_params, rtol=1e-4, atol=1e-6, custom_message=name)


# --- Gradients that are not finite ---------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_apply_if_finite_skips_a_gradient_that_is_not(bad):
    tx = optax.apply_if_finite(method(), 10)
    params, state = run(tx)[-1]
    _, grads, grad_fn = value_and_grad(params, state, *make_batch(0))
    grads["bias"] = grads["bias"].at[1].set(bad)
    updates, new_state = jax.jit(lambda g, s, p: tx.update(g, s, p, grad_fn=grad_fn))(grads, state, params)
    chex.assert_trees_all_equal(optax.apply_updates(params, updates), params)
    chex.assert_trees_all_equal(new_state.inner_state, state.inner_state)
    assert new_state.notfinite_count == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30], ids=["nan", "inf", "-inf", "square overflows"])
@pytest.mark.parametrize("leaf", ["kernel", "bias"])
@pytest.mark.parametrize("every", [1, 3])
def test_a_trial_gradient_that_is_not_finite_gives_the_plain_step(bad, leaf, every):
    params, state = run(method())[1]
    tx = method(every=every)
    _, grads, grad_fn = value_and_grad(params, state, *make_batch(2))

    def bad_grad_fn(weights):
        trial = grad_fn(weights)
        return {**trial, leaf: trial[leaf].at[..., 1].set(bad)}

    got = jax.jit(lambda g, s, p: tx.update(g, s, p, grad_fn=bad_grad_fn))(grads, state, params)
    plain = jax.jit(lambda g, s, p: tx.update(g, s, p, grad_fn=grad_fn, two_stage=False))(grads, state, params)
    chex.assert_trees_all_close(got, plain, rtol=1e-6)
    chex.assert_tree_all_finite(got)


# --- Accumulation --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_multi_steps_takes_the_trial_gradient_on_the_last_micro_batch():
    """It accumulates the first gradient only, and evaluates grad_fn on every micro-batch to use the last one."""
    calls = []
    tx = optax.MultiSteps(method(), every_k_schedule=3)
    params = make_params()
    state = tx.init(params)
    all_grads = []
    for i in range(3):
        _, grads, grad_fn = value_and_grad(params, state, *make_batch(i))
        all_grads.append(grads)
        counted = lambda weights, i=i, grad_fn=grad_fn: calls.append(i) or grad_fn(weights)  # noqa: E731
        updates, state = tx.update(grads, state, params=params, grad_fn=counted)
    mean = jax.tree.map(lambda *g: sum(g) / 3, *all_grads)
    expected, expected_state = method().update(mean, method().init(params), params, grad_fn=grad_fn)
    chex.assert_trees_all_close(updates, expected, rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_close(state.inner_opt_state, expected_state, rtol=1e-4, atol=1e-6)
    assert set(calls) == {0, 1, 2}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("quantizer", "two_stage"),
    [(QUANTIZER, True), (fobt.ternary(), True), (fobt.linear(3), True), (fobt.linear(3), False)],
    ids=["binary", "ternary", "linear3", "linear3, plain"],
)
def test_accumulation_inside_grad_fn_equals_the_large_batch(quantizer, two_stage):
    """The recommended way to accumulate: both gradients are means over micro-batches."""
    grad = jax.grad(loss_fn)
    accumulated = optax.microbatching.microbatch(
        grad, argnums=(1, 2), microbatch_size=4, accumulator=optax.microbatching.AccumulationType.MEAN
    )
    tx = fobt.forward_backtrack(LEARNING_RATE, quantizer)

    def make_step(grad):
        @jax.jit
        def step(params, state, x, y):
            trials = []

            def grad_fn(weights):
                trials.append(grad(weights, x, y))
                return trials[-1]

            grads = grad(fobt.quantized_params(params, state, quantizer), x, y)
            updates, state = tx.update(grads, state, params, grad_fn=grad_fn, two_stage=two_stage)
            return optax.apply_updates(params, updates), state, grads, trials

        return step

    whole, parts = make_step(grad), make_step(accumulated)
    params = expected_params = make_params()
    state = expected_state = tx.init(params)
    for i in range(3):
        batch = make_batch(i, size=16)
        got = params, state, *_ = parts(params, state, *batch)
        expected = expected_params, expected_state, *_ = whole(expected_params, expected_state, *batch)
        assert len(expected[-1]) == two_stage
        chex.assert_trees_all_close(got, expected, rtol=1e-4, atol=1e-6)
