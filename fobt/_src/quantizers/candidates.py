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

# Candidates, in units of the minimum of (S), are compared first far apart and then near to the best one. The fewer levels
# there are, the wider the model of (S) errs.
_LINEAR_RANGES, _FINE_RANGE, _LOGARITHMIC_RANGE = {2: (0.5, 10.0), 3: (0.7, 3.0)}, (0.75, 1.8), (0.5, 4.0)
_CANDIDATES = 7
_ZOOMS_OF_GROUPS, _ZOOMS_OF_TENSORS = 1, 2
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
    if math.prod(sample.r.shape[axis] for axis in sample.axes) * grid.max_code <= _FEW_CHANGES:
        assigning = _best_change(sample, grid)
    else:
        assigning = _best_ratio(sample, grid)
    if sample.r.size < problem.r.size:
        assigning = _by_secant(problem, grid, assigning)
    return fitted_to(problem, grid, assigning)


def _best_ratio(problem: Problem, grid: Grid) -> jax.Array:
    """The best of the candidates."""
    zooms = _ZOOMS_OF_GROUPS if len(problem.axes) < problem.r.ndim else _ZOOMS_OF_TENSORS
    least, most = _LOGARITHMIC_RANGE if grid.spacing == "logarithmic" else _LINEAR_RANGES.get(grid.bits, _FINE_RANGE)
    ratios, distance = [np.geomspace(least, most, _CANDIDATES)], math.log(most / least) / (_CANDIDATES - 1)
    for _ in range(zooms):  # As many between the two neighbours of the best one, which is in their middle.
        ratios.append(np.exp(distance * np.linspace(-1, 1, _CANDIDATES + 2)[1:-1]))
        distance *= 2 / (_CANDIDATES + 1)

    def best_near(alpha: jax.Array, ratios: jax.Array) -> tuple[jax.Array, None]:
        alphas = alpha[None] * ratios.reshape(-1, *[1] * alpha.ndim)
        return best_fit(*_sums_of_fits(problem, grid, alphas), 0), None

    return jax.lax.scan(best_near, _least_modelled_error(problem, grid), jnp.asarray(ratios, problem.r.dtype))[0]


def _best_change(problem: Problem, grid: Grid) -> jax.Array:
    """The best of all α at which a level changes: exact."""
    r, axes = problem.r, problem.axes
    kept = [axis for axis in range(r.ndim) if axis not in axes]
    of_groups = r.transpose(*axes, *kept).reshape(-1, *[1 if axis in axes else r.shape[axis] for axis in range(r.ndim)])
    midpoints = jnp.asarray(grid.midpoints, r.dtype).reshape(-1, *[1] * of_groups.ndim)
    alphas = (of_groups[None] / midpoints).reshape(-1, 1, *of_groups.shape[1:])
    # A little smaller, so that the level has changed.
    alphas = jnp.maximum(alphas * (1 - 4 * jnp.finfo(r.dtype).eps), jnp.finfo(r.dtype).tiny)
    x, y = jax.lax.map(lambda alphas: _sums_of_fits(problem, grid, alphas), alphas)
    return best_fit(x[:, 0], y[:, 0], 0)


def _by_secant(problem: Problem, grid: Grid, alpha: jax.Array) -> jax.Array:
    """A better α from one of a sample: two steps towards where fitting α to its levels does not change it.

    Alternation stops there too, but each of its steps goes only a part of the way, less the more levels there are.
    """
    farthest = 1.25

    def limited(to: jax.Array, alpha: jax.Array) -> jax.Array:
        return jnp.clip(to, alpha / farthest, alpha * farthest)

    change = fit(problem, grid, alpha) - alpha
    second = limited(alpha + 2 * change, alpha)
    second_change = fit(problem, grid, second) - second
    slope = (second_change - change) / jnp.where(second == alpha, 1, second - alpha)
    # Between rounded numbers the slope may be anything; alternation itself has -1 at most.
    return limited(second - second_change / jnp.clip(slope, -1, -0.05), second)


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

    return jax.lax.fori_loop(0, grid.bits, newton, mean * (grid.bits / 2))


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
