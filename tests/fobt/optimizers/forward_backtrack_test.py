"""The transformations against the naive reference, the paper's toy problem, and the cost in gradients."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from toy_problem import ToyState, toy_loss, toy_preconditioner
from two_layers import B1, B2, EPS, LEARNING_RATE, PROJECTIONS, initial_params, loss_fn, minibatch, numpy_grads

import fobt

STEPS = 20


@pytest.mark.parametrize(
    ("name", "every", "weight_bounds"),
    # Which steps have two stages does not depend on the projection.
    [(name, 1, None) for name in PROJECTIONS]
    + [(name, every, None) for name in ("binary", "channels") for every in (None, 3)]
    + [("binary", every, (-1.0, 1.0)) for every in (None, 1, 3)],
)
def test_follows_the_reference(name, every, weight_bounds):
    """Params, quantized params and state agree after each of 20 steps; `every` None means plain steps only."""
    quantizer, projection = PROJECTIONS[name]
    projections = {"W": projection, "V": projection}
    a = 0.6
    with jax.enable_x64(True):
        tx = fobt.forward_backtrack(
            LEARNING_RATE, quantizer, a=a, every=every or 1, b1=B1, b2=B2, eps=EPS, weight_bounds=weight_bounds
        )
        params = jax.tree.map(jnp.asarray, initial_params(0))
        state = tx.init(params)

        @functools.partial(jax.jit, static_argnames="two_stage")
        def step(params, state, x, y, two_stage):
            _, grads, grad_fn = fobt.value_and_grad(loss_fn, quantizer)(params, state, x, y)
            updates, state = tx.update(grads, state, params, grad_fn=grad_fn, two_stage=two_stage)
            params = optax.apply_updates(params, updates)
            return params, state, fobt.quantized_params(params, state, quantizer)

        expected = initial_params(0)
        expected_state = reference.initial_state(expected)
        for t in range(1, STEPS + 1):
            x, y = minibatch(0, t)
            params, state, quantized = step(params, state, x, y, False if every is None else None)

            grads = numpy_grads(reference.quantized(expected, expected_state, projections), x, y)
            if every is not None and t % every == 0:
                expected, expected_state = reference.forward_backtrack_step(
                    expected,
                    expected_state,
                    grads,
                    lambda weights, x=x, y=y: numpy_grads(weights, x, y),
                    LEARNING_RATE,
                    a,
                    projections,
                    B1,
                    B2,
                    EPS,
                    weight_bounds,
                )
            else:
                expected, expected_state = reference.adam_step(
                    expected, expected_state, grads, LEARNING_RATE, B1, B2, EPS
                )
                if weight_bounds is not None:
                    expected |= {leaf: np.clip(expected[leaf], *weight_bounds) for leaf in projections}

            chex.assert_trees_all_close(params, expected, rtol=1e-9, atol=1e-11)
            chex.assert_trees_all_close(
                quantized, reference.quantized(expected, expected_state, projections), rtol=1e-9, atol=1e-11
            )
            chex.assert_trees_all_close(state.mu, expected_state["mu"], rtol=1e-9, atol=1e-11)
            chex.assert_trees_all_close(state.nu, expected_state["nu"], rtol=1e-9, atol=1e-11)
            assert state.count == t


@pytest.mark.slow
@pytest.mark.parametrize("b1", [0.0, 0.9])
def test_two_scales_follow_the_reference(b1):
    def projection(w, curvature):
        positive, negative, beta = reference.project_two_scales(w.ravel(), curvature.ravel(), reference.project_exact)
        return np.where(beta > 0, positive * beta, negative * beta).reshape(w.shape)

    quantizer = fobt.ternary(scale_per_sign=True, solver="exact")
    with jax.enable_x64(True):
        tx = fobt.forward_backtrack(LEARNING_RATE, quantizer, a=0.7, b1=b1, b2=B2, eps=EPS)
        params, expected = jax.tree.map(jnp.asarray, initial_params(1)), initial_params(1)
        state, expected_state = tx.init(params), reference.initial_state(expected)
        projections = {"W": projection, "V": projection}
        for t in range(STEPS):
            x, y = minibatch(1, t)
            _, grads, grad_fn = fobt.value_and_grad(loss_fn, quantizer)(params, state, x, y)
            updates, state = tx.update(grads, state, params, grad_fn=grad_fn)
            params = optax.apply_updates(params, updates)
            expected, expected_state = reference.forward_backtrack_step(
                expected,
                expected_state,
                numpy_grads(reference.quantized(expected, expected_state, projections), x, y),
                lambda weights, x=x, y=y: numpy_grads(weights, x, y),
                LEARNING_RATE,
                0.7,
                projections,
                b1,
                B2,
                EPS,
            )
            chex.assert_trees_all_close(params, expected, rtol=1e-9, atol=1e-11)


# --- The toy problem c |w|^(3/2) of the paper, exact derivatives injected ------------------------------------------


def toy_trajectory(w, c, a, steps, two_stage):
    tx = fobt.forward_backtrack(1.0, fobt.binary(), a=a, preconditioner=toy_preconditioner(c))
    params = jnp.full((1, 1), w)
    state = tx.init(params)
    trajectory = [params.item()]
    for _ in range(steps):
        _, grads, grad_fn = fobt.value_and_grad(toy_loss, fobt.binary())(params, None, c)
        updates, state = tx.update(grads, state, params, grad_fn=grad_fn, two_stage=two_stage)
        params = optax.apply_updates(params, updates)
        trajectory.append(params.item())
    return np.array(trajectory)


@pytest.mark.slow
@pytest.mark.parametrize(("w", "c"), [(0.3, 1.0), (-2.0, 5.0)])
def test_loss_aware_quantization_alternates_for_ever_on_the_toy_problem(w, c):
    with jax.enable_x64(True):
        trajectory = toy_trajectory(w, c, 0.6, 50, two_stage=False)
    np.testing.assert_allclose(trajectory, w * (-1.0) ** np.arange(51), rtol=1e-13)
    np.testing.assert_allclose(trajectory, reference.laq_toy(w, c, 50), rtol=1e-13)


@pytest.mark.slow
@pytest.mark.parametrize("a", [0.55, 0.6, 0.7, 0.75, 0.8, 0.95])
@pytest.mark.parametrize(("w", "c"), [(0.3, 1.0), (-2.0, 5.0)])
def test_the_method_contracts_by_3_minus_4a_on_the_toy_problem(w, c, a):
    with jax.enable_x64(True):
        trajectory = toy_trajectory(w, c, a, 12, two_stage=True)
    expected = w * (3 - 4 * a) ** np.arange(13)
    np.testing.assert_allclose(trajectory, expected, rtol=1e-12, atol=1e-15 * abs(w))
    np.testing.assert_allclose(
        trajectory, reference.forward_backtrack_toy(w, c, a, 12), rtol=1e-12, atol=1e-15 * abs(w)
    )


def test_the_method_stands_still_at_a_half_on_the_toy_problem():
    with jax.enable_x64(True):
        np.testing.assert_allclose(toy_trajectory(0.3, 1.0, 0.5, 12, two_stage=True), 0.3, rtol=1e-13)


# --- Limit cases ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("two_stage", [None, True])
def test_a_of_one_is_adam_at_the_same_gradients(two_stage):
    tx, adam = fobt.forward_backtrack(1e-2, fobt.binary(), a=1.0), optax.adam(1e-2)
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), initial_params(2))
    state, adam_state = tx.init(params), adam.init(params)
    adam_params = params
    for t in range(5):
        grads = jax.grad(loss_fn)(fobt.quantized_params(params, state, fobt.binary()), *minibatch(2, t))
        updates, state = tx.update(grads, state, params, grad_fn=must_not_be_called, two_stage=two_stage)
        adam_updates, adam_state = adam.update(grads, adam_state, adam_params)
        params = optax.apply_updates(params, updates)
        adam_params = optax.apply_updates(adam_params, adam_updates)
        chex.assert_trees_all_equal(params, adam_params)
        chex.assert_trees_all_equal(state, adam_state[0])


def must_not_be_called(weights):
    raise AssertionError("a trial gradient was asked for")


def test_the_identity_quantizer_looks_ahead_at_the_latents():
    """The method without quantization on ½ Lw² with b1 = 0 and a constant curvature: w ← w (1 - x + (1 - a) x²)."""
    curvature, learning_rate, a = 2.0, 0.3, 0.4
    constant = fobt.Preconditioner(
        init=lambda params: ToyState(jnp.zeros((), jnp.int32)),
        update=lambda grads, state: (grads, jax.tree.map(jnp.ones_like, grads), ToyState(state.count + 1)),
        with_curvature=lambda state, curvature: (curvature, state),
    )
    tx = fobt.forward_backtrack(learning_rate, fobt.full_precision(), a=a, preconditioner=constant)
    params = jnp.array([[1.0, -3.0]])
    updates, _ = tx.update(curvature * params, tx.init(params), params, grad_fn=lambda w: curvature * w)
    x = curvature * learning_rate
    np.testing.assert_allclose(params + updates, params * (1 - x + (1 - a) * x**2), rtol=1e-6)


# --- The cost in gradients -----------------------------------------------------------------------------------------


def counting(calls, traces):
    """A gradient function that counts its traces and, by a callback, its evaluations."""

    def grad_fn(weights):
        traces.append(1)
        jax.debug.callback(lambda: calls.append(1))
        return jax.tree.map(lambda w: 2 * w, weights)

    return grad_fn


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize(
    ("every", "two_stage", "expected"),
    [
        (1, None, [1, 1, 1, 1, 1, 1]),
        (3, None, [0, 0, 1, 0, 0, 1]),
        (lambda count: count >= 5, None, [0, 0, 0, 0, 1, 1]),
        (1, False, [0, 0, 0, 0, 0, 0]),
        (3, True, [1, 1, 1, 1, 1, 1]),
    ],
)
def test_a_two_stage_step_evaluates_grad_fn_once_and_a_plain_one_never(every, two_stage, expected, jit):
    calls, traces = [], []
    grad_fn = counting(calls, traces)
    tx = fobt.forward_backtrack(1e-2, fobt.binary(), every=every)
    params = jnp.array([[1.0, -2.0]])
    state = tx.init(params)

    def update(grads, state, params):
        return tx.update(grads, state, params, grad_fn=grad_fn, two_stage=two_stage)

    if jit:
        update = jax.jit(update)
    evaluated = []
    for _ in expected:
        before = len(calls)
        _, state = update(2 * params, state, params)
        jax.effects_barrier()
        evaluated.append(len(calls) - before)
    assert evaluated == expected
    if jit:
        assert len(traces) == (two_stage is not False)


def test_a_traced_two_stage_selects_in_one_program():
    calls, traces = [], []
    grad_fn = counting(calls, traces)
    tx = fobt.forward_backtrack(1e-2, fobt.binary())
    params = jnp.array([[1.0, -2.0]])

    @jax.jit
    def update(state, two_stage):
        return tx.update(2 * params, state, params, grad_fn=grad_fn, two_stage=two_stage)

    for two_stage in (True, False, True):
        state = tx.init(params)
        traced = update(state, two_stage)
        jax.effects_barrier()
        straight = tx.update(2 * params, state, params, grad_fn=lambda w: 2 * w, two_stage=two_stage)
        chex.assert_trees_all_close(traced, straight, rtol=1e-6)
    assert len(calls) == 2
    assert len(traces) == 1
