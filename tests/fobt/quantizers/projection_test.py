"""The solvers of the projection against brute force, the NumPy reference and closed forms."""

import numpy as np
import pytest
import reference
from grid_cases import GRIDS, SEARCHED_GRIDS, SOLVERS, allowed_levels, jitted, jitted_rows, levels_of, objective

import fobt

ROUNDING = 1e-12  # in units of Σ C w², for float64
BRUTE_FORCE_LENGTH = {"binary": 7, "ternary": 7, "linear(3)": 5, "linear(4)": 4, "linear(8)": 2}
BRUTE_FORCE_LENGTH |= {"logarithmic(3)": 5, "logarithmic(4)": 4, "logarithmic(5)": 3}


def log_uniform(rng, shape):
    """Curvature spread over 6 orders of magnitude."""
    return 10 ** rng.uniform(-6, 0, shape)


def short_vectors(rng, count, n):
    """Rows of different kinds, some with many ties and zeros, the last one zero."""
    normal = rng.normal(size=(count, n))
    kinds = [normal, rng.standard_cauchy((count, n)), np.round(4 * normal) / 4, np.round(normal)]
    weights = np.choose(np.arange(count)[:, None] % len(kinds), kinds)
    weights[-2], weights[-1] = 0.3, 0.0
    return weights


def row_objectives(weights, curvature, w_hat):
    """½ Σ C (w - ŵ)² of each row."""
    return 0.5 * np.sum(curvature * (weights - w_hat) ** 2, axis=1)


@pytest.mark.parametrize("grid", GRIDS)
def test_reference_has_the_levels_written_by_hand(grid):
    name, bits = grid.rstrip(")").split("(") if "(" in grid else (grid, "1")
    np.testing.assert_array_equal(allowed_levels(grid), reference.levels(name, int(bits)))


def test_two_bits_are_ternary():
    assert fobt.linear(2) == fobt.ternary()
    weights = np.random.default_rng(0).normal(size=50).astype(np.float32)
    quantized, ternary = jitted("logarithmic(2)")(weights), jitted("ternary")(weights)
    np.testing.assert_array_equal(quantized.codes, ternary.codes)
    np.testing.assert_allclose(quantized.scale, ternary.scale, rtol=1e-6)


@pytest.mark.parametrize("grid", GRIDS)
def test_exact_equals_brute_force(x64, grid):
    rng = np.random.default_rng(1)
    weights = short_vectors(rng, 48, BRUTE_FORCE_LENGTH[grid])
    curvature = np.where(np.arange(48)[:, None] % 8 < 4, log_uniform(rng, weights.shape), 1.0)
    _, _, w_hat = jitted_rows(grid, "exact" if grid in SEARCHED_GRIDS else None)(weights, curvature)
    found = row_objectives(weights, curvature, np.asarray(w_hat))
    for i, (w, c) in enumerate(zip(weights, curvature, strict=True)):
        alpha, beta = reference.brute_force(w, c, allowed_levels(grid))
        assert abs(found[i] - reference.objective(w, c, alpha * beta)) <= ROUNDING * np.sum(c * w**2)


@pytest.mark.parametrize("grid", GRIDS)
def test_exact_equals_the_reference(x64, grid):
    rng = np.random.default_rng(2)
    weights, curvature = rng.normal(size=2000), log_uniform(rng, 2000)
    alpha, beta = reference.project_exact(weights, curvature, allowed_levels(grid))
    quantized = jitted(grid, "exact" if grid in SEARCHED_GRIDS else None)(weights, curvature)
    excess = objective(weights, curvature, quantized) - reference.objective(weights, curvature, alpha * beta)
    assert abs(excess) <= ROUNDING * np.sum(curvature * weights**2)
    np.testing.assert_array_equal(levels_of(grid, quantized.codes), beta)
    np.testing.assert_allclose(quantized.scale, alpha, rtol=1e-12)


@pytest.mark.parametrize("grid", ["binary", "linear(4)", "logarithmic(5)"])
def test_exact_in_float32(grid):
    rng = np.random.default_rng(3)
    weights, curvature = np.float32(rng.normal(size=2000)), np.float32(log_uniform(rng, 2000))
    alpha, beta = reference.project_exact(weights, curvature, allowed_levels(grid))
    best = reference.objective(weights.astype(np.float64), curvature.astype(np.float64), alpha * beta)
    quantized = jitted(grid, "exact" if grid in SEARCHED_GRIDS else None)(weights, curvature)
    assert objective(weights, curvature, quantized) <= best * (1 + 1e-5)
    fitting = reference.scale_given_codes(np.float64(weights), np.float64(curvature), levels_of(grid, quantized.codes))
    np.testing.assert_allclose(quantized.scale, fitting, rtol=3e-6)


def previous_codes(rng, grid, weights):
    """Codes of weights nearby, a row for each row; the last two are all zero, and zero except where w = 0."""
    moved = weights + 0.3 * np.std(weights, axis=1, keepdims=True) * rng.normal(size=weights.shape)
    levels = allowed_levels(grid)
    largest_code = len(levels) // 2
    nearest = np.abs(moved[..., None] / np.abs(moved).mean(1)[:, None, None] / 2 - levels).argmin(-1)
    codes = nearest - largest_code
    codes[-2:] = 0
    codes[-1, weights[-1] == 0] = 1
    return codes.astype(np.int8)


@pytest.mark.parametrize(
    ("grid", "warm"),
    [*((grid, False) for grid in SEARCHED_GRIDS), ("ternary", True), ("linear(4)", True), ("logarithmic(3)", True)],
)
def test_alternating_equals_the_reference(x64, grid, warm):
    rng = np.random.default_rng(4)
    weights = rng.normal(size=(20, 200)) * 10 ** rng.uniform(-3, 3, size=(20, 1))
    weights[:5], weights[-1, :50] = rng.standard_cauchy((5, 200)), 0
    curvature = log_uniform(rng, weights.shape)
    weights[5:10, 0], curvature[5:10, 0] = 1e6, 1e-15  # outliers that hardly count: the scale is tiny beside them
    previous = [previous_codes(rng, grid, weights)] if warm else []
    codes, scale, _ = jitted_rows(grid, "alternating")(weights, curvature, *previous)
    for i, (w, c) in enumerate(zip(weights, curvature, strict=True)):
        start = levels_of(grid, previous[0][i]) if warm else None
        alpha, beta = reference.project_alternating(w, c, allowed_levels(grid), start)
        np.testing.assert_array_equal(levels_of(grid, codes[i]), beta)
        np.testing.assert_allclose(scale[i], alpha, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("grid", ["ternary", "linear(4)", "linear(8)", "logarithmic(4)"])
def test_alternating_lies_between_exact_and_its_first_iterate(x64, grid):
    rng = np.random.default_rng(5)
    weights = np.concatenate([rng.normal(size=(10, 200)), rng.standard_cauchy((10, 200))])
    curvature = log_uniform(rng, weights.shape)
    found, best = (
        row_objectives(weights, curvature, np.asarray(jitted_rows(grid, solver)(weights, curvature)[2]))
        for solver in ("alternating", "exact")
    )
    slack = ROUNDING * np.sum(curvature * weights**2, axis=1)
    assert np.all(found >= best - slack)
    for i, (w, c) in enumerate(zip(weights, curvature, strict=True)):
        start = np.sign(w) * (np.abs(w) > 0.7 * np.mean(np.abs(w)))
        first_scale = reference.scale_given_codes(w, c, start)
        first_codes = reference.codes_given_scale(w, first_scale, allowed_levels(grid))
        assert found[i] <= reference.objective(w, c, first_scale * first_codes) + slack[i]


def test_alternating_takes_at_most_ten_rounds(x64):
    # Fine levels of heavy-tailed weights settle slowly: an eleventh round would still change the scale, and be seen.
    weights, Q = np.random.default_rng(6).standard_cauchy(2000), allowed_levels("linear(8)")
    alpha, _ = reference.project_alternating(weights, np.ones(2000), Q)
    further = reference.scale_given_codes(weights, 1.0, reference.codes_given_scale(weights, alpha, Q))
    assert abs(further / alpha - 1) > 1e-6
    np.testing.assert_allclose(jitted("linear(8)", "alternating")(weights).scale, alpha, rtol=1e-12)


@pytest.mark.parametrize(
    ("grid", "weights", "codes"),
    [
        ("ternary", [2, 1, -1], [1, 0, 0]),
        ("linear(3)", [2, 1, -1], [3, 1, -1]),
        ("logarithmic(3)", [8, 1, 3, -6], [3, 0, 1, -2]),
    ],
)
def test_midpoints_take_the_smaller_level(grid, weights, codes):
    # Only the first weight has curvature, so it alone sets the scale; the others are at midpoints.
    curvature, previous = np.float32(np.arange(len(codes)) == 0), np.int8(codes) * (np.arange(len(codes)) == 0)
    quantized = jitted(grid, "alternating")(np.float32(weights), curvature, codes=previous)
    assert quantized.scale == weights[0]
    np.testing.assert_array_equal(quantized.codes, codes)


@pytest.mark.parametrize("solver", SOLVERS)
def test_two_scales(x64, solver):
    rng = np.random.default_rng(10)
    weights = rng.normal(size=(20, 300)) + 0.5
    weights[:3, :40] = 0
    curvature = log_uniform(rng, weights.shape)
    codes, scale, w_hat = map(np.asarray, jitted_rows("ternary", solver, scale_per_sign=True)(weights, curvature))
    project = reference.project_alternating if solver == "alternating" else reference.project_exact
    for i, (w, c) in enumerate(zip(weights, curvature, strict=True)):
        plus, minus, beta = reference.project_two_scales(w, c, project)
        expected = np.where(beta > 0, plus, minus) * beta
        if solver == "candidates":
            best, found = reference.objective(w, c, expected), reference.objective(w, c, w_hat[i])
            slack = np.sum(c * w**2)
            assert best - ROUNDING * slack <= found <= 1.0001 * best + 1e-6 * slack
        else:
            np.testing.assert_array_equal(codes[i], beta)
            np.testing.assert_allclose(scale[i], [plus, minus], rtol=1e-12)
            np.testing.assert_allclose(w_hat[i], expected, rtol=1e-12)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("solver", SOLVERS)
def test_two_scales_of_weights_of_one_sign(solver, sign):
    # Kept are 6 and 8, at their mean; the sign that does not occur has scale 1.
    quantized = jitted("ternary", solver, scale_per_sign=True)(sign * np.float32([3, 8, 1, 6]))
    np.testing.assert_array_equal(quantized.codes, [0, sign, 0, sign])
    np.testing.assert_allclose(quantized.scale, [7, 1] if sign > 0 else [1, 7], rtol=1e-6)


def test_two_scales_start_from_the_codes_of_their_sign():
    # Keeping 10 alone is a fixed point, 3 < 10/2; so is keeping all positive weights, at 22/5. The codes decide which.
    weights, previous = np.float32([10, 3, 3, 3, 3] + [-1] * 20), np.int8([1, 0, 0, 0, 0] + [-1] * 20)
    quantized = jitted("ternary", "alternating", scale_per_sign=True)(weights, codes=previous)
    np.testing.assert_array_equal(quantized.codes, previous)
    np.testing.assert_allclose(quantized.scale, [10, 1], rtol=1e-6)
    quantized = jitted("ternary", "alternating", scale_per_sign=True)(weights, codes=np.ones_like(previous))
    np.testing.assert_array_equal(quantized.codes, np.sign(weights))
    np.testing.assert_allclose(quantized.scale, [4.4, 1], rtol=1e-6)


def test_binary_weight_network():
    quantized = jitted("binary")(np.float32([0.5, -1.5, 4.0, 0.0]))
    np.testing.assert_array_equal(quantized.codes, [1, -1, 1, 1])
    assert quantized.scale == 1.5  # mean |w|


@pytest.mark.parametrize("solver", SOLVERS)
def test_ternary_without_curvature(solver):
    # The k largest of 8 6 3 1 gain (their sum)²/k = 64, 98, 96.3, 81: two are kept, at their mean, and 7/2 > 3.
    quantized = jitted("ternary", solver)(np.float32([3, -8, 1, 6]))
    np.testing.assert_array_equal(quantized.codes, [0, -1, 0, 1])
    np.testing.assert_allclose(quantized.scale, 7, rtol=1e-6)


@pytest.mark.parametrize("solver", ["exact", "candidates"])
def test_curvature_decides_what_is_kept(solver):
    # With C = 9 for the weight 3 the gains are 64, 98, (8 + 6 + 27)²/11 = 152.8, 147: three are kept.
    quantized = jitted("ternary", solver)(np.float32([3, -8, 1, 6]), np.float32([9, 1, 1, 1]))
    np.testing.assert_array_equal(quantized.codes, [1, -1, 0, 1])
    np.testing.assert_allclose(quantized.scale, 41 / 11, rtol=1e-6)


@pytest.mark.parametrize("solver", ["exact", "candidates"])
@pytest.mark.parametrize("grid", ["linear(3)", "linear(4)", "logarithmic(4)"])
def test_of_equal_assignments_the_one_with_the_smallest_scale_is_taken(grid, solver):
    """Weights of one magnitude r are α β without error for every level β; the smallest α is r, with β = 1.

    Many finer levels give equal gains at α so near to each other that float32 cannot tell which is the smallest.
    """
    rng = np.random.default_rng(11)
    magnitudes = np.float32(10 ** rng.uniform(-3, 3, (64, 1)))
    weights = magnitudes * rng.choice(np.float32([-1, 1]), (64, 23))
    curvature = np.float32(log_uniform(rng, weights.shape))
    codes, scale, _ = jitted_rows(grid, solver)(weights, curvature)
    np.testing.assert_array_equal(codes, np.sign(weights) * (len(allowed_levels(grid)) // 2))
    np.testing.assert_allclose(scale, magnitudes[:, 0], rtol=1e-6)
