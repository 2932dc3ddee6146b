"""Large tensors, of which a sample chooses among the candidates, on one device: outliers and what does not count."""

import jax
import numpy as np
import pytest
from candidates_test import best_objective
from grid_cases import make

from fobt._src.quantizers import quantizer, rows, sample

SIZE = 70 * rows.ROW + 3


@pytest.fixture
def project(monkeypatch):
    """The projection in rows, with runs that are joined twice."""
    monkeypatch.setattr(quantizer, "fits_loops", lambda x: True)
    monkeypatch.setattr(sample, "_MOST_ROWS", 6)
    monkeypatch.setattr(sample, "_RUNS", 2**10)
    programs = {}

    def of(grid, weights, curvature):
        if grid not in programs:
            projection = make(grid)
            programs[grid] = jax.jit(lambda w, c: projection._project_groups(w, c, None))
        return programs[grid](weights, curvature)

    return of


def draw():
    rng = np.random.default_rng(0)
    return np.float32(rng.normal(size=SIZE)), np.float32(np.exp(rng.normal(size=SIZE)))


@pytest.mark.parametrize("grid", ["ternary", "linear(4)", "logarithmic(4)"])  # the last is not sampled
def test_near_exact_in_any_unit_and_beside_weights_that_do_not_count(project, grid):
    weights, curvature = draw()
    weights[-2], curvature[-2] = 300, 1  # counts
    bound = 1.002 * best_objective(weights, curvature, grid)

    def objective(w, c, unit=1.0, counts=slice(None)):
        found = np.float64(project(grid, np.float32(w), np.float32(c)).dequantize()) / unit
        return 0.5 * np.sum((curvature * (weights - found) ** 2)[counts])

    assert objective(weights, curvature) <= bound
    for place, size, c in ((5, 1e30, np.inf), (1000, 1e6, 0), (2, 1e6, 1e-16), (SIZE - 1, 3e38, np.inf)):
        beside, with_beside = weights.copy(), curvature.copy()
        beside[place], with_beside[place] = size, c
        assert objective(beside, with_beside, counts=np.arange(SIZE) != place) <= bound
    for unit, c in ((1e-30, 1e-25), (1e30, 1e25), (1e35, 1e-25)):
        assert objective(np.float64(weights) * unit, np.float64(curvature) * c, unit) <= bound


def test_what_is_not_finite_does_not_pass_as_finite(project):
    for place in (3, SIZE - 1):
        for w, c in ((np.nan, 1), (np.inf, 1), (np.nan, np.inf), (np.inf, np.inf), (1, np.nan)):
            weights, curvature = draw()
            weights[place], curvature[place] = w, c
            assert not np.isfinite(project("ternary", weights, curvature).scale)


def test_degenerate(project):
    weights, curvature = draw()
    assert project("ternary", np.zeros_like(weights), curvature).scale == 1
    for c in (0, np.inf):
        scale = project("ternary", weights, np.full_like(curvature, c)).scale
        np.testing.assert_allclose(scale, np.max(np.abs(weights)), rtol=1e-6)
