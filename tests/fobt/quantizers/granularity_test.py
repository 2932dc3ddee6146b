"""Which weights share a scale: every group is projected on its own, and the scales have the documented shapes."""

import numpy as np
import pytest
import reference
from grid_cases import SOLVERS, allowed_levels, dequantize, jitted, levels_of

import fobt

# Shape of the weights, granularity of fobt and of the reference, shape of the scales.
SPLITS = [
    ((4, 6, 5), fobt.per_tensor(), ("tensor",), ()),
    ((4, 6, 5), fobt.per_channel(), ("channel", [2]), (1, 1, 5)),
    ((4, 6, 5), fobt.per_channel(0), ("channel", [0]), (4, 1, 1)),
    ((4, 6, 5), fobt.per_channel(-2), ("channel", [1]), (1, 6, 1)),
    ((4, 6, 5), fobt.per_channel((0, 2)), ("channel", [0, 2]), (4, 1, 5)),
    ((4, 6, 5), fobt.per_channel([-1, 1]), ("channel", [1, 2]), (1, 6, 5)),
    ((2, 3, 4), fobt.per_channel((0, 1, 2)), ("channel", [0, 1, 2]), (2, 3, 4)),
    ((7,), fobt.per_channel(0), ("channel", [0]), (7,)),
    ((4, 6, 5), fobt.per_block(2), ("block", 2, 0), (2, 6, 5)),
    ((4, 6, 5), fobt.per_block(4, axis=1), ("block", 4, 1), (4, 2, 5)),  # blocks of 4 and 2
    ((4, 6, 5), fobt.per_block(3, axis=-1), ("block", 3, 2), (4, 6, 2)),  # blocks of 3 and 2
    ((4, 6, 5), fobt.per_block(10, axis=1), ("block", 10, 1), (4, 1, 5)),  # longer than the axis
    ((33, 4), fobt.per_block(32), ("block", 32, 0), (2, 4)),  # a last block of one
    ((6, 3), fobt.per_block(1), ("block", 1, 0), (6, 3)),
    ((50,), fobt.per_block(16), ("block", 16, 0), (4,)),
]
SEARCHED = [(grid, solver) for grid in ("linear(3)", "ternary", "logarithmic(3)") for solver in SOLVERS]
# Every granularity with a grid that is searched, and half of them with the binary one.
CASES = [(*split, "binary", None) for split in SPLITS[::2]]
CASES += [(*split, *SEARCHED[4 * i % len(SEARCHED)]) for i, split in enumerate(SPLITS)]
CASES += [(*SPLITS[11], *solved) for solved in [("linear(8)", "candidates"), ("logarithmic(5)", "candidates")]]


def tensor(shape, seed=0):
    """Weights of which every group has another size, and their curvature."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=shape) * 10 ** rng.uniform(-2, 2, size=shape)
    return weights, 10 ** rng.uniform(-3, 0, shape)


def per_weight(scale, shape, granularity):
    """The scales, spread by hand over the weights that they belong to."""
    kind = granularity[0]
    if kind == "block":
        _, size, axis = granularity
        return np.take(np.repeat(scale, size, axis), range(shape[axis]), axis)
    return np.broadcast_to(scale, shape)


@pytest.mark.parametrize(("shape", "granularity", "split", "scale_shape", "grid", "solver"), CASES)
def test_every_group_is_projected_on_its_own(x64, shape, granularity, split, scale_shape, grid, solver):
    weights, curvature = tensor(shape)
    quantized = jitted(grid, solver, granularity)(weights, curvature)
    assert quantized.scale.shape == scale_shape
    assert quantized.codes.shape == shape
    w_hat = per_weight(np.asarray(quantized.scale), shape, split) * levels_of(grid, quantized.codes)
    np.testing.assert_allclose(dequantize(quantized), w_hat, rtol=1e-14)

    project = reference.project_alternating if solver == "alternating" else reference.project_exact
    expected = reference.quantize_tensor(weights, curvature, allowed_levels(grid), split, project)
    total, total_best, energy = 0, 0, np.sum(curvature * weights**2)
    for group in reference.group_slices(shape, split):
        w, c, found, wanted = (x.ravel()[group] for x in (weights, curvature, w_hat, expected))
        error, best = reference.objective(w, c, found), reference.objective(w, c, wanted)
        total, total_best = total + error, total_best + best
        if solver == "candidates":
            assert error >= best - 1e-12 * np.sum(c * w**2)
        else:
            assert abs(error - best) <= 1e-12 * np.sum(c * w**2)
    assert total <= 1.01 * total_best + 1e-4 * energy


@pytest.mark.parametrize(("grid", "solver"), [("binary", None), ("linear(3)", "exact"), ("linear(3)", "alternating")])
def test_blocks_that_are_not_full_count_their_own_weights(x64, grid, solver):
    weights = tensor((7, 3))[0]
    w_hat = dequantize(jitted(grid, solver, fobt.per_block(4))(weights))  # blocks of 4 and 3, without curvature
    project = reference.project_alternating if solver == "alternating" else reference.project_exact
    expected = reference.quantize_tensor(weights, 1, allowed_levels(grid), ("block", 4, 0), project)
    np.testing.assert_allclose(w_hat, expected, rtol=1e-12)


@pytest.mark.parametrize(("shape", "granularity", "split", "scale_shape"), SPLITS[4::6])
def test_two_scales_have_a_leading_axis(shape, granularity, split, scale_shape):
    weights = np.float32(tensor(shape)[0])
    quantized = jitted("ternary", "alternating", granularity, scale_per_sign=True)(weights)
    assert quantized.scale.shape == (2, *scale_shape)
    plus, minus = (per_weight(scale, shape, split) for scale in np.asarray(quantized.scale))
    w_hat = np.where(quantized.codes > 0, plus, minus) * np.asarray(quantized.codes)
    np.testing.assert_allclose(dequantize(quantized), w_hat, rtol=1e-6)
