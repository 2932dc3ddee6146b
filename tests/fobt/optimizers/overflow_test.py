"""Finite gradients whose squares overflow or vanish: latents and quantized weights stay finite and go on to train."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fobt
from fobt._src.optimizers.blending import norm_is_finite

LARGE = {"float16": 300.0, "bfloat16": 1e20, "float32": 1e20, "float64": 1e200}
SMALL = {"float16": 2e-4, "bfloat16": 1e-24, "float32": 1e-24, "float64": 1e-170}
QUANTIZERS = {"binary": fobt.binary(), "ternary": fobt.ternary(), "linear(4)": fobt.linear(4)}
EPS = 1e-7  # float16 has no smaller one
WEIGHTS = np.array([[1.0, -2.0, 3.0, -4.0]])


def adam(quantizer):
    return optax.adam(1e-3, eps=EPS)


def two_stage(quantizer):
    return fobt.forward_backtrack(1e-3, quantizer, eps=EPS)


OPTIMIZERS = {
    "adam": adam,
    "apply_if_finite": lambda quantizer: optax.apply_if_finite(adam(quantizer), 5),
    "amsgrad": lambda quantizer: optax.amsgrad(1e-3, eps=EPS),
    "two-stage": two_stage,
    "two-stage, every other step": lambda quantizer: fobt.forward_backtrack(1e-3, quantizer, eps=EPS, every=2),
    "optimistic": lambda quantizer: fobt.optimistic(two_stage(quantizer)),
    "frozen": lambda quantizer: fobt.oscillations.freeze_oscillations(adam(quantizer), quantizer, 0.0),
    "tracked": lambda quantizer: fobt.oscillations.track_oscillations(two_stage(quantizer), quantizer),
}


def run(tx, gradients, dtype):
    """Params and state after steps with the given gradients; the trial gradients are 1."""
    tx = optax.with_extra_args_support(tx)
    params = {"w": jnp.asarray(WEIGHTS, dtype)}
    state = tx.init(params)

    @jax.jit
    def step(grads, state, params):
        updates, state = tx.update(grads, state, params, grad_fn=lambda w: jax.tree.map(jnp.ones_like, w))
        return optax.apply_updates(params, updates), state

    for gradient in gradients:
        params, state = step({"w": jnp.asarray(gradient, dtype)}, state, params)
    return params, state


def finite(tree):
    return all(np.all(np.isfinite(np.asarray(leaf, np.float64))) for leaf in jax.tree.leaves(tree))


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_one_large_gradient(name, dtype):
    """The weight stands still from then on, and the others are quantized as without it."""
    tx = OPTIMIZERS[name](QUANTIZERS["binary"])
    large = [[1.0, LARGE[dtype], 1.0, 2.0]]
    params, state = run(tx, [large, [[1.0, 1.0, 1.0, 2.0]], [[-1.0, 1.0, 1.0, 2.0]]], dtype)
    assert finite(params)
    # The optimistic form steps along the large gradient in the step after it.
    np.testing.assert_allclose(params["w"][0, 1], WEIGHTS[0, 1], atol=0.01)
    for quantizer in QUANTIZERS.values():
        quantized = fobt.quantize(params, state, quantizer)["w"]
        nu = optax.tree_utils.tree_get(state, "nu")["w"]
        assert np.isinf(nu[0, 1])
        rest = np.array([0, 2, 3])
        expected = quantizer(params["w"][:, rest], jnp.sqrt(nu[:, rest].astype(jnp.float32)) + 1e-8)
        np.testing.assert_array_equal(quantized.codes[:, rest], expected.codes)
        np.testing.assert_allclose(quantized.scale, expected.scale, rtol=1e-3 if name == "amsgrad" else 1e-6)
        assert quantized.codes[0, 1] == quantizer.round_to_nearest(params["w"], quantized.scale).codes[0, 1]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", LARGE)
@pytest.mark.parametrize("name", ["adam", "two-stage", "optimistic"])
def test_squares_that_overflow_or_vanish_in_every_dtype(name, dtype):
    with jax.enable_x64(dtype == "float64"):
        quantizer = QUANTIZERS["linear(4)"]
        tx = OPTIMIZERS[name](quantizer)
        for gradients in (
            [[[LARGE[dtype]] * 4]],
            [[[SMALL[dtype]] * 4]] * 2,
            [[[LARGE[dtype], 1.0, SMALL[dtype], 0.0]]] * 2,
        ):
            params, state = run(tx, gradients, dtype)
            weights = fobt.quantized_params(params, state, quantizer)
            assert finite((params, weights))
            assert finite(fobt.quantized_trial_params(params, state, quantizer, tx))
            assert finite(jax.value_and_grad(fobt.oscillations.dampening_loss)(params, state, quantizer))
            assert np.any(weights["w"])


def test_all_pinned_weights_are_quantized_by_their_magnitudes():
    params, state = run(adam(None), [[[1e20] * 4]], "float32")
    np.testing.assert_array_equal(params["w"], WEIGHTS)
    np.testing.assert_allclose(fobt.quantize(params, state, fobt.linear(4))["w"].scale, 4, rtol=1e-6)


@pytest.mark.parametrize("g", [1e18, 1.8e19])
def test_bias_correction(g):
    """The corrected second moment of the first step is g² again: it overflows where the square does, not earlier."""
    _, state = run(two_stage(fobt.binary()), [[[g, 1.0, 1.0, 1.0]]], "float32")
    assert finite(state.nu)
    np.testing.assert_allclose(np.float64(state.nu["w"][0, 0]), 0.001 * g**2, rtol=0.3)


@pytest.mark.parametrize(
    ("grads", "expected"),
    [
        ([1.2e19, 1.2e19], True),
        ([1.5e19, 1.5e19], False),  # each square is finite
        ([1e20], False),
        ([-np.inf], False),
        ([np.nan, 1.0], False),
        ([], True),
    ],
)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_norm_that_says_whether_a_trial_gradient_is_finite(grads, expected, dtype):
    assert norm_is_finite({"one": jnp.asarray(grads, dtype), "other": jnp.ones(2, dtype)}) == expected
    assert norm_is_finite({"each": [jnp.asarray(g, dtype) for g in grads]}) == expected


@pytest.mark.parametrize("a", [1.0, 1e-50])
def test_an_infinite_curvature_is_blended_with_a_weight_of_zero(a):
    """A traced a of 1 gives the trial curvature no weight; 1e-50 is 0 in float32."""
    params = {"w": jnp.asarray(WEIGHTS, jnp.float32)}

    @jax.jit
    def step(a):
        tx = fobt.forward_backtrack(1e-3, fobt.binary(), a=a, eps=EPS)
        grads = {"w": jnp.asarray([[1.0, 1e20, 1.0, 1.0]], jnp.float32)}
        updates, state = tx.update(
            grads, tx.init(params), params, grad_fn=lambda w: jax.tree.map(jnp.ones_like, w), two_stage=True
        )
        return updates, state, fobt.quantized_params(params, state, fobt.binary())

    updates, state, quantized = step(a)
    assert finite((updates, quantized))
    assert np.isinf(state.nu["w"][0, 1])
    assert np.all(np.isfinite(np.delete(state.nu["w"], 1)))
