"""Quantizers of weights and curvature that are zero, empty, huge, tiny or not finite."""

import numpy as np
import pytest
import reference
from grid_cases import SOLVERS, allowed_levels, dequantize, jitted, jitted_rows

import fobt

EACH = [
    ("binary", None),
    *((grid, solver) for grid in ("ternary", "linear(3)", "logarithmic(3)") for solver in SOLVERS),
]
ONE_OF_EACH = [("binary", None), ("linear(3)", "exact"), ("ternary", "candidates"), ("logarithmic(3)", "alternating")]
each = pytest.mark.parametrize(("grid", "solver"), EACH)
one_of_each = pytest.mark.parametrize(("grid", "solver"), ONE_OF_EACH)
ORDINARY = np.float32([3, -2, 1, 0.1])
ONES = np.ones(4, np.float32)


def quantize(grid, solver, weights, curvature=ONES):
    """Codes, scale and quantized weights of a vector of four: one compilation for most tests of this file."""
    codes, scale, w_hat = jitted_rows(grid, solver)(np.float32(weights)[None], np.float32(curvature)[None])
    return np.asarray(codes[0]), np.asarray(scale[0]), np.asarray(w_hat[0])


@each
def test_zero(grid, solver):
    codes, scale, w_hat = quantize(grid, solver, [0, 0, 0, 0])
    assert scale == (0 if grid == "binary" else 1)
    np.testing.assert_array_equal(codes, [1 if grid == "binary" else 0] * 4)
    np.testing.assert_array_equal(w_hat, [0, 0, 0, 0])


@pytest.mark.parametrize("magnitude", [0.3, 1e38, 1e-37])
@each
def test_constant_magnitude(grid, solver, magnitude):
    weights = magnitude * np.float32([1, -1, -1, 1])
    codes, _, w_hat = quantize(grid, solver, weights)
    np.testing.assert_array_equal(np.sign(codes), [1, -1, -1, 1])
    np.testing.assert_allclose(w_hat, weights, rtol=1e-6)


@pytest.mark.parametrize("shape", [(), (1, 1)])
@one_of_each
def test_one_element(grid, solver, shape):
    weights = np.full(shape, -0.7, np.float32)
    quantized = jitted(grid, solver)(weights)
    assert quantized.codes.shape == shape
    np.testing.assert_allclose(dequantize(quantized), weights, rtol=1e-6)


@pytest.mark.parametrize(
    ("shape", "granularity", "scale_shape"),
    [
        ((0,), fobt.per_tensor(), ()),
        ((0, 3), fobt.per_tensor(), ()),
        ((0, 3), fobt.per_channel(1), (1, 3)),
        ((0, 3), fobt.per_channel(0), (0, 1)),
        ((0, 3), fobt.per_block(2, axis=0), (0, 3)),
        ((0, 3), fobt.per_block(2, axis=1), (0, 2)),
    ],
)
@one_of_each
def test_no_elements(grid, solver, shape, granularity, scale_shape):
    quantized = jitted(grid, solver, granularity)(np.zeros(shape, np.float32))
    assert quantized.codes.shape == dequantize(quantized).shape == shape
    np.testing.assert_array_equal(quantized.scale, np.full(scale_shape, 0 if grid == "binary" else 1))


def test_no_elements_and_two_scales():
    quantized = jitted("ternary", "exact", scale_per_sign=True)(np.zeros((0, 3), np.float32))
    np.testing.assert_array_equal(quantized.scale, [1, 1])


@pytest.mark.parametrize("exponent", [125, 126, -120])
@each
def test_huge_and_tiny(grid, solver, exponent):
    codes, scale, w_hat = quantize(grid, solver, ORDINARY)
    factor = np.float32(2.0**exponent)
    scaled = quantize(grid, solver, factor * ORDINARY)
    np.testing.assert_array_equal(scaled[0], codes)
    np.testing.assert_allclose(scaled[1], factor * scale, rtol=1e-6)
    np.testing.assert_allclose(scaled[2], factor * w_hat, rtol=1e-6)


@each
def test_huge_beside_tiny(grid, solver):
    _, scale, w_hat = quantize(grid, solver, [3e38, 1e-38, -1e-45, 0])
    np.testing.assert_allclose(np.abs(w_hat), [7.5e37] * 4 if grid == "binary" else [3e38, 0, 0, 0], rtol=1e-6)
    assert np.isfinite(scale)


@each
def test_subnormal(grid, solver):
    # They count as zero where the device flushes subnormal numbers.
    _, scale, w_hat = quantize(grid, solver, [1e-40, -3e-41, 0, 1e-45])
    assert np.isfinite(scale)
    assert np.all(np.abs(w_hat) <= 2e-40)


@each
def test_without_any_curvature_the_scale_is_the_largest_magnitude(grid, solver):
    _, scale, w_hat = quantize(grid, solver, ORDINARY, [0, 0, 0, 0])
    np.testing.assert_allclose(scale, np.max(np.abs(ORDINARY)), rtol=1e-6)
    assert np.all(np.isfinite(w_hat))


@each
def test_weights_without_curvature_have_no_say_in_the_scale(grid, solver):
    weights, curvature = np.array([5.0, 3.0, -2.0, 0.2]), np.array([0.0, 1.0, 0.5, 0.0])
    codes, scale, w_hat = quantize(grid, solver, weights, curvature)
    alpha, beta = reference.brute_force(weights, curvature, allowed_levels(grid))
    best = reference.objective(weights, curvature, alpha * beta)
    assert reference.objective(weights, curvature, w_hat) <= best + 1e-6
    if grid == "ternary":
        np.testing.assert_array_equal(codes, [1, 1, -1, 0])
        np.testing.assert_allclose(scale, 8 / 3, rtol=1e-6)


@each
def test_curvature_only_where_weights_are_zero(grid, solver):
    _, scale, w_hat = quantize(grid, solver, [5, 0, -2, 0], [0, 1, 0, 1])
    assert np.isfinite(scale)
    assert scale >= 0
    np.testing.assert_array_equal(w_hat[[1, 3]], [0, 0])


@pytest.mark.parametrize("factor", [2.0**98, 2.0**-99])
@each
def test_huge_and_tiny_curvature(grid, solver, factor):
    curvature = np.float32([1, 2, 3, 0.5])
    codes, scale, _ = quantize(grid, solver, ORDINARY, curvature)
    scaled_codes, same_scale, _ = quantize(grid, solver, ORDINARY, np.float32(factor) * curvature)
    np.testing.assert_array_equal(scaled_codes, codes)
    np.testing.assert_allclose(same_scale, scale, rtol=1e-6)


@each
def test_huge_beside_tiny_curvature(grid, solver):
    # Only the weight with huge curvature counts, and it is met.
    _, scale, w_hat = quantize(grid, solver, ORDINARY, [1e-30, 1e30, 0, 0])
    assert np.isfinite(scale)
    np.testing.assert_allclose(w_hat[1], -2, rtol=1e-6)


@pytest.mark.parametrize("culprit", ["weights", "curvature"])
@each
def test_nan_in_nan_out(grid, solver, culprit):
    arguments = {"weights": ORDINARY.copy(), "curvature": ONES.copy()}
    arguments[culprit][2] = np.nan
    _, scale, w_hat = quantize(grid, solver, **arguments)
    assert np.isnan(scale)
    assert np.all(np.isnan(w_hat))


@one_of_each
def test_nan_stays_in_its_group(grid, solver):
    granularity = fobt.per_channel(0)
    weights = np.tile(ORDINARY, (3, 1))
    clean = jitted(grid, solver, granularity)(weights)
    weights[1, 2] = np.nan
    quantized = jitted(grid, solver, granularity)(weights)
    np.testing.assert_array_equal(np.isnan(dequantize(quantized)), [[False] * 4, [True] * 4, [False] * 4])
    for row in (0, 2):
        np.testing.assert_array_equal(quantized.codes[row], clean.codes[row])
        np.testing.assert_array_equal(quantized.scale[row], clean.scale[row])


@each
def test_infinite_weights_do_not_pass_as_finite(grid, solver):
    _, scale, w_hat = quantize(grid, solver, [1, np.inf, 2, -3])
    assert not np.isfinite(scale)
    assert not np.any(np.isfinite(w_hat))


@pytest.mark.parametrize("solver", SOLVERS)
def test_two_scales_of_nan(solver):
    quantized = jitted("ternary", solver, scale_per_sign=True)(np.float32([1, np.nan, -2, 3]))
    assert np.all(np.isnan(dequantize(quantized)))
