"""Groups that are projected in chunks come out as without them."""

import jax
import numpy as np
import pytest
from grid_cases import make

import fobt
from fobt._src.quantizers import cache_chunks, quantizer

CASES = [
    ((40, 70), fobt.per_channel(), "linear(4)"),
    ((70, 40), fobt.per_channel(0), "ternary"),
    ((32, 60), fobt.per_block(16), "logarithmic(3)"),
    ((5, 90), fobt.per_block(7, axis=1), "linear(3)"),
    ((3, 3, 8, 33), fobt.per_channel(), "linear(4)"),
    ((6, 7, 9), fobt.per_channel(1), "ternary"),
]


def assert_same_in_chunks(monkeypatch, project):
    whole = project()
    monkeypatch.setattr(quantizer, "fits_loops", lambda x: True)
    monkeypatch.setattr(cache_chunks, "_CHUNK", 300)
    cut = project()
    np.testing.assert_array_equal(cut.codes, whole.codes)
    np.testing.assert_allclose(cut.scale, whole.scale, rtol=1e-6)


@pytest.mark.parametrize(("shape", "granularity", "grid"), CASES)
def test_chunks_change_nothing(monkeypatch, shape, granularity, grid):
    rng = np.random.default_rng(0)
    weights, curvature = np.float32(rng.normal(size=shape)), np.float32(np.exp(rng.normal(size=shape)))
    curvature.flat[3] = np.inf
    projection = make(grid, "candidates", granularity)

    def project():
        return jax.jit(lambda w, c: projection._project_groups(w, c, None))(weights, curvature)

    assert_same_in_chunks(monkeypatch, project)


def test_two_scales(monkeypatch):
    weights = np.float32(np.random.default_rng(1).normal(size=(40, 70)))
    projection = fobt.ternary(scale_per_sign=True, granularity=fobt.per_channel())

    def project():
        return jax.jit(lambda w: projection._project_groups(w, None, None))(weights)

    assert_same_in_chunks(monkeypatch, project)
