"""The form with one gradient per step against the naive reference, closed forms, and the optimizers it must equal."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from two_layers import PROJECTIONS, initial_params, loss_fn, minibatch, numpy_grads

import fobt

LEARNING_RATE, B1, B2, EPS = 0.05, 0.9, 0.99, 1e-8
GRAD = jax.grad(loss_fn)


def make_step(tx, quantizer):
    @jax.jit
    def step(params, state, x, y):
        trial = fobt.quantized_trial_params(params, state, quantizer, tx)
        updates, state = tx.update(GRAD(trial, x, y), state, params)
        return optax.apply_updates(params, updates), state, trial

    return step


@pytest.mark.parametrize(
    ("name", "weight_bounds"), [(name, None) for name in PROJECTIONS] + [("binary", (-1.0, 1.0)), ("identity", None)]
)
def test_follows_the_reference(name, weight_bounds):
    """20 steps agree with those of the two-stage recursion whose current gradient is g*ₜ₋₁.

    To 1e-5, because ε guards √v in the trial projection here, and the bias-corrected √v̂ there.
    """
    quantizer, projection = PROJECTIONS.get(name, (fobt.full_precision(), None))
    projections = {} if projection is None else {"W": projection, "V": projection}
    a = 0.6
    adam = (LEARNING_RATE, a, projections, B1, B2, EPS, weight_bounds)
    with jax.enable_x64(True):
        tx = fobt.optimistic(
            fobt.forward_backtrack(LEARNING_RATE, quantizer, a=a, b1=B1, b2=B2, eps=EPS, weight_bounds=weight_bounds)
        )
        step = make_step(tx, quantizer)
        params = jax.tree.map(jnp.asarray, initial_params(0))
        state = tx.init(params)
        expected = initial_params(0)
        expected_state = reference.initial_state(expected)
        last = {leaf: np.zeros_like(weights) for leaf, weights in expected.items()}
        for t in range(1, 21):
            x, y = minibatch(0, t)
            params, state, trial = step(params, state, x, y)
            visited = []
            reference.forward_backtrack_step(
                expected, expected_state, last, lambda weights, v=visited, g=last: v.append(weights) or g, *adam
            )
            (expected_trial,) = visited
            grads = numpy_grads(expected_trial, x, y)
            expected, expected_state = reference.forward_backtrack_step(
                expected, expected_state, last, lambda _, g=grads: g, *adam
            )
            last = grads
            chex.assert_trees_all_close(trial, expected_trial, rtol=1e-5, atol=1e-8)
            chex.assert_trees_all_close(params, expected, rtol=1e-5, atol=1e-8)
            chex.assert_trees_all_close(state.inner.mu, expected_state["mu"], rtol=1e-5, atol=1e-8)
            chex.assert_trees_all_close(state.inner.nu, expected_state["nu"], rtol=1e-5, atol=1e-8)
            chex.assert_trees_all_close(state.trial_grads, last, rtol=1e-5, atol=1e-8)


@pytest.mark.slow
def test_a_of_one_is_loss_aware_quantization_one_step_behind():
    """The trial point is then the next iterate, so the trial weights are those at which LAQ takes its gradients."""
    quantizer = fobt.ternary(solver="exact")
    adam = optax.adam(LEARNING_RATE)
    with jax.enable_x64(True):
        tx = fobt.optimistic(fobt.forward_backtrack(LEARNING_RATE, quantizer, a=1.0))
        step = make_step(tx, quantizer)
        laq_params = jax.tree.map(jnp.asarray, initial_params(0))
        laq_state = adam.init(laq_params)
        grads = GRAD(fobt.quantized_params(laq_params, laq_state, quantizer), *minibatch(0, 0))
        params, state = laq_params, tx.init(laq_params)._replace(trial_grads=grads)
        for t in range(1, 10):
            updates, laq_state = adam.update(grads, laq_state, laq_params)
            laq_params = optax.apply_updates(laq_params, updates)
            laq_weights = fobt.quantized_params(laq_params, laq_state, quantizer)
            grads = GRAD(laq_weights, *minibatch(0, t))
            params, state, trial = step(params, state, *minibatch(0, t))
            chex.assert_trees_all_close(trial, laq_weights, rtol=1e-9)
            chex.assert_trees_all_close(params, laq_params, rtol=1e-9)
            chex.assert_trees_all_close(state.inner, laq_state[0], rtol=1e-9)


class CountState(NamedTuple):
    count: jax.Array


EXACT_CURVATURE = fobt.Preconditioner(
    init=lambda params: CountState(jnp.zeros((), jnp.int32)),
    update=lambda grads, state: (grads, jax.tree.map(jnp.ones_like, grads), CountState(state.count + 1)),
    with_curvature=lambda state, curvature: (curvature, state),
)


@pytest.mark.parametrize("a", [0.2, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("x", [0.3, 0.7, 1.2, 1.9, 2.1])
def test_contraction_on_a_quadratic(a, x):
    """On ½ w² the pair (w, last trial gradient) is multiplied by a matrix of known trace and determinant."""
    with jax.enable_x64(True):
        tx = fobt.optimistic(fobt.forward_backtrack(x, fobt.full_precision(), a=a, preconditioner=EXACT_CURVATURE))
        params = jnp.ones(1)
        state = tx.init(params)
        pairs = []
        for _ in range(4):
            pairs.append((params.item(), state.trial_grads.item()))
            updates, state = tx.update(
                fobt.quantized_trial_params(params, state, fobt.full_precision(), tx), state, params
            )
            params = optax.apply_updates(params, updates)
        before, after = np.array(pairs[:2]).T, np.array(pairs[1:3]).T
        matrix = after @ np.linalg.inv(before)
        np.testing.assert_allclose(np.trace(matrix), 1 - (2 - a) * x, rtol=1e-9)
        np.testing.assert_allclose(np.linalg.det(matrix), -(1 - a) * x, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(matrix @ matrix @ pairs[1], pairs[3], rtol=1e-9)
        assert (np.abs(np.linalg.eigvals(matrix)).max() < 1) == (x < 2 / (3 - 2 * a))


@pytest.mark.slow
def test_momentum_carries_to_the_points_of_nesterovs_accelerated_gradient():
    """Other optimizers have the guess 0: trial points of heavy-ball momentum are the iterates of Optax's Nesterov."""
    with jax.enable_x64(True):
        tx, nesterov = optax.sgd(0.01, momentum=0.9), optax.sgd(0.01, momentum=0.9, nesterov=True)
        params = expected = jax.tree.map(jnp.asarray, initial_params(0))
        state, expected_state = tx.init(params), nesterov.init(expected)
        for t in range(10):
            trial = fobt.quantized_trial_params(params, state, fobt.full_precision(), tx)
            chex.assert_trees_all_close(trial, expected, rtol=1e-12)
            grads = GRAD(trial, *minibatch(0, t))
            updates, state = tx.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            updates, expected_state = nesterov.update(grads, expected_state)
            expected = optax.apply_updates(expected, updates)


@pytest.mark.slow
def test_nesterov_with_adam_follows_its_formula():
    """ŵ* is the projection of w - η b₁m/c₁(t+1) ⊘ (ε + √(b₂v/c₂(t+1))) with the curvature √v."""
    params = initial_params(0)
    projections = dict.fromkeys(("W", "V"), PROJECTIONS["linear3"][1])
    with jax.enable_x64(True):
        tx = optax.adam(LEARNING_RATE, B1, B2, EPS)
        jax_params = jax.tree.map(jnp.asarray, params)
        state, expected = tx.init(jax_params), reference.initial_state(params)
        for t in range(1, 6):
            grads = numpy_grads(params, *minibatch(0, t))
            params, expected = reference.adam_step(params, expected, grads, LEARNING_RATE, B1, B2, EPS)
            updates, state = tx.update(jax.tree.map(jnp.asarray, grads), state, jax_params)
            jax_params = optax.apply_updates(jax_params, updates)
            moved = {}
            for leaf, w in params.items():
                curvature = EPS + np.sqrt(B2 * expected["nu"][leaf] / (1 - B2 ** (t + 1)))
                moved[leaf] = w - LEARNING_RATE * B1 * expected["mu"][leaf] / (1 - B1 ** (t + 1)) / curvature
            chex.assert_trees_all_close(
                fobt.quantized_trial_params(jax_params, state, PROJECTIONS["linear3"][0], tx),
                reference.quantized(moved, expected, projections),
                rtol=1e-9,
            )


@pytest.mark.slow
@pytest.mark.parametrize("optimistic", [False, True])
def test_without_momentum_or_a_last_gradient_the_trial_point_is_the_current_one(optimistic):
    quantizer = fobt.binary()
    tx = optax.adam(LEARNING_RATE, b1=0.0)
    if optimistic:
        tx = fobt.optimistic(fobt.forward_backtrack(LEARNING_RATE, quantizer))
    params = jax.tree.map(jnp.float32, initial_params(0))
    state = tx.init(params)
    if not optimistic:
        _, state = tx.update(GRAD(params, *minibatch(0, 0)), state, params)
    chex.assert_trees_all_close(
        fobt.quantized_trial_params(params, state, quantizer, tx),
        fobt.quantized_params(params, state, quantizer),
        rtol=1e-6,
    )


@pytest.mark.slow
def test_a_two_stage_state_goes_on_with_one_gradient():
    """A restart: any state of the two-stage method can be carried on, and back."""
    quantizer = fobt.binary()
    two_stage = fobt.forward_backtrack(LEARNING_RATE, quantizer)
    tx = fobt.optimistic(two_stage)
    params = jax.tree.map(jnp.float32, initial_params(0))
    _, grads, grad_fn = fobt.value_and_grad(loss_fn, quantizer)(params, two_stage.init(params), *minibatch(0, 0))
    _, inner = two_stage.update(grads, two_stage.init(params), params, grad_fn=grad_fn)
    state = tx.init(params)._replace(inner=inner)
    step = make_step(tx, quantizer)
    for t in range(3):
        params, state, _ = step(params, state, *minibatch(0, t))
    assert state.inner.count == 4
    chex.assert_trees_all_equal_shapes_and_dtypes(state.inner, inner)
    _, inner = two_stage.update(grads, state.inner, params, grad_fn=grad_fn)
    assert inner.count == 5


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_dtypes_stay_and_the_second_call_compiles_nothing(dtype):
    quantizer = fobt.ternary()
    tx = optax.chain(optax.clip(1.0), fobt.optimistic(fobt.forward_backtrack(LEARNING_RATE, quantizer)))
    params = jax.tree.map(lambda w: jnp.asarray(w, dtype), initial_params(0))
    state = tx.init(params)
    step = make_step(tx, quantizer)
    x, y = jax.tree.map(lambda array: jnp.asarray(array, dtype), minibatch(0, 0))
    for _ in range(3):
        new_params, new_state, trial = step(params, state, x, y)
        chex.assert_trees_all_equal_shapes_and_dtypes((new_params, new_state, trial), (params, state, params))
        params, state = new_params, new_state
    assert step._cache_size() == 1
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_is_no_guess(bad):
    """It gives a plain step along the guess before it, and the next guess is 0 in its place."""
    quantizer, (x, y) = fobt.binary(), minibatch(0, 0)
    tx = fobt.optimistic(fobt.forward_backtrack(LEARNING_RATE, quantizer))
    params = jax.tree.map(jnp.float32, initial_params(0))
    updates, state = tx.update(GRAD(params, x, y), tx.init(params), params)
    params = optax.apply_updates(params, updates)
    grads = GRAD(params, x, y)
    bad_grads = {**grads, "W": grads["W"].at[0, 1].set(bad)}
    updates, bad_state = tx.update(bad_grads, state, params)
    chex.assert_trees_all_close(updates, tx.update(state.trial_grads, state, params, two_stage=False)[0], rtol=1e-6)
    params = optax.apply_updates(params, updates)
    good_state = bad_state._replace(trial_grads={**grads, "W": grads["W"].at[0, 1].set(0)})
    trials = [fobt.quantized_trial_params(params, s, quantizer, tx) for s in (bad_state, good_state)]
    chex.assert_trees_all_equal(*trials)
    chex.assert_tree_all_finite(trials)
    chex.assert_trees_all_equal(*(tx.update(grads, s, params)[0] for s in (bad_state, good_state)))


def test_a_schedule_is_read_at_the_step_that_is_foreseen():
    """The last step before a learning rate of 0 moves the weights; the trial point after it is the current one."""
    schedule = optax.piecewise_constant_schedule(0.1, {1: 0.0})
    tx = optax.adam(schedule)
    params = jax.tree.map(jnp.float32, initial_params(0))
    updates, state = tx.update(GRAD(params, *minibatch(0, 0)), tx.init(params), params)
    params = optax.apply_updates(params, updates)
    chex.assert_trees_all_equal(
        fobt.quantized_trial_params(params, state, fobt.full_precision(), tx),
        fobt.quantized_params(params, state, fobt.full_precision()),
    )


def test_a_parameter_may_be_called_trial_grads():
    tx = optax.adam(LEARNING_RATE)
    params = {"trial_grads": jnp.ones((2, 2))}
    chex.assert_trees_all_equal(fobt.quantized_trial_params(params, tx.init(params), fobt.binary(), tx), params)


def test_a_state_without_second_moment_is_an_error():
    tx = optax.sgd(0.1)
    params = {"kernel": jnp.ones((2, 2))}
    with pytest.raises(ValueError, match="second moment `nu` that fits the quantized leaf 'kernel'"):
        fobt.quantized_trial_params(params, tx.init(params), fobt.binary(), tx)
