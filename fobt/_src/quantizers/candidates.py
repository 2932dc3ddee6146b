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
from fobt._src.quantizers.solvers import Problem, Scales, best_fit, fit_and_gain, fitted_to, joint_reduce, joint_sum, ratio, run_axis

# Candidates, in units of the minimum of (S), are compared first far apart and then near to the best one. The fewer levels
# there are, the wider the model of (S) errs.
_LINEAR_RANGES, _FINE_RANGE, _LOGARITHMIC_RANGE = {2: (0.5, 10.0), 3: (0.7, 3.0)}, (0.75, 1.8), (0.5, 4.0)
_CANDIDATES = 7
_ZOOMS_OF_GROUPS, _ZOOMS_OF_TENSORS = 1, 2
# From so many bits on the tail of the weights decides.
_FINE_BITS, _STEPS_WITH_ALL, _STEPS_WITH_ALL_OF_FINE = 5, 1, 3
# Groups with so many places where a level changes are solved exactly: each of them is a candidate.
_FEW_CHANGES = 64
# A step of the secant changes α by this factor at most.
_FARTHEST = 1.25
# So many weights of a larger tensor choose among the candidates.
_SAMPLE = 2**15
# Their rows are a multiple of so many, which makes sums over them fast.
_ROWS = 16


def candidates(problem: Problem, grid: Grid) -> Scales:
    """The α that assigns and the one that fits, for every group; not for the binary grid."""
    sample = _sample(problem)
    sample = dataclasses.replace(sample, curvature=sample.without_pinned(sample.curvature), is_finite=True)
    if math.prod(sample.r.shape[axis] for axis in sample.axes) * grid.max_code <= _FEW_CHANGES:
        return fitted_to(problem, grid, _best_change(sample, grid))
    total, modelled = _least_modelled_error(sample, grid)
    assigning = _best_ratio(sample, grid, modelled)
    if sample.r.size < problem.r.size:
        # The sample may have none of the few weights that are clipped. The optimum moves with the minimum of (S).
        nearer, total = modelled, total * (problem.r.size / sample.r.size)
        for _ in range(_STEPS_WITH_ALL if grid.bits < _FINE_BITS else _STEPS_WITH_ALL_OF_FINE):
            nearer = _newton_step(problem, grid, total, nearer)
        assigning *= nearer / modelled
        if grid.bits < _FINE_BITS:
            return _by_secant(problem, grid, assigning)
    return fitted_to(problem, grid, assigning)


def _best_ratio(problem: Problem, grid: Grid, modelled: jax.Array) -> jax.Array:
    """The best of the candidates around the minimum of (S)."""
    zooms = _ZOOMS_OF_GROUPS if len(problem.axes) < problem.r.ndim else _ZOOMS_OF_TENSORS
    least, most = _LOGARITHMIC_RANGE if grid.spacing == "logarithmic" else _LINEAR_RANGES.get(grid.bits, _FINE_RANGE)
    ratios, distance = [np.geomspace(least, most, _CANDIDATES)], math.log(most / least) / (_CANDIDATES - 1)
    for _ in range(zooms):  # As many between the two neighbours of the best one, which is in their middle.
        ratios.append(np.exp(distance * np.linspace(-1, 1, _CANDIDATES + 2)[1:-1]))
        distance *= 2 / (_CANDIDATES + 1)

    def best_near(alpha: jax.Array, ratios: jax.Array) -> tuple[jax.Array, None]:
        alphas = alpha[None] * ratios.reshape(-1, *[1] * alpha.ndim)
        return best_fit(*_sums_of_fits(problem, grid, alphas), 0), None

    return jax.lax.scan(best_near, modelled, jnp.asarray(ratios, problem.r.dtype))[0]


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


def _by_secant(problem: Problem, grid: Grid, alpha: jax.Array) -> Scales:
    """The best of one α and of two steps from there to where fitting α to its levels does not change it.

    Alternation stops there too, but each of its steps goes only a part of the way, less the more levels there are.
    """

    def limited(to: jax.Array, alpha: jax.Array) -> jax.Array:
        return jnp.clip(to, alpha / _FARTHEST, alpha * _FARTHEST)

    first, gain = fit_and_gain(problem, grid, alpha)
    second = limited(alpha + 2 * (first - alpha), alpha)
    fitted, second_gain = fit_and_gain(problem, grid, second)
    slope = (fitted - second - first + alpha) / jnp.where(second == alpha, 1, second - alpha)
    # Between rounded numbers the slope may be anything; alternation itself has -1 at most.
    third = limited(second - (fitted - second) / jnp.clip(slope, -1, -0.05), second)
    last, last_gain = fit_and_gain(problem, grid, third)
    assigning, fits, gains = (jnp.stack(x) for x in ((alpha, second, third), (first, fitted, last), (gain, second_gain, last_gain)))
    best = jnp.argmax(gains, 0)[None]
    return tuple(jnp.take_along_axis(x, best, 0)[0] for x in (assigning, fits))


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
    return x / grid.steps_per_level, y / grid.steps_per_level**2


def _least_modelled_error(problem: Problem, grid: Grid) -> Scales:
    """Σ C and the minimum of (S)."""
    moment, total = joint_sum(problem.curvature * problem.r, problem.curvature, problem.axes)
    mean = ratio(moment, total)
    start = mean * (grid.bits / 2)

    def newton(_: jax.Array, alpha: jax.Array) -> jax.Array:
        return jnp.maximum(_newton_step(problem, grid, total, alpha), mean)

    return total, jax.lax.fori_loop(0, grid.bits - 1, newton, start)


def _newton_step(problem: Problem, grid: Grid, total: jax.Array, alpha: jax.Array) -> jax.Array:
    """A step towards the minimum of (S), given Σ C; from the left it does not go beyond."""
    if grid.spacing == "linear":
        kappa = 1 / (12 * grid.max_code**2)
    else:  # What lies below the first midpoint and becomes 0 is the part of the error that grows with α.
        kappa = float(grid.midpoints[0]) ** 2
    above = problem.without_pinned(jnp.where(problem.r > alpha, problem.curvature, 0))
    moment, clipped = joint_sum(above * problem.r, above, problem.axes)
    stiffness = kappa * total + clipped
    return jnp.where(moment == 0, alpha, moment / jnp.where(moment == 0, 1, stiffness))


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
