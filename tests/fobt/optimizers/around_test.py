"""The method around any Optax optimizer with a second moment: the NumPy reference, and Adam's own form."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from two_layers import B1, B2, EPS, LEARNING_RATE, PROJECTIONS, initial_params, loss_fn, minibatch, numpy_grads

import fobt

QUANTIZER = fobt.binary()
RATE = 0.05
STEPS = 8


def float_params():
    return jax.tree.map(lambda w: jnp.asarray(w, jnp.result_type(float)), initial_params(0))


def run(tx, quantizer=QUANTIZER, steps=STEPS, **step_args):
    """Params and state after each of some steps."""
    training = fobt.Training(tx, quantizer)
    step, params, history = jax.jit(training.step(loss_fn, **step_args)), float_params(), []
    state = training.init(params)
    for t in range(steps):
        params, state, _ = step(params, state, *minibatch(0, t))
        history.append((params, state))
    assert step._cache_size() == 1
    chex.assert_trees_all_equal_shapes_and_dtypes(state, training.init(params))
    return history


def assert_same(ours, expected, rtol=1e-4):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6), ours, expected)


@pytest.mark.parametrize("name", ["binary", "linear4", "channels"])
@pytest.mark.parametrize("weight_decay", [0.3, 0.0])
@pytest.mark.parametrize("weight_bounds", [(-0.9, 0.9), None])
def test_adamw_follows_the_reference(x64, name, weight_decay, weight_bounds):
    quantizer, project = PROJECTIONS[name]
    adamw = optax.adamw(LEARNING_RATE, B1, B2, EPS, weight_decay=weight_decay)
    if weight_bounds is not None:
        adamw = optax.chain(adamw, fobt.bound_weights(weight_bounds, quantizer))
    projections, expected = {"W": project, "V": project}, initial_params(0)
    zeros = jax.tree.map(np.zeros_like, expected)
    moments = {"count": 0, "mu": zeros, "nu": zeros}
    for t, (params, state) in enumerate(run(fobt.forward_backtrack(adamw, quantizer), quantizer)):
        x, y = minibatch(0, t)
        expected, moments = reference.forward_backtrack_step(
            expected,
            moments,
            numpy_grads(reference.quantized(expected, moments, projections), x, y),
            functools.partial(numpy_grads, x=x, y=y),
            LEARNING_RATE,
            0.6,
            projections,
            B1,
            B2,
            EPS,
            weight_bounds,
            weight_decay,
        )
        assert_same(params, expected, rtol=1e-6)
        assert_same(optax.tree.get(state, "nu"), moments["nu"], rtol=1e-6)


CASES = {
    "every step": {},
    "a": {"a": 0.3},
    "every second step": {"every": 2},
    "a predicate": {"every": lambda count: count % 3 == 0},
    "plain": {"a": 1.0},
}


@pytest.mark.parametrize("name", CASES)
def test_around_adam_it_is_adams_own_form(name):
    ours = run(fobt.forward_backtrack(optax.adam(RATE), QUANTIZER, **CASES[name]))
    own = run(fobt.forward_backtrack(RATE, QUANTIZER, **CASES[name]))
    for (params, state), (expected, expected_state) in zip(ours, own, strict=True):
        assert_same(params, expected)
        assert_same(state[0], expected_state)


def test_two_stage_of_one_step():
    for two_stage in (True, False):
        ours = run(fobt.forward_backtrack(optax.adam(RATE), QUANTIZER, every=100), two_stage=two_stage)
        assert_same(ours[-1][0], run(fobt.forward_backtrack(RATE, QUANTIZER), two_stage=two_stage)[-1][0])


def test_the_optimistic_form():
    ours = run(fobt.optimistic(fobt.forward_backtrack(optax.adam(RATE), QUANTIZER)))
    assert_same(ours[-1][0], run(fobt.optimistic(fobt.forward_backtrack(RATE, QUANTIZER)))[-1][0])


def test_clipping_in_the_optimizer_clips_both_gradients():
    """By value: a blend of clipped gradients is within the bounds."""
    clipped = optax.chain(optax.clip(1e-3), optax.adam(RATE))
    grads = jax.tree.map(lambda w: 1e-3 * jnp.sign(w), float_params())
    tx, own = fobt.forward_backtrack(clipped, QUANTIZER), fobt.forward_backtrack(RATE, QUANTIZER)
    large = jax.tree.map(lambda g: 1e6 * g, grads)
    updates, state = tx.update(large, tx.init(large), float_params(), grad_fn=lambda _: large)
    expected, expected_state = own.update(grads, own.init(grads), float_params(), grad_fn=lambda _: grads)
    assert_same((updates, state[1][0]), (expected, expected_state))


def test_another_optimizer_for_leaves_that_are_not_quantized():
    """Biases take the blended gradient with momentum; kernels do what they do with Adam."""
    sgd = optax.sgd(0.01, momentum=0.9)
    labels = {"W": "adam", "b": "sgd", "V": "adam"}
    tx = fobt.forward_backtrack(optax.partition({"adam": optax.adam(RATE), "sgd": sgd}, labels), QUANTIZER)
    params, own = float_params(), fobt.forward_backtrack(RATE, QUANTIZER)
    seen = []

    def grad_fn(weights):
        seen.append(jax.grad(loss_fn)(weights, *minibatch(0, 0)))
        return seen[-1]

    grads = jax.grad(loss_fn)(fobt.quantized_params(params, None, QUANTIZER), *minibatch(0, 0))
    updates, _ = tx.update(grads, tx.init(params), params, grad_fn=grad_fn)
    blend = 0.6 * grads["b"] + 0.4 * seen[0]["b"]
    np.testing.assert_allclose(updates["b"], -0.01 * blend, rtol=1e-6)
    trial = seen[0]
    expected, _ = own.update(grads, own.init(params), params, grad_fn=lambda _: trial)
    assert_same((updates["W"], updates["V"]), (expected["W"], expected["V"]))
    run(tx)


OTHERS = {
    "lamb": optax.lamb(RATE),
    "rmsprop": optax.rmsprop(RATE),
    "nadam": optax.nadam(RATE),
    "scheduled": optax.adam(optax.cosine_decay_schedule(RATE, 10)),
    "injected": optax.inject_hyperparams(optax.adamw)(RATE),
    "coupled decay": optax.chain(optax.add_decayed_weights(0.1), optax.adam(RATE)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_optimizers_that_divide_by_the_root(name):
    """With a trial gradient equal to the first, both corrected averages of its square are g², and so is the blend."""
    tx, params = OTHERS[name], float_params()
    method = fobt.forward_backtrack(tx, QUANTIZER, a=0.25)
    state, grads = tx.init(params), jax.grad(loss_fn)(params, *minibatch(0, 0))
    _, once = tx.update(grads, state, params)
    steps, after = method.update(grads, state, params, grad_fn=lambda _: grads)
    assert jax.tree.structure(after) == jax.tree.structure(once)
    assert np.all(np.isfinite(steps["W"]))
    v1, v = (np.asarray(optax.tree.get(s, "nu")["W"]) for s in (once, after))
    if name == "rmsprop":  # no bias correction
        np.testing.assert_allclose(np.sqrt(v), 0.25 * np.sqrt(v1) + 0.75 * np.sqrt(1.9 * v1), rtol=1e-4)
    elif name != "coupled decay":  # both averages are g²
        np.testing.assert_allclose(v, v1, rtol=1e-4)
        assert_same(steps, tx.update(grads, state, params)[0])
    run(method)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_a_trial_gradient_that_is_not_finite_gives_the_plain_step(bad):
    tx, params = optax.adamw(RATE), float_params()
    method, state = fobt.forward_backtrack(tx, QUANTIZER), tx.init(params)
    grads = jax.grad(loss_fn)(params, *minibatch(0, 0))
    got = method.update(grads, state, params, grad_fn=lambda _: {**grads, "b": grads["b"].at[0].set(bad)})
    assert_same(got, tx.update(grads, state, params))


def test_an_infinite_second_moment_pins_the_weight():
    tx, params = optax.adam(RATE), float_params()
    method, state = fobt.forward_backtrack(tx, QUANTIZER), tx.init(params)
    grads = jax.grad(loss_fn)(params, *minibatch(0, 0))
    huge = {**grads, "W": grads["W"].at[0, 0].set(1e20)}
    updates, state = method.update(huge, state, params, grad_fn=lambda _: grads)
    chex.assert_tree_all_finite(updates)
    updates, state = method.update(grads, state, params, grad_fn=lambda _: grads)
    chex.assert_tree_all_finite(updates)
    assert np.isinf(state[0].nu["W"][0, 0])
    assert updates["W"][0, 0] == 0


@pytest.mark.parametrize(
    "tx",
    [optax.sgd(RATE), optax.adabelief(RATE), optax.amsgrad(RATE), optax.adamax(RATE), optax.yogi(RATE)],
    ids=["sgd", "adabelief", "amsgrad", "adamax", "yogi"],
)
def test_optimizers_without_an_average_of_squares(tx):
    with pytest.raises(ValueError, match="the optimizer under forward_backtrack must keep a second moment"):
        fobt.forward_backtrack(tx, QUANTIZER)


@pytest.mark.parametrize(
    "given",
    [{"b1": 0.8}, {"mu_dtype": "bfloat16"}, {"weight_bounds": (-1, 1)}, {"grad_transform": optax.clip(1.0)}],
    ids=lambda given: next(iter(given)),
)
def test_arguments_that_the_optimizer_has_of_its_own(given):
    ((name, _),) = given.items()
    with pytest.raises(ValueError, match=rf"{name} must be left out with an optimizer, .*optax\.chain\("):
        fobt.forward_backtrack(optax.adam(RATE), QUANTIZER, **given)


def test_an_optimizer_that_counts_no_steps():
    tx, params = fobt.forward_backtrack(optax.rmsprop(RATE), QUANTIZER, every=2), float_params()
    with pytest.raises(ValueError, match=r"every must be 1 around an optimizer .* got 2: pass two_stage"):
        tx.update(params, tx.init(params), params, grad_fn=lambda weights: weights)
    tx.update(params, tx.init(params), params, grad_fn=lambda weights: weights, two_stage=True)
