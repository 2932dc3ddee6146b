"""Rounding with a given scale, and the scale with the smallest Lp norm of the error, the clipping value."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from grid_cases import GRIDS, make
from rounding_cases import lp_error, nearest_levels, some_weights

import fobt
from fobt._src.quantizers.clipping import lp_clipping_value

NORMS = (2.0, 2.5, 3.0, 4.0)


# --- Rounding with a given scale -----------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.3, 1.0, 2.2])
@pytest.mark.parametrize("grid", GRIDS)
def test_rounding_takes_the_nearest_level(grid, scale):
    weights = some_weights((7, 5))
    quantized = make(grid).round_to_nearest(weights, scale)
    np.testing.assert_allclose(quantized.dequantize(), nearest_levels(grid, weights, scale), rtol=1e-5)
    assert quantized.codes.dtype == jnp.int8
    assert quantized.scale == np.float32(scale)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_linear_codes_are_those_of_clipping_and_rounding(dtype, x64):
    weights = jnp.asarray(some_weights((40, 30)), dtype)
    quantized = fobt.linear(4).round_to_nearest(weights, 1.7)
    clipped = np.clip(np.asarray(weights, np.float64), -1.7, 1.7)
    np.testing.assert_array_equal(quantized.codes, np.round(clipped / (1.7 / 7)))
    assert quantized.dequantize().dtype == dtype
    assert quantized.scale.dtype == jnp.promote_types(dtype, jnp.float32)


@pytest.mark.slow
@pytest.mark.parametrize(
    "quantizer",
    [
        fobt.linear(3, granularity=fobt.per_channel()),
        fobt.linear(4, granularity=fobt.per_block(3)),
        fobt.ternary(scale_per_sign=True),
        fobt.ternary(scale_per_sign=True, granularity=fobt.per_block(3, axis=1)),
        fobt.binary(granularity=fobt.per_channel(0)),
    ],
)
def test_rounding_with_the_scale_of_a_projection_keeps_its_weights(quantizer):
    """The weights of a projection are levels already, so each of them is its own nearest level."""
    projected = jax.jit(quantizer)(some_weights((8, 6)))
    again = quantizer.round_to_nearest(projected.dequantize(), projected.scale)
    np.testing.assert_allclose(again.dequantize(), projected.dequantize(), rtol=1e-6)
    chex.assert_trees_all_equal_structs(again, projected)


@pytest.mark.slow
def test_rounding_with_scale_zero_gives_zeros():
    for quantizer in (fobt.binary(), fobt.linear(3)):
        np.testing.assert_array_equal(quantizer.round_to_nearest([[1.0, 0.0]], 0.0).dequantize(), [[0.0, 0.0]])
    assert fobt.linear(2).round_to_nearest(jnp.zeros((0, 3)), 1.0).codes.shape == (0, 3)


def test_rounding_says_which_shape_a_scale_has():
    with pytest.raises(ValueError, match=r"scale must have shape \(2, 1, 3\) for weights of \(4, 3\), got \(\)"):
        fobt.ternary(scale_per_sign=True, granularity=fobt.per_channel()).round_to_nearest(jnp.ones((4, 3)), 1.0)
    with pytest.raises(ValueError, match="weights must be floating, got dtype int32"):
        fobt.linear(2).round_to_nearest(jnp.ones((4, 3), int), 1.0)


# --- The clipping value of an Lp norm ------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("grid", ["binary", "ternary", "linear(3)", "linear(4)", "linear(8)", "logarithmic(3)"])
def test_no_clipping_value_has_a_smaller_error(grid, norm):
    """Brute force over a fine grid of clipping values, among few weights, whose objective has many local minima."""
    weights = some_weights((30,))
    found = lp_clipping_value(weights, make(grid), norm)
    assert found.shape == ()
    candidates = np.max(np.abs(weights)) * np.geomspace(1e-2, 3, 3000)
    lowest = min(lp_error(grid, weights, c, norm) for c in candidates)
    assert lp_error(grid, weights, float(found), norm) <= lowest * (1 + 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_norm_2_is_the_projection_with_the_least_squared_error(bits, x64):
    """In float64, where the running sums of the exact solver do not cancel."""
    weights = jnp.asarray(some_weights((60, 20)), jnp.float64)
    projected = jax.jit(fobt.linear(bits, solver="exact"))(weights)
    found = fobt.linear(bits).round_to_nearest(weights, lp_clipping_value(weights, fobt.linear(bits), 2.0))
    least, got = (jnp.sum((weights - q.dequantize()) ** 2) for q in (projected, found))
    assert least <= got <= least * (1 + 1e-5)
    np.testing.assert_allclose(found.scale, projected.scale, rtol=1e-3)


@pytest.mark.slow
def test_many_weights_with_few_candidates():
    """The candidates become fewer with the number of weights."""
    weights = some_weights((300, 400))
    for norm in (2.0, 4.0):
        found = float(lp_clipping_value(weights, fobt.linear(4), norm))
        near = min(lp_error("linear(4)", weights, c, norm) for c in found * np.geomspace(0.8, 1.25, 9))
        assert lp_error("linear(4)", weights, found, norm) <= near * (1 + 1e-5)


@pytest.mark.slow
def test_a_single_outlier_does_not_hide_the_other_weights():
    """One weight is 1 and n - 1 are δ. Ternary, p = 2: the error is (1 - δ)² with c = δ, and (n - 1) δ² with c = 1."""
    n = 10_000
    for delta, best in [(0.9 / math.sqrt(n), 1.0), (1.5 / math.sqrt(n), 1.5 / math.sqrt(n))]:
        weights = np.full(n, delta, np.float32)
        weights[3] = -1
        # With c = δ the outlier, clipped to c, moves the mean of the n codes.
        expected = best if best == 1 else (1 + (n - 1) * delta) / n
        np.testing.assert_allclose(lp_clipping_value(weights, fobt.ternary(), 2.0), expected, rtol=1e-3)
    mean = np.mean(np.abs(weights))
    np.testing.assert_allclose(lp_clipping_value(weights, fobt.binary(), 2.0), mean, rtol=1e-3)


@pytest.mark.parametrize("magnitude", [1e-35, 0.3, 1e37])
@pytest.mark.parametrize("weights", [[[0.7]], [[1.0, -1.0], [1.0, 1.0]]])
@pytest.mark.parametrize("grid", ["binary", "ternary", "linear(8)", "logarithmic(3)"])
def test_one_or_equal_weights_are_kept(grid, weights, magnitude):
    weights = np.float32(magnitude) * np.float32(weights)
    found = make(grid).round_to_nearest(weights, lp_clipping_value(weights, make(grid), 3.0))
    np.testing.assert_allclose(found.dequantize(), weights, rtol=1e-3)


def test_the_clipping_value_of_nothing_is_zero():
    for shape in [(3, 2), (0, 2)]:
        assert lp_clipping_value(jnp.zeros(shape), fobt.linear(3), 2.0) == 0
