"""Properties of the projection on arbitrary weights, found by hypothesis."""

import hypothesis.extra.numpy
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from grid_cases import GRIDS, POSITIVE_LEVELS, SEARCHED_GRIDS, allowed_levels, dequantize, jitted, levels_of

import fobt

N = 12  # one length, so that each quantizer is compiled once
# The near-exact solvers have the same symmetries as the exact one.
SOLVED = [("binary", None), *((grid, "exact") for grid in SEARCHED_GRIDS), ("linear(4)", "alternating")]
SOLVED += [(grid, "candidates") for grid in ("ternary", "logarithmic(3)")]
each_grid = pytest.mark.parametrize("grid", GRIDS)
each = pytest.mark.parametrize(("grid", "solver"), SOLVED)


def vectors(elements):
    return hypothesis.extra.numpy.arrays(np.float64, N, elements=elements)


magnitudes = st.floats(2.0**-20, 2.0**20)
# Zeros and small integers make ties; all of them are float32 numbers.
weights_of_any_sign = vectors(st.one_of(st.integers(-4, 4), magnitudes, magnitudes.map(lambda x: -x)).map(np.float32))
curvatures = vectors(st.one_of(st.just(1.0), st.floats(2.0**-10, 2.0**10)))
powers_of_two = st.integers(-30, 30).map(lambda k: 2.0**k)


def project(grid, solver, weights, curvature):
    """Codes, scale and quantized weights in float64."""
    with jax.enable_x64(True):
        quantized = jitted(grid, solver)(weights, curvature)
        return np.asarray(quantized.codes), float(quantized.scale), np.asarray(dequantize(quantized))


def objective(weights, curvature, w_hat):
    return 0.5 * np.sum(curvature * (weights - w_hat) ** 2)


def solver_of(grid):
    return None if grid == "binary" else "exact"


def nearest_levels(grid, ratio):
    levels = allowed_levels(grid)
    return levels[np.argmin(np.abs(ratio[:, None] - levels), axis=1)]


@each
@hypothesis.given(weights=weights_of_any_sign, curvature=curvatures)
def test_codes_scale_and_levels(grid, solver, weights, curvature):
    codes, scale, w_hat = project(grid, solver, weights, curvature)
    assert codes.dtype == np.int8
    assert np.all(np.abs(codes) <= len(POSITIVE_LEVELS[grid]))
    assert grid != "binary" or np.all(codes != 0)
    assert scale > 0 or (grid == "binary" and not np.any(weights))
    assert np.all(codes * weights >= 0)  # no weight changes sign
    np.testing.assert_allclose(w_hat, scale * levels_of(grid, codes), rtol=1e-15)


@each_grid
@hypothesis.given(weights=weights_of_any_sign, curvature=curvatures, data=st.data())
def test_exact_is_at_least_as_good_as_any_scale_and_codes(grid, weights, curvature, data):
    _, scale, w_hat = project(grid, solver_of(grid), weights, curvature)
    found = objective(weights, curvature, w_hat) - 1e-12 * np.sum(curvature * weights**2)
    levels = st.sampled_from(list(allowed_levels(grid)))
    alpha, beta = data.draw(magnitudes), data.draw(vectors(levels))
    assert found <= objective(weights, curvature, alpha * beta)
    # The best codes of any scale, and of scales near to the one found or to a weight.
    for other in (alpha, scale * data.draw(st.floats(0.5, 2)), np.abs(data.draw(st.sampled_from(list(weights))))):
        if other > 0:
            assert found <= objective(weights, curvature, other * nearest_levels(grid, weights / other))


@each
@hypothesis.given(weights=weights_of_any_sign, curvature=curvatures, factor=powers_of_two)
def test_scale_equivariance(grid, solver, weights, curvature, factor):
    codes, scale, _ = project(grid, solver, weights, curvature)
    hypothesis.assume(np.any(weights))
    scaled_codes, scaled_scale, _ = project(grid, solver, factor * weights, curvature)
    np.testing.assert_array_equal(scaled_codes, codes)
    assert scaled_scale == factor * scale


@each_grid
@hypothesis.given(weights=weights_of_any_sign, curvature=curvatures, factor=st.floats(1e-6, 1e6))
def test_scale_equivariance_to_rounding(grid, weights, curvature, factor):
    _, _, w_hat = project(grid, solver_of(grid), weights, curvature)
    _, _, scaled = project(grid, solver_of(grid), factor * weights, curvature)
    # Not the codes: among codes that are equally good, rounding decides.
    excess = objective(weights, curvature, scaled / factor) - objective(weights, curvature, w_hat)
    assert abs(excess) <= 1e-12 * np.sum(curvature * weights**2)


@each
@hypothesis.given(weights=weights_of_any_sign, curvature=curvatures, factor=powers_of_two)
def test_a_factor_of_the_curvature_does_not_matter(grid, solver, weights, curvature, factor):
    codes, scale, _ = project(grid, solver, weights, curvature)
    same_codes, same_scale, _ = project(grid, solver, weights, factor * curvature)
    np.testing.assert_array_equal(same_codes, codes)
    assert same_scale == scale


@pytest.mark.parametrize(("grid", "solver"), [("linear(3)", "exact"), ("ternary", "candidates")])
@hypothesis.given(weights=weights_of_any_sign, curvature=curvatures, factors=vectors(powers_of_two))
def test_a_factor_of_the_curvature_of_each_group_does_not_matter(grid, solver, weights, curvature, factors):
    weights, curvature, factors = weights.reshape(3, 4), curvature.reshape(3, 4), factors[:3, None]
    quantize = jitted(grid, solver, fobt.per_channel(0))
    with jax.enable_x64(True):
        quantized, same = quantize(weights, curvature), quantize(weights, factors * curvature)
        np.testing.assert_array_equal(same.codes, quantized.codes)
        np.testing.assert_array_equal(same.scale, quantized.scale)


@each
@hypothesis.given(weights=weights_of_any_sign, curvature=curvatures)
def test_oddness(grid, solver, weights, curvature):
    codes, scale, _ = project(grid, solver, weights, curvature)
    opposite_codes, same_scale, _ = project(grid, solver, -weights, curvature)
    assert same_scale == scale
    np.testing.assert_array_equal(opposite_codes[weights != 0], -codes[weights != 0])
    np.testing.assert_array_equal(opposite_codes[weights == 0], codes[weights == 0])  # sign(0) = +1


@each_grid
@hypothesis.given(weights=weights_of_any_sign, curvature=curvatures)
def test_idempotence_of_exact(grid, weights, curvature):
    _, _, w_hat = project(grid, solver_of(grid), weights, curvature)
    _, _, again = project(grid, solver_of(grid), w_hat, curvature)
    np.testing.assert_allclose(again, w_hat, rtol=1e-12)


@pytest.mark.parametrize("grid", ["ternary", "linear(4)", "logarithmic(3)"])
@hypothesis.given(weights=weights_of_any_sign, curvature=curvatures)
def test_idempotence_of_alternating_from_the_same_codes(grid, weights, curvature):
    codes, _, w_hat = project(grid, "exact", weights, curvature)
    with jax.enable_x64(True):
        again = jitted(grid, "alternating")(w_hat, curvature, codes=codes)
        np.testing.assert_array_equal(again.codes, codes)
        np.testing.assert_allclose(dequantize(again), w_hat, rtol=1e-12)
