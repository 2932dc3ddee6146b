"""Weights of infinite curvature are pinned: the others are projected as without them."""

import jax.numpy as jnp
import numpy as np
import pytest
import reference
from grid_cases import SOLVED_GRIDS, SOLVERS, allowed_levels, dequantize, jitted, jitted_rows, levels_of

import fobt

N = 7
BRUTE_FORCED = {"binary": 5, "ternary": 6, "linear(4)": 4, "logarithmic(3)": 5}
each = pytest.mark.parametrize(
    ("grid", "solver"), [(grid, solver) for grid, solver in SOLVED_GRIDS if grid in BRUTE_FORCED]
)
one_of_each = pytest.mark.parametrize(
    ("grid", "solver"),
    [("binary", None), ("linear(3)", "exact"), ("ternary", "candidates"), ("logarithmic(3)", "alternating")],
)


def rows_with_pinned(rng, free, magnitudes, count=24):
    """Weights and curvature; in each row all but `free` weights are pinned, with magnitudes up to the given ones."""
    weights, curvature = rng.normal(size=(count, N)), 10 ** rng.uniform(-2, 0, (count, N))
    pinned = np.argsort(rng.random((count, N)), axis=1) >= free
    weights = np.where(pinned, weights * np.resize(magnitudes, count)[:, None], weights)
    return weights, np.where(pinned, np.inf, curvature), pinned


def nearest(grid, w, alpha):
    """Levels nearest to w; far beyond the highest one all are equally near to rounding."""
    clipped = np.clip(w, -2 * alpha, 2 * alpha)
    return np.sign(w) if grid == "binary" else reference.codes_given_scale(clipped, alpha, allowed_levels(grid))


@each
def test_the_rest_of_a_group_is_as_without_them(x64, grid, solver):
    rng = np.random.default_rng(0)
    weights, curvature, pinned = rows_with_pinned(rng, BRUTE_FORCED[grid], [0.01, 1, 100, 1e6, 1e30, 1e300])
    codes, scale, w_hat = map(np.asarray, jitted_rows(grid, solver)(weights, curvature))
    for w, c, p, code, alpha, projected in zip(weights, curvature, pinned, codes, scale, w_hat, strict=True):
        rest = w[~p], c[~p]
        if solver == "alternating":
            expected, beta = reference.project_alternating(*rest, allowed_levels(grid))
        else:
            expected, beta = reference.brute_force(*rest, allowed_levels(grid))
        if solver == "candidates":  # near-exact
            best = reference.objective(*rest, expected * beta)
            assert reference.objective(*rest, projected[~p]) <= 1.02 * best + 1e-4 * np.sum(rest[1] * rest[0] ** 2)
        else:
            np.testing.assert_allclose(projected[~p], expected * beta, rtol=1e-12)
        # Codes and scale have several forms, as (1, 1/3) = (1/3, 1); the pinned ones follow the form that was found.
        np.testing.assert_array_equal(levels_of(grid, code)[p], nearest(grid, w, alpha)[p])
        np.testing.assert_allclose(projected[p], alpha * nearest(grid, w, alpha)[p], rtol=1e-12)


@each
def test_a_pinned_weight_of_any_magnitude_leaves_the_same_codes_and_scale(grid, solver):
    weights = np.float32([[3, -2, pinned, 1, 0.3, -0.7, 2.2] for pinned in (0, 0.5, -3, 10, -1e6, 1e30, 3e38, -3e38)])
    curvature = np.float32([2, 1, np.inf, 0.5, 1, 3, 1])
    codes, scale, _ = map(np.asarray, jitted_rows(grid, solver)(weights, np.tile(curvature, (len(weights), 1))))
    rest = np.arange(N) != 2
    assert np.isfinite(scale[0])
    np.testing.assert_allclose(scale, np.full(len(weights), scale[0]), rtol=1e-6)
    np.testing.assert_array_equal(codes[:, rest], np.tile(codes[0, rest], (len(weights), 1)))
    np.testing.assert_array_equal(codes[-3:, 2], np.array([1, 1, -1]) * codes.max())  # clipped to the highest level
    if grid == "binary":
        curvature, magnitudes = curvature[rest], np.abs(weights[0, rest])
        np.testing.assert_allclose(scale[0], np.sum(curvature * magnitudes) / np.sum(curvature), rtol=1e-6)


@each
def test_all_pinned_is_as_without_any_curvature(grid, solver):
    weights = np.float32([[3, -2, 1, 0.1, 0, -0.4, 2], [2e30, -1e30, 1e20, 1, 0, 1, 1], [0] * N])
    codes, scale, w_hat = jitted_rows(grid, solver)(weights, np.full_like(weights, np.inf))
    expected = jitted_rows(grid, solver)(weights, np.zeros_like(weights))
    np.testing.assert_array_equal(codes, expected[0])
    np.testing.assert_array_equal(w_hat, expected[2])
    np.testing.assert_allclose(scale, [3, 2e30, 0 if grid == "binary" else 1], rtol=1e-6)


@each
def test_zeros_beside_pinned_weights(grid, solver):
    """The scale is that of a group of zeros."""
    weights, curvature = np.float32([[0, 5, 0, -0.2, 0, 0, 0]]), np.float32([[1, np.inf, 1, np.inf, 1, 1, 1]])
    codes, scale, w_hat = jitted_rows(grid, solver)(weights, curvature)
    assert scale[0] == (0 if grid == "binary" else 1)
    np.testing.assert_array_equal(w_hat[0, [0, 2, 4, 5, 6]], np.zeros(5))
    assert np.sign(codes[0, 1]) == 1
    np.testing.assert_allclose(w_hat[0, 1], 0 if grid == "binary" else 1)


@pytest.mark.parametrize(
    ("granularity", "groups"),
    [
        (fobt.per_channel(-1), ("channel", (-1,))),
        (fobt.per_channel(0), ("channel", (0,))),
        (fobt.per_block(4), ("block", 4, 0)),
        (fobt.per_block(4, axis=1), ("block", 4, 1)),
    ],
)
@pytest.mark.parametrize("grid", ["binary", "ternary", "linear(3)"])
def test_groups(x64, grid, granularity, groups):
    rng = np.random.default_rng(1)
    w = rng.normal(size=(6, 10))
    c = np.where(rng.random(w.shape) < 0.3, np.inf, 10 ** rng.uniform(-2, 0, w.shape))
    w[np.isinf(c)] *= 1e3
    c[4:, 8:] = np.inf  # the last blocks, which are shorter, are wholly pinned
    w_hat = dequantize(jitted(grid, None if grid == "binary" else "exact", granularity)(w, c))
    for group in reference.group_slices(w.shape, groups):
        weights, curvature, got = (np.ravel(x)[group] for x in (w, c, w_hat))
        free = np.isfinite(curvature)
        if np.any(free):
            alpha, beta = reference.project_exact(weights[free], curvature[free], allowed_levels(grid))
            np.testing.assert_allclose(got[free], alpha * beta, rtol=1e-12)
        else:
            np.testing.assert_allclose(np.max(np.abs(got)), np.max(np.abs(weights)), rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("solver", SOLVERS)
def test_two_scales(x64, solver):
    """Each sign is a group of its own; of the last row all negative weights are pinned."""
    weights = np.array([[3, 2.5, -1, 0.2, -1.1, 900, -800.0], [3, 2.5, -1, 0.2, -4, 900, -2]])
    curvature = np.array([[1, 2, 1, 1, 3, np.inf, np.inf], [1, 2, np.inf, 1, np.inf, np.inf, np.inf]])
    codes, scale, _ = jitted_rows("ternary", solver, scale_per_sign=True)(weights, curvature)
    np.testing.assert_array_equal(codes, [[1, 1, -1, 0, -1, 1, -1], [1, 1, 0, 0, -1, 1, 0]])
    np.testing.assert_allclose(scale, [[8 / 3, 4.3 / 4], [8 / 3, 4]], rtol=1e-12)


def test_previous_codes_of_pinned_weights_do_not_start_the_alternation():
    """All others were 0, so the start is the pattern of magnitudes, which keeps all; from 10, 10 alone would stay."""
    codes = np.int8([[0, 0, 0, 1, 0, 0, 0]])
    weights, curvature = np.float32([[10, 3, 3, 9, -3, 3, 3]]), np.float32([[1, 1, 1, np.inf, 1, 1, 1]])
    got, scale, _ = jitted_rows("ternary", "alternating")(weights, curvature, codes)
    np.testing.assert_array_equal(got, np.sign(weights))
    np.testing.assert_allclose(scale, [25 / 6], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@one_of_each
def test_narrow_dtypes(grid, solver, dtype):
    weights = np.array([[3, -2, 1, 0.5, -0.25, 0, 60000]])
    curvature = np.array([[1, 1, 2, 1, 1, 1, np.inf]])
    narrow = jitted_rows(grid, solver)(jnp.asarray(weights, dtype), jnp.asarray(curvature, dtype))
    wide = jitted_rows(grid, solver)(np.float32(weights), np.float32(curvature))
    assert np.isfinite(wide[1])
    np.testing.assert_array_equal(narrow[0], wide[0])
    np.testing.assert_allclose(narrow[1], wide[1], rtol=1e-6)


@one_of_each
def test_what_is_not_finite_does_not_pass_as_finite(grid, solver):
    rows = np.float32([[1, np.nan, 2, -3, 1, 1, 1], [1, np.inf, 2, -3, 1, 1, 1], [1, 9, 2, -3, 1, 1, 1]])
    curvature = np.ones_like(rows)
    curvature[:, 1], curvature[2, 4] = np.inf, np.nan
    _, scale, w_hat = jitted_rows(grid, solver)(rows, curvature)
    assert not np.any(np.isfinite(scale))
    assert not np.any(np.isfinite(w_hat))
