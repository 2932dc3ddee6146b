r"""The near-exact solver: the best of some candidates for α, in a few passes over the weights.

Where levels are Δ apart, rounding costs about C Δ²/12 for each weight, and clipping C (r - α)² for each r > α. The α
that minimises their sum,

    κ α² Σ C + Σ_{r > α} C (r - α)²,    κ = 1/(12 n²) on the linear grid,                                         (S)

is the only minimum of a convex function, and Newton's method finds it in a few steps: α ← Σ C r / (κ Σ C + Σ C), the
sums but the one with κ over r > α. It is near the optimum of (P) wherever that is, also far below a weight that hardly
counts. Candidates in fixed ratios to it are then compared by what they gain when α is fitted to their levels, and the
best one is refined by alternation.

The rule without curvature is that of Sakr et al., Optimal Clipping and Magnitude-aware Differentiation for Improved
Quantization-aware Training, ICML 2022, Eq. 6.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from fobt._src.quantizers.grid import Grid
from fobt._src.quantizers.solvers import Problem, Scales, best_fit, fit, fitted_to, joint_reduce, joint_sum, ratio, run_axis

_NEWTON_STEPS = 3
# Candidates, in units of the minimum of (S): the fewer levels there are, the wider its model errs.
_LINEAR_RANGES, _FINE_RANGE, _LOGARITHMIC_RANGE = {2: (0.5, 8.0), 3: (0.75, 2.5)}, (0.85, 1.5), (0.5, 4.0)
_CANDIDATES, _CANDIDATES_OF_MANY_LEVELS, _MANY_LEVELS = 12, 32, 8
_AT_A_TIME = 6
# Groups with so many places where a level changes are solved exactly: each of them is a candidate.
_FEW_CHANGES = 64
# So many weights of a larger tensor choose among the candidates.
_SAMPLE = 2**15
# Their rows are a multiple of so many, which makes sums over them fast.
_ROWS = 16


def candidates(problem: Problem, grid: Grid) -> Scales:
    """The α that assigns and the one that fits, for every group; not for the binary grid."""
    sample = _sample(problem)
    sample = dataclasses.replace(sample, curvature=sample.without_pinned(sample.curvature), is_finite=True)
    r, axes = sample.r, sample.axes
    if math.prod(r.shape[axis] for axis in axes) * grid.max_code <= _FEW_CHANGES:
        alphas = _changes(sample, grid)
    else:
        alphas = _least_modelled_error(sample, grid)[None] * jnp.asarray(_ratios(grid), r.dtype).reshape(-1, *[1] * r.ndim)
    # Some at a time: what a loop takes is computed once, where XLA would compute r for each candidate.
    count = next(count for count in range(_AT_A_TIME, 0, -1) if len(alphas) % count == 0)
    batches = alphas.reshape(-1, count, *alphas.shape[1:])
    _, (x, y) = jax.lax.scan(lambda _, some: (None, _sums_of_fits(sample, grid, some)), None, batches)
    best = best_fit(x.reshape(alphas.shape), y.reshape(alphas.shape), 0)
    if len(axes) == r.ndim:
        return fitted_to(problem, grid, fit(problem, grid, best))
    return jax.lax.fori_loop(0, 2, lambda _, scales: (scales[1], fit(sample, grid, scales[1])), (best, best))


def _sums_of_fits(problem: Problem, grid: Grid, alphas: jax.Array) -> Scales:
    """Σ C r β and Σ C β² of the levels β nearest to r / α, for candidates α along a leading axis."""
    axis, run = run_axis(problem.r, problem.axes)
    inverse = jnp.expand_dims(jnp.moveaxis(grid.steps_per_level / alphas, 0, axis), axis)

    def with_runs(x: jax.Array) -> jax.Array:
        """Candidates are the axis before that of the runs, so that each run is read from the nearest cache."""
        return x.reshape(*x.shape[:axis], x.shape[axis] // run, 1, run, *x.shape[axis + 1 :])

    r, c = with_runs(problem.r), with_runs(problem.curvature)
    levels = grid.nearest_steps(r * inverse)
    weighted = c * levels
    x, y = joint_reduce(weighted * r, weighted * levels, (axis + 2,), 0, jax.lax.add)
    x, y = joint_sum(x, y, tuple(other + (other > axis) for other in problem.axes))
    x, y = (jnp.moveaxis(s, axis + 1, 0) for s in (x, y))
    unit = grid.max_code if grid.spacing == "linear" else 1
    return x / unit, y / unit**2


def _least_modelled_error(problem: Problem, grid: Grid) -> jax.Array:
    """The minimum of (S)."""
    if grid.spacing == "linear":
        kappa = 1 / (12 * grid.max_code**2)
    else:  # What lies below the first midpoint and becomes 0 is the part of the error that grows with α.
        kappa = float(grid.midpoints[0]) ** 2
    r, c, axes = problem.r, problem.curvature, problem.axes
    moment, total = joint_sum(c * r, c, axes)
    mean = ratio(moment, total)

    def newton(_: jax.Array, alpha: jax.Array) -> jax.Array:
        above = jnp.where(r > alpha, c, 0)
        moment, clipped = joint_sum(above * r, above, axes)
        return jnp.maximum(moment / jnp.where(total > 0, kappa * total + clipped, 1), mean)

    return jax.lax.fori_loop(0, _NEWTON_STEPS, newton, mean * (grid.bits / 2))


def _ratios(grid: Grid) -> np.ndarray:
    """The candidates in units of the minimum of (S)."""
    of_bits = _LINEAR_RANGES.get(grid.bits, _FINE_RANGE)
    least, most = of_bits if grid.spacing == "linear" else _LOGARITHMIC_RANGE
    return np.geomspace(least, most, _CANDIDATES if grid.max_code < _MANY_LEVELS else _CANDIDATES_OF_MANY_LEVELS)


def _changes(problem: Problem, grid: Grid) -> jax.Array:
    """All α at which a level changes, a little smaller, along a new leading axis."""
    r, axes = problem.r, problem.axes
    kept = [axis for axis in range(r.ndim) if axis not in axes]
    of_groups = r.transpose(*axes, *kept).reshape(-1, *[1 if axis in axes else r.shape[axis] for axis in range(r.ndim)])
    midpoints = jnp.asarray(grid.midpoints, r.dtype).reshape(-1, *[1] * of_groups.ndim)
    changes = (of_groups[None] / midpoints).reshape(-1, *of_groups.shape[1:])
    return jnp.maximum(changes * (1 - 4 * jnp.finfo(r.dtype).eps), jnp.finfo(r.dtype).tiny)


def _sample(problem: Problem) -> Problem:
    """Of one large group every so many rows, otherwise the problem."""
    r, c = problem.r, problem.curvature
    if len(problem.axes) < r.ndim or r.size <= _SAMPLE or jax.typeof(r).sharding.mesh.explicit_axes:
        return problem
    axis = int(np.argmax(r.shape))
    stride = min(r.size // _SAMPLE, r.shape[axis])
    rows = r.shape[axis] // stride
    rows -= rows % _ROWS if rows > _ROWS else 0

    def every(x: jax.Array) -> jax.Array:
        """A reshape and a slice, which leave rows on their devices, where a slice with a stride would not."""
        x = jax.lax.slice_in_dim(x, 0, rows * stride, axis=axis)
        x = x.reshape(*x.shape[:axis], rows, stride, *x.shape[axis + 1 :])
        return jax.lax.index_in_dim(x, stride - 1, axis + 1, keepdims=False)

    return dataclasses.replace(problem, r=every(r), curvature=every(c))
