"""The candidates solver against the optimum found by sorting in float64."""

import numpy as np
import pytest
from grid_cases import SEARCHED_GRIDS, allowed_levels, jitted, objective, weighted_sum

import fobt

DISTRIBUTIONS = ["gaussian", "heavy-tailed", "sparse", "bimodal", "constant magnitude", "log-uniform"]
UP_TO_FIVE_BITS = [grid for grid in SEARCHED_GRIDS if grid != "linear(8)"]
MANY = 10**5


def log_uniform(seed, shape, decades=6):
    return np.float32(10 ** np.random.default_rng(seed).uniform(-decades, 0, shape))


def draw_weights(distribution):
    rng = np.random.default_rng(7)
    signs = rng.choice([-1.0, 1.0], MANY)
    weights = {
        "gaussian": rng.normal(size=MANY),
        "heavy-tailed": rng.standard_cauchy(MANY),
        "sparse": rng.normal(size=MANY) * (rng.random(MANY) < 0.05),
        "bimodal": signs * (1 + 0.1 * rng.normal(size=MANY)),
        "constant magnitude": 0.3 * signs,
        "log-uniform": signs * log_uniform(8, MANY, decades=8),
    }
    return np.float32(weights[distribution])


def best_objective(weights, curvature, grid):
    """The optimum of (P): of all assignments between two breakpoints, the one with the largest gain."""
    r, c, levels = np.abs(np.float64(weights)), np.float64(curvature), allowed_levels(grid)
    levels = levels[levels >= 0]
    order = np.argsort(-(r[:, None] / ((levels[1:] + levels[:-1]) / 2)).ravel())
    sum_1 = np.cumsum(((c * r)[:, None] * np.diff(levels)).ravel()[order])
    sum_2 = np.cumsum((c[:, None] * np.diff(levels**2)).ravel()[order])
    gains = np.divide(sum_1**2, sum_2, out=np.zeros_like(sum_1), where=sum_2 > 0)
    return 0.5 * (np.sum(c * r**2) - np.max(gains))


def excess_over_bound(grid, weights, curvature):
    best = best_objective(weights, curvature, grid)
    found = objective(weights, curvature, jitted(grid, "candidates")(weights, curvature))
    # Where levels are unevenly spaced, the objective of candidates is rougher than a sample can tell.
    share = 2e-3 if grid.startswith("logarithmic") else 1e-4
    return found - best - (share * best + 1e-6 * weighted_sum(curvature, np.float64(weights) ** 2))


@pytest.mark.slow
@pytest.mark.optimized
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("grid", UP_TO_FIVE_BITS)
def test_near_exact_for_many_weights(grid, distribution):
    weights = draw_weights(distribution)
    assert excess_over_bound(grid, weights, np.ones(MANY, np.float32)) <= 0
    assert excess_over_bound(grid, weights, log_uniform(9, MANY)) <= 0


def test_fits_to_all_weights_refine_what_a_sample_has_chosen():
    rng = np.random.default_rng(6)
    draws = [rng.normal, rng.standard_cauchy, rng.laplace, lambda size: rng.uniform(-1, 1, size)]
    excesses = []
    for draw in draws:
        for curvature in (np.ones(MANY, np.float32), log_uniform(20, MANY, decades=4)):
            weights = np.float32(draw(size=MANY))
            found = objective(weights, curvature, jitted("ternary", "candidates")(weights, curvature))
            excesses.append(found / best_objective(weights, curvature, "ternary") - 1)
    assert np.mean(excesses) <= 5e-7


@pytest.mark.parametrize("power", [-2, 2])
@pytest.mark.parametrize("grid", ["ternary", "linear(4)", "logarithmic(4)"])
def test_near_exact_where_curvature_follows_the_weights(grid, power):
    weights = draw_weights("gaussian")
    curvature = np.clip(np.abs(weights), 1e-3, 1) ** power
    assert excess_over_bound(grid, weights, curvature) <= 0


@pytest.mark.parametrize(("size", "outlier"), [(200, 2.0**6), (4096, 2.0**27)])
@pytest.mark.parametrize("grid", ["linear(4)", "logarithmic(4)"])
def test_an_outlier_that_hardly_counts(grid, size, outlier):
    # The scale and the thresholds are far below the outlier.
    weights, curvature = np.float32(np.random.default_rng(12).normal(size=size)), np.ones(size, np.float32)
    weights[0], curvature[0] = outlier, 1e-4 / outlier**2
    found = objective(weights, curvature, jitted(grid, "candidates")(weights, curvature))
    assert found <= 1.05 * best_objective(weights, curvature, grid)


@pytest.mark.slow
def test_near_exact_for_eight_bits():
    assert excess_over_bound("linear(8)", draw_weights("gaussian"), log_uniform(9, MANY)) <= 0


@pytest.mark.parametrize("granularity", [fobt.per_block(32), fobt.per_channel(1)], ids=["per_block", "per_channel"])
@pytest.mark.parametrize("grid", ["ternary", "linear(4)", "linear(8)", "logarithmic(4)"])
def test_small_groups_are_within_a_few_percent(grid, granularity):
    weights, curvature = np.float32(np.random.default_rng(10).normal(size=(256, 32))), log_uniform(11, (256, 32))
    found = objective(weights, curvature, jitted(grid, "candidates", granularity)(weights, curvature))
    # Groups as rows: blocks of 32 rows, column by column, or whole columns.
    size = 32 if granularity == fobt.per_block(32) else 256
    groups = zip(weights.T.reshape(-1, size), curvature.T.reshape(-1, size), strict=True)
    slack = 0.25 if grid == "linear(8)" else 0.01
    assert found <= (1 + slack) * sum(best_objective(w, c, grid) for w, c in groups)


@pytest.mark.parametrize("size", [9, 128])
@pytest.mark.parametrize("grid", ["ternary", "linear(3)", "linear(4)", "logarithmic(3)"])
def test_groups_over_weights_and_curvatures_as_they_occur(grid, size):
    """Excess over the optimum: in the median of groups at most 1e-3, of the sum over groups at most 1e-2."""
    rng = np.random.default_rng(14)
    shape, excesses = (size, 12), []
    for weights in (rng.normal(size=shape), rng.laplace(size=shape), rng.standard_t(3, shape)):
        for spread in (1, 2):
            w, c = np.float32(weights), np.float32(np.exp(spread * rng.normal(size=shape)) * (rng.random(shape) > 0.1))
            found = objective(w, c, jitted(grid, "candidates", fobt.per_channel())(w, c), axis=0)
            best = np.array([best_objective(*group, grid) for group in zip(w.T, c.T, strict=True)])
            rounding = 1e-6 * weighted_sum(c, np.float64(w) ** 2, axis=0)
            excesses += list((found - best - rounding) / best)
            assert np.sum(found) <= 1.01 * np.sum(best) + np.sum(rounding)
    assert np.median(excesses) <= 1e-3


@pytest.mark.parametrize("outlier", [1e2, 1e4, 1e6])
@pytest.mark.parametrize("curvature", [0, 1e-14])
@pytest.mark.parametrize("granularity", [fobt.per_channel(), fobt.per_tensor()], ids=["group", "tensor"])
@pytest.mark.parametrize("grid", ["ternary", "linear(4)", "logarithmic(3)"])
def test_a_large_weight_without_curvature_does_not_spoil_its_group(grid, granularity, curvature, outlier):
    weights, c = np.float32(np.random.default_rng(15).normal(size=(512, 1))), np.ones((512, 1), np.float32)
    weights[7], c[7] = outlier, curvature
    found = objective(weights, c, jitted(grid, "candidates", granularity)(weights, c))
    assert found <= 1.01 * best_objective(weights.ravel(), c.ravel(), grid)


@pytest.mark.parametrize("grid", ["ternary", "linear(4)"])
def test_one_large_weight_that_counts_is_met(grid):
    weights = np.float32(np.random.default_rng(16).normal(size=(1024, 2)))
    weights[7, 0] = 100
    found = objective(weights, None, jitted(grid, "candidates", fobt.per_channel())(weights), axis=0)
    best = [best_objective(column, np.ones(1024), grid) for column in weights.T]
    assert np.all(found <= 1.01 * np.array(best))
