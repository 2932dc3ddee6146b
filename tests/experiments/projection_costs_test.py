"""The benchmark of projections: the optimum that it compares with, and that no time goes without its excess."""

import numpy as np
import pytest
import reference
from grid_cases import allowed_levels, make

import fobt
from experiments.costs.excess import excess, optimum
from experiments.costs.projections import ADAM_UPDATE, ALLOCATING, rows_with_excess


@pytest.mark.parametrize("grid", ["binary", "ternary", "linear(3)", "logarithmic(3)"])
def test_optimum_is_that_of_brute_force(grid):
    rng = np.random.default_rng(0)
    for _ in range(5):
        weights, curvature = rng.normal(size=4), rng.uniform(0.1, 1, 4)
        alpha, beta = reference.brute_force(weights, curvature, allowed_levels(grid))
        expected = np.sum(curvature * (weights - alpha * beta) ** 2)
        np.testing.assert_allclose(optimum(weights, curvature, make(grid).grid), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("granularity", [fobt.per_tensor(), fobt.per_channel(), fobt.per_block(8)])
def test_exact_projections_have_no_excess(granularity):
    rng = np.random.default_rng(1)
    weights, curvature = np.float32(rng.normal(size=(32, 6))), np.float32(rng.uniform(0.1, 1, (32, 6)))
    for quantizer in (fobt.binary(granularity=granularity), fobt.linear(3, solver="exact", granularity=granularity)):
        assert abs(excess(quantizer, weights, curvature)) <= 1e-5


def test_no_row_without_an_excess():
    seconds = {ADAM_UPDATE: [2.0, 1.0], ALLOCATING: [2.0, 2.0], "linear(4), per tensor": [4.0, 3.0]}
    *_, row = rows_with_excess("", seconds, {"linear(4), per tensor": 0.1}, {})
    assert (row["ratio"], row["allocating"], row["excess"]) == (3.0, 1.5, 0.1)
    with pytest.raises(ValueError, match=r"excesses must have one .* \['linear\(4\), per tensor'\] have none"):
        rows_with_excess("", seconds, {}, {})
