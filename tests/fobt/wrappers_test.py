"""Wrappers around the method, as users write them: they train, or fail with one sentence that says what to write."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fobt

QUANTIZER = fobt.binary()
RATE = 0.05
METHOD = fobt.forward_backtrack(RATE, QUANTIZER)
X = jax.random.normal(jax.random.key(0), (16, 4))
Y = X @ jax.random.normal(jax.random.key(1), (4, 3))


def first_params():
    return {"kernel": jax.random.normal(jax.random.key(2), (4, 3)), "bias": jnp.zeros(3)}


def loss_fn(weights, x, y):
    return jnp.mean((x @ weights["kernel"] + weights["bias"][None] - y) ** 2)


def train(tx, steps=4, quantizer=QUANTIZER):
    training = fobt.Training(tx, quantizer)
    step, params, state = jax.jit(training.step(loss_fn)), first_params(), training.init(first_params())
    for _ in range(steps):
        params, state, _ = step(params, state, X, Y)
    assert step._cache_size() == 1
    return params


INJECT = optax.inject_hyperparams(fobt.forward_backtrack, static_args="quantizer")
WRAPPED = {
    "inject_hyperparams": INJECT(RATE, QUANTIZER),
    "inject_hyperparams with a schedule": INJECT(optax.constant_schedule(RATE), QUANTIZER),
    "inject_hyperparams with everything": INJECT(
        RATE, QUANTIZER, a=0.6, every=1, b1=0.9, b2=0.999, eps=1e-8, mu_dtype="float32", weight_bounds=(-9, 9)
    ),
    "apply_if_finite": optax.apply_if_finite(METHOD, 3),
    "MultiSteps": optax.MultiSteps(METHOD, 1),
    "chain": optax.chain(METHOD),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_a_wrapped_method_is_the_method(name):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), train(WRAPPED[name]), train(METHOD)
    )


def test_rules_by_path_need_no_static_name():
    quantizer = fobt.per_leaf(("kernel", QUANTIZER))
    params = train(optax.inject_hyperparams(fobt.forward_backtrack)(RATE, quantizer), quantizer=quantizer)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), params, train(METHOD))


def test_arrays_of_no_dimension_are_numbers():
    numbers = {"a": jnp.float32(0.6), "every": jnp.int32(1), "b1": np.float32(0.9), "b2": jnp.float32(0.999)}
    params = train(fobt.forward_backtrack(jnp.float32(RATE), QUANTIZER, eps=jnp.float32(1e-8), **numbers))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), params, train(METHOD))


def test_a_quantizer_taken_for_a_schedule():
    with pytest.raises(
        ValueError, match=r"name it: inject_hyperparams\(fobt\.forward_backtrack, static_args='quantizer'\)"
    ):
        optax.inject_hyperparams(fobt.forward_backtrack)(RATE, QUANTIZER).init(first_params())
    with pytest.raises(ValueError, match=r"weights must be floating, got dtype int32\.$"):
        QUANTIZER(jnp.ones((2, 2), jnp.int32))


def test_a_predicate_taken_for_a_schedule():
    tx = INJECT(RATE, QUANTIZER, every=lambda count: count % 2 == 0)
    with pytest.raises(ValueError, match=r"every must be .* name it: static_args=\('quantizer', 'every'\)"):
        tx.init(first_params())


def test_a_wrapper_that_drops_extra_arguments():
    tx = optax.GradientTransformation(METHOD.init, lambda grads, state, params: METHOD.update(grads, state, params))
    with pytest.raises(ValueError, match=r"grad_fn must be .*update\(grads, state, params, grad_fn=grad_fn\)"):
        train(tx)


@pytest.mark.parametrize("a", [1, 1.0, np.float32(1), jnp.float32(1)])
def test_one_gradient_needs_no_grad_fn(a):
    tx, adam, params = fobt.forward_backtrack(RATE, QUANTIZER, a=a), optax.adam(RATE), first_params()
    grads = jax.grad(loss_fn)(fobt.quantized_params(params, None, QUANTIZER), X, Y)
    updates, _ = tx.update(grads, tx.init(params), params)
    jax.tree.map(np.testing.assert_array_equal, updates, adam.update(grads, adam.init(params), params)[0])
