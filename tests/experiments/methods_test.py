"""Baselines and controls against values worked out by hand, and the limit cases in which they are plain LAQ."""

from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from training_cases import small_digits

import fobt
from experiments.core.config import MethodName
from experiments.core.network import split_model
from experiments.core.step import take_step
from experiments.methods import controls, straight_through
from experiments.methods.method import Hyperparameters, make_quantizer
from experiments.methods.rows import Row
from experiments.models import NETWORKS

KEY = jax.random.key(0)


def gradient(model_side: straight_through.ModelSide, params, cotangent):
    """Gradient of Σ cotangent·ŵ with respect to the parameters."""
    return jax.grad(lambda p: jnp.sum(jnp.asarray(cotangent) * model_side.forward(p, KEY)[0]))(params)


# Quantizers in the model


def test_binary_connect_is_the_sign_and_passes_gradients():
    weights = jnp.array([[0.3, -2.0, 0.0]])
    quantized, (codes,) = straight_through.binary_connect().forward(weights, KEY)
    np.testing.assert_array_equal(quantized, [[1, -1, 1]])
    np.testing.assert_array_equal(codes, [[1, -1, 1]])
    np.testing.assert_array_equal(gradient(straight_through.binary_connect(), weights, [[2.0, 3, 4]]), [[2, 3, 4]])


def test_stochastic_binary_connect_draws_the_hard_sigmoid_and_evaluates_the_sign():
    model_side = straight_through.stochastic_binary_connect()
    values = np.float32([-1.5, -1.0, -0.4, 0.0, 0.5, 1.0, 3.0])
    weights = jnp.asarray(np.repeat(values[:, None], 40_000, axis=1))
    quantized, (codes,) = model_side.forward(weights, KEY)
    np.testing.assert_array_equal(quantized, codes)
    assert set(np.unique(codes)) == {-1, 1}
    # Mean 2p - 1 of p = clip((w + 1)/2, 0, 1); four standard errors.
    np.testing.assert_allclose(np.mean(quantized, axis=1), np.clip(values, -1, 1), atol=4 / np.sqrt(40_000))
    assert not np.array_equal(quantized, model_side.forward(weights, jax.random.key(1))[0])
    np.testing.assert_array_equal(model_side.evaluated(weights)[:, 0], [-1, -1, -1, 1, 1, 1, 1])


def test_every_leaf_draws_on_its_own():
    weights = {"a": jnp.zeros((8, 64)), "b": jnp.zeros((8, 64)), "bias": jnp.zeros(3)}
    quantized, codes = straight_through.stochastic_binary_connect().forward(weights, KEY)
    assert not np.array_equal(quantized["a"], quantized["b"])
    np.testing.assert_array_equal(quantized["bias"], weights["bias"])
    assert len(codes) == 2


def test_ternary_weights_keep_the_mean_above_the_threshold():
    # mean|w| = 0.5, Δ = 0.35: 0.9, -0.8 and 0.4 are kept, their mean magnitude is 0.7.
    weights = jnp.array([[0.9, -0.8], [0.4, 0.3], [-0.3, 0.3]])
    model_side = straight_through.ternary_weights()
    quantized, (codes,) = model_side.forward(weights, KEY)
    np.testing.assert_allclose(quantized, [[0.7, -0.7], [0.7, 0], [0, 0]], rtol=1e-6)
    np.testing.assert_array_equal(codes, [[1, -1], [1, 0], [0, 0]])
    np.testing.assert_allclose(gradient(model_side, weights, [[1.0, 2], [3, 4], [5, 6]]), [[1, 2], [3, 4], [5, 6]])
    np.testing.assert_array_equal(model_side.evaluated(jnp.zeros((2, 2))), 0)


def test_dorefa_has_uniform_levels_of_the_squashed_weights():
    weights = jnp.arctanh(jnp.array([[-0.8, -0.1, 0.2, 0.8]]))
    # t = tanh(w)/1.6 + 1/2 = 0, 0.4375, 0.625, 1. With 2 bits 3t = 0, 1.31, 1.875, 3; with 3 bits 7t = 0, 3.06, 4.4, 7.
    for bits, expected in [(2, [0, 1, 2, 3]), (3, [0, 3, 4, 7])]:
        quantized, (codes,) = straight_through.dorefa(bits).forward(weights, KEY)
        np.testing.assert_array_equal(codes, [expected])
        np.testing.assert_allclose(quantized, [2 * np.array(expected) / (2**bits - 1) - 1], rtol=1e-5, atol=1e-6)
    # ŵ = tanh(w)/max|tanh| straight through the rounding: for weights other than the largest dŵ/dw = (1 - tanh²)/0.8.
    slopes = gradient(straight_through.dorefa(2), weights, [[0.0, 1, 1, 0]])
    np.testing.assert_allclose(slopes[0, 1:3], [(1 - 0.1**2) / 0.8, (1 - 0.2**2) / 0.8], rtol=1e-5)
    assert np.all(np.isfinite(straight_through.dorefa(2).evaluated(jnp.zeros((2, 2)))))


def test_dorefa_with_one_bit_is_the_sign_times_the_mean_magnitude():
    np.testing.assert_allclose(straight_through.dorefa(1).evaluated(jnp.array([[1.0, -2.0, 3.0]])), [[2, -2, 2]])


def test_learned_step_size_follows_its_definition():
    # s = 0.5, levels -2 to 1: w/s = 1.8, -1.2, 0.2, -3 becomes 1, -1, 0, -2.
    params = {"network": jnp.array([[0.9, -0.6, 0.1, -1.5]]), "step_sizes": [jnp.array(0.5)]}
    lsq = straight_through.LearnedStepSize(2)
    quantized, (codes,) = lsq.forward(params, KEY)
    np.testing.assert_array_equal(codes, [[1, -1, 0, -2]])
    np.testing.assert_allclose(quantized, [[0.5, -0.5, 0, -1]], rtol=1e-6)
    np.testing.assert_allclose(lsq.evaluated(params), quantized)
    slopes = jax.grad(lambda p: jnp.sum(jnp.array([[1.0, 2, 3, 4]]) * lsq.forward(p, KEY)[0]))(params)
    np.testing.assert_allclose(slopes["network"], [[0, 2, 3, 0]], atol=1e-6)  # none outside of the range
    # dŵ/ds: the level outside of the range, otherwise round(w/s) - w/s; times 1/√(4·1).
    expected = (1 * 1 + 2 * (-1 + 1.2) + 3 * (0 - 0.2) + 4 * -2) / 2
    np.testing.assert_allclose(slopes["step_sizes"][0], expected, rtol=1e-5)


def test_learned_step_sizes_start_at_twice_the_mean_magnitude():
    params = straight_through.LearnedStepSize(3).init({"w": jnp.array([[1.0, -3.0]]), "b": jnp.ones(2)})
    (step_size,) = params["step_sizes"]
    np.testing.assert_allclose(step_size, 2 * 2 / np.sqrt(3), rtol=1e-6)


# Controls


def quadratic(weights):
    return jnp.sum(jnp.array([[1.0, 4.0, 2.0]]) * (weights - jnp.array([[1.0, -2.0, 0.5]])) ** 2) / 2


def test_sam_takes_the_gradient_at_the_perturbed_quantized_weights():
    quantizer = fobt.binary()
    params = jnp.array([[0.3, -0.2, 0.1]])
    optimizer = optax.adam(0.1)
    state = optimizer.init(params)
    quantized = fobt.quantized_params(params, state, quantizer)  # ±0.2
    grads = jax.grad(quadratic)(quantized)
    perturbed = quantized + 0.05 * grads / jnp.linalg.norm(grads)
    expected, _ = optimizer.update(jax.grad(quadratic)(perturbed), state, params)
    sam = controls.sharpness_aware(optimizer, quantizer, rho=0.05)
    updates, state = sam.update(grads, sam.init(params), params, grad_fn=jax.grad(quadratic), two_stage=True)
    np.testing.assert_allclose(updates, expected, rtol=1e-6)
    # The first update of Adam has magnitude η whatever the gradient; its second moment tells them apart.
    (nu,) = jax.tree.leaves(optax.tree_utils.tree_get(state, "nu"))
    np.testing.assert_allclose(nu, 0.001 * jax.grad(quadratic)(perturbed) ** 2, rtol=1e-5)
    np.testing.assert_allclose(fobt.quantized_params(params, state, quantizer).shape, params.shape)


def test_two_steps_are_two_loss_aware_steps_on_the_same_loss():
    quantizer = fobt.ternary()
    optimizer = optax.adam(0.1)
    params = expected = jnp.array([[0.3, -0.2, 0.1]])
    twice = controls.twice(optimizer, quantizer)
    state, expected_state = twice.init(params), optimizer.init(expected)
    for _ in range(5):
        _, grads, grad_fn = fobt.value_and_grad(quadratic, quantizer)(params, state)
        updates, state = twice.update(grads, state, params, grad_fn=grad_fn)
        params = optax.apply_updates(params, updates)
    for _ in range(10):
        _, grads, _ = fobt.value_and_grad(quadratic, quantizer)(expected, expected_state)
        updates, expected_state = optimizer.update(grads, expected_state, expected)
        expected = optax.apply_updates(expected, updates)
    np.testing.assert_allclose(params, expected, rtol=1e-5)
    assert state[0].count == 10


def test_the_schedule_of_two_steps_counts_minibatches():
    row = Row(method="two_steps", grid="binary")
    method = row.build(Hyperparameters(lambda count: jnp.where(count < 3, 0.1, 0.0)))
    params = jnp.array([[0.3, -0.2, 0.1]])
    state = method.optimizer.init(params)
    moved = []
    for _ in range(5):
        _, grads, grad_fn = fobt.value_and_grad(quadratic, method.quantizer)(params, state)
        updates, state = method.optimizer.update(grads, state, params, grad_fn=grad_fn, two_stage=True)
        moved.append(bool(jnp.any(updates != 0)))
    assert moved == [True, True, True, False, False]


# Methods


@pytest.mark.parametrize("method", get_args(MethodName))
def test_every_method_can_store_the_first_moment_in_bfloat16(method: str):
    (row,) = small_digits(methods=(method,), bits=2).rows()
    params = jax.eval_shape(lambda: split_model(NETWORKS["digits_cnn"](nnx.Rngs(0), 0.25))[1])

    def dtypes(mu_dtype: str | None) -> dict[str, set]:
        built = row.build(Hyperparameters(lambda count: 0.1, mu_dtype=mu_dtype, steps=8))
        state = jax.eval_shape(lambda params: built.optimizer.init(built.init(params)), params)
        found = {name: optax.tree_utils.tree_get_all_with_path(state, name) for name in ("mu", "nu")}
        return {
            name: {leaf.dtype for _, tree in trees for leaf in jax.tree.leaves(tree)} for name, trees in found.items()
        }

    assert dtypes("bfloat16") == {"mu": {jnp.dtype(jnp.bfloat16)}, "nu": {jnp.dtype(jnp.float32)}}
    assert dtypes(None) == {"mu": {jnp.dtype(jnp.float32)}, "nu": {jnp.dtype(jnp.float32)}}


@pytest.mark.parametrize(
    ("row", "bits", "codes"),
    [
        (Row(method="full_precision"), 32, 0),
        (Row(method="binary_connect"), 1, 2),
        (Row(method="binary_connect_stochastic"), 1, 2),
        (Row(method="bwn"), 1 + 32 * 2 / 192, 2),
        (Row(method="twn"), 2 + 32 * 2 / 192, 2),
        (Row(method="laq", grid="binary"), 1 + 32 * 2 / 192, 2),
        (Row(method="laq", grid="ternary", solver="exact", scales=2), 2 + 64 * 2 / 192, 2),
        (Row(method="laq", grid="ternary", solver="alternating"), 2 + 32 * 2 / 192, 2),
        (Row(method="laq", grid="linear3"), 3 + 32 * 2 / 192, 2),
        (Row(method="nadam", grid="binary"), 1 + 32 * 2 / 192, 2),
        (Row(method="nesterov", grid="binary"), 1 + 32 * 2 / 192, 2),
        (Row(method="optimistic", grid="binary", a=0.6), 1 + 32 * 2 / 192, 2),
        (Row(method="laq", grid="logarithmic4"), 4 + 32 * 2 / 192, 2),
        (Row(method="dorefa", bits=1), 1 + 32 * 2 / 192, 2),
        (Row(method="dorefa", bits=4), 4, 2),
        (Row(method="lsq", bits=2), 2 + 32 * 2 / 192, 2),
        (Row(method="sam", grid="binary", rho=0.05), 1 + 32 * 2 / 192, 2),
        (Row(method="two_steps", grid="binary"), 1 + 32 * 2 / 192, 2),
        (Row(method="forward_backtrack", grid="binary", a=0.6, every=1, every_unit="steps"), 1 + 32 * 2 / 192, 2),
        (Row(method="absmean", grid="ternary"), 2 + 32 * 2 / 192, 2),
        (Row(method="quest", grid="ternary"), 2 + 32 * 2 / 192, 2),
        (Row(method="quest_hadamard", grid="binary"), 1 + 32 * 2 / 192, 2),
        (Row(method="cage", grid="binary"), 1 + 32 * 2 / 192, 2),
        (Row(method="parq", grid="binary"), 1 + 32 * 2 / 192, 2),
        (Row(method="lotion", grid="ternary"), 2 + 32 * 2 / 192, 2),
        (Row(method="average_evaluated", grid="binary"), 1 + 32 * 2 / 192, 2),
        (Row(method="average_trained", grid="binary"), 1 + 32 * 2 / 192, 2),
    ],
)
def test_every_method_trains_a_small_model_and_counts_its_bits(row: Row, bits: float, codes: int):
    keys = jax.random.split(jax.random.key(1), 4)
    inputs, target = jax.random.normal(keys[0], (64, 8)), jax.random.normal(keys[1], (8, 4))
    network = {
        "first": 0.3 * jax.random.normal(keys[2], (8, 16)),
        "bias": jnp.zeros(16),
        "second": 0.3 * jax.random.normal(keys[3], (16, 4)),
        "gain": jnp.ones(4),
    }

    def loss_fn(params, key):
        weights = method.forward(params, key)
        hidden = jax.nn.relu(inputs @ weights["first"] + weights["bias"][None])
        return jnp.mean((hidden @ weights["second"] * weights["gain"][None] - inputs @ target) ** 2)

    method = row.build(Hyperparameters(lambda count: 0.01, steps=150))
    params = method.init(network)
    state = method.optimizer.init(params)
    assert method.bits_per_weight(params, state) == pytest.approx(bits)
    assert len(method.codes(params, state, KEY)) == codes

    @jax.jit
    def step(params, state, key):
        evaluate = jax.value_and_grad(lambda weights: (loss_fn(weights, key), None), has_aux=True)
        (loss, _), params, state = take_step(method, params, state, evaluate, two_stage=True)
        return params, state, loss

    losses = []
    for number in range(150):
        params, state, loss = step(params, state, jax.random.key(number))
        losses.append(float(loss))
    assert np.mean(losses[-20:]) < 0.7 * np.mean(losses[:3])
    evaluated = method.evaluated(params, state)
    assert jax.tree.structure(evaluated) == jax.tree.structure(network)
    if row.method not in ("full_precision", "quest_hadamard"):  # rotated weights are on no grid
        assert len(np.unique(evaluated["first"])) <= 2 ** int(bits)


def test_bwn_ignores_the_curvature_and_laq_does_not():
    params = jnp.array([[1.0, -3.0]])
    state = optax.adam(0.1).init(params)
    state = (state[0]._replace(nu=jnp.array([[9.0, 1.0]])), *state[1:])
    bwn, laq = (Row(method=name, grid="binary").build(Hyperparameters(0.1)) for name in ("bwn", "laq"))
    np.testing.assert_allclose(bwn.evaluated(params, state), [[2, -2]])  # mean|w|
    np.testing.assert_allclose(laq.evaluated(params, state), [[1.5, -1.5]], rtol=1e-6)  # (3·1 + 1·3)/4


@pytest.mark.parametrize(
    ("arguments", "quantizer"),
    [
        (("binary", None, None), fobt.binary()),
        (("ternary", None, None), fobt.ternary()),
        (("ternary", "exact", 2), fobt.ternary(solver="exact", scale_per_sign=True)),
        (("linear4", "alternating", None), fobt.linear(4, solver="alternating")),
        (("logarithmic3", None, None), fobt.logarithmic(3)),
    ],
)
def test_grids_by_name(arguments: tuple, quantizer: fobt.Quantizer):
    assert make_quantizer(*arguments) == quantizer
