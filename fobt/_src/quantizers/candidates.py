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
from jax.sharding import PartitionSpec

from fobt._src.quantizers.grid import Grid
from fobt._src.quantizers.rows import LANES, LENGTH, Rows, run_of_sample
from fobt._src.quantizers.solvers import (
    Problem,
    Scales,
    best_fit,
    fit_and_gain,
    fitted_to,
    joint_reduce,
    joint_sum,
    ratio,
    reduce_rest,
    run_axis,
    split_runs,
)

# Candidates, in units of the minimum of (S), are compared first far apart and then near to the best one. The fewer
# levels there are, the wider the model of (S) errs.
_RANGES = {("linear", 2): (0.5, 10), ("linear", 3): (0.7, 3), ("linear", 4): (0.75, 1.8), ("logarithmic", 3): (0.5, 4)}
_RANGES["logarithmic", 2] = _RANGES["linear", 2]
_FINE_RANGES = {"linear": (0.75, 1.8), "logarithmic": (0.35, 4)}
_BEYOND = 1.25
# How many candidates, how often again, and after how many steps of Newton. Of groups, where the passes cost most, a few
# do unless levels are many.
_OF_GROUPS, _OF_TENSORS = (7, 1), (15, 2, 8)
# Groups with so many places where a level changes are solved exactly: each of them is a candidate.
_FEW_CHANGES = 64
# A step of the secant changes α by this factor at most.
_FARTHEST = 1.25
# A larger tensor has about so many runs, each of at least so many weights, of which two choose among the candidates.
_RUNS, _LEAST_RUN = 2**14, 4
# Their rows are a multiple of so many, which makes sums over them fast.
_ROWS = 16


def candidates(problem: Problem, grid: Grid) -> Scales:
    """The α that assigns and the one that fits, for every group; not for the binary grid."""
    if not problem.r.size:
        return fitted_to(problem, grid, jnp.ones(()))
    sample = _sample(problem) if problem.rows is None else _sample_of_rows(problem, problem.rows)
    changes = math.prod(sample.r.shape[axis] for axis in sample.axes) * grid.max_code
    if changes <= _FEW_CHANGES and problem.rows is None:
        return fitted_to(problem, grid, _best_change(sample, grid))
    assigning = _best_ratio(sample, grid)
    if sample.r.size == problem.r.size:
        return fitted_to(problem, grid, assigning)
    one_of_each = assigning if problem.rows is not None else assigning.reshape((1,) * problem.r.ndim)
    return _by_secant(problem, grid, one_of_each)


def _best_ratio(problem: Problem, grid: Grid) -> jax.Array:
    """The best of the candidates around the minimum of (S)."""
    r, c, axes = problem.r, problem.curvature, problem.axes
    is_rough = (grid.spacing, grid.bits) in _RANGES
    least, most = _RANGES.get((grid.spacing, grid.bits), _FINE_RANGES[grid.spacing])
    count, zooms, steps = (*_OF_GROUPS, grid.bits - 1) if is_rough and not problem.is_of_tensors else _OF_TENSORS
    modelled = _least_modelled_error(problem, grid, steps)
    # Where few weights have most of Σ C r², far beyond that minimum, the best α may be their size.
    energy = c * r * r
    of_energy = ratio(*joint_sum(energy * jnp.sqrt(r), energy, axes, problem.rows)) ** 2
    span = jnp.log(jnp.maximum(most * modelled, _BEYOND * of_energy) / (least * modelled))
    # As many again between the two neighbours of the best one, which is in their middle.
    places = [np.linspace(0, 1, count)]
    for zoom in range(zooms):
        distance = (2 / (count + 1)) ** zoom / (count - 1)
        places.append(distance * np.linspace(-1, 1, count + 2)[1:-1])

    def best_near(alpha: jax.Array, places: jax.Array) -> tuple[jax.Array, None]:
        alphas = _rounded(alpha[None] * jnp.exp(span[None] * places.reshape(-1, *[1] * r.ndim)))
        return best_fit(*_sums_of_fits(problem, grid, alphas), 0), None

    return jax.lax.scan(best_near, least * modelled, jnp.asarray(places, r.dtype))[0]


def _rounded(alpha: jax.Array) -> jax.Array:
    """α to 12 bits, so that it does not depend on the order in which sums were added, which sharding changes."""
    return jax.lax.reduce_precision(alpha, jnp.finfo(alpha.dtype).nexp, 12)


def _best_change(problem: Problem, grid: Grid) -> jax.Array:
    """The best of all α at which a level changes: exact."""
    r, axes = problem.r, problem.axes
    kept = [axis for axis in range(r.ndim) if axis not in axes]
    sharding = jax.typeof(r).sharding
    if sharding.mesh.explicit_axes:  # No loop goes along an axis that is spread over devices.
        r = jax.sharding.reshard(
            r, PartitionSpec(*(sharding.spec[axis] if axis in kept else None for axis in range(r.ndim)))
        )
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
        return _rounded(jnp.clip(to, alpha / _FARTHEST, alpha * _FARTHEST))

    alpha = _rounded(alpha)
    first, gain = fit_and_gain(problem, grid, alpha)
    second = limited(alpha + 2 * (first - alpha), alpha)
    fitted, second_gain = fit_and_gain(problem, grid, second)
    slope = (fitted - second - first + alpha) / jnp.where(second == alpha, 1, second - alpha)
    # Between rounded numbers the slope may be anything; alternation itself has -1 at most.
    third = limited(second - (fitted - second) / jnp.clip(slope, -1, -0.05), second)
    last, last_gain = fit_and_gain(problem, grid, third)
    assigning, fits, gains = (
        jnp.stack(x) for x in ((alpha, second, third), (first, fitted, last), (gain, second_gain, last_gain))
    )
    best = jnp.argmax(gains, 0)[None]
    return jnp.take_along_axis(assigning, best, 0)[0], jnp.take_along_axis(fits, best, 0)[0]


def _sums_of_fits(problem: Problem, grid: Grid, alphas: jax.Array) -> Scales:
    """Σ C r β and Σ C β² of the levels β nearest to r / α, for candidates α along a leading axis."""
    r, c, inverse = problem.r, problem.curvature, grid.steps_per_level / alphas
    axis, run = run_axis(r, problem.axes) if problem.rows is None else (1, 0)

    def terms(r: jax.Array, c: jax.Array, inverse: jax.Array) -> Scales:
        levels = grid.nearest_steps(r * inverse)
        weighted = c * levels
        return weighted * r, weighted * levels

    axes = tuple(other + 1 for other in problem.axes)
    if problem.rows is not None:
        columns = joint_reduce(*terms(r[:, None], c[:, None], jnp.moveaxis(inverse, 0, 1)), (2,), 0, jax.lax.add)
        x, y = (problem.rows.over_tensors(jnp.sum(sums, -1), jax.lax.add).T[..., None, None] for sums in columns)
    elif run == 1:
        x, y = reduce_rest(*terms(r[None], c[None], inverse), axes, 0, jax.lax.add)
    else:  # Candidates are the axis before that of the runs, so that each run is read from the nearest cache.
        (r, rest_r), (c, rest_c) = (split_runs(array, axis, run) for array in (r, c))
        by_runs = jnp.expand_dims(jnp.moveaxis(inverse, 0, axis), axis)
        x, y = terms(jnp.expand_dims(r, axis + 1), jnp.expand_dims(c, axis + 1), by_runs)
        x, y = joint_reduce(x, y, (axis + 2,), 0, jax.lax.add)
        x, y = reduce_rest(x, y, tuple(other + (other > axis) for other in problem.axes), 0, jax.lax.add)
        x, y = (jnp.moveaxis(sums, axis + 1, 0) for sums in (x, y))
        if rest_r.shape[axis]:
            rest_x, rest_y = reduce_rest(*terms(rest_r[None], rest_c[None], inverse), axes, 0, jax.lax.add)
            x, y = x + rest_x, y + rest_y
    return x / grid.steps_per_level, y / grid.steps_per_level**2


def _least_modelled_error(problem: Problem, grid: Grid, steps: int) -> jax.Array:
    """The minimum of (S)."""
    # Of a logarithmic grid the part of the error that grows with α is what lies below the first midpoint and becomes 0.
    kappa = 1 / (12 * grid.max_code**2) if grid.spacing == "linear" else float(grid.midpoints[0]) ** 2
    r, c, axes = problem.r, problem.curvature, problem.axes
    moment, total = joint_sum(c * r, c, axes, problem.rows)
    mean = ratio(moment, total)

    def newton(_: jax.Array, alpha: jax.Array) -> jax.Array:
        above = jnp.where(r > alpha, c, 0)
        moment, clipped = joint_sum(above * r, above, axes, problem.rows)
        return jnp.maximum(moment / jnp.where(total > 0, kappa * total + clipped, 1), mean)

    return jax.lax.fori_loop(0, steps, newton, mean * (grid.bits / 2))


def _sample(problem: Problem) -> Problem:
    """Of one large group two weights of every run, otherwise the problem.

    The weight with the largest C r², which the outliers are among, counts for itself, and one other for all others.
    """
    r, c = problem.r, problem.without_pinned(problem.curvature)
    if not problem.is_of_tensors or r.size < _LEAST_RUN * _RUNS:
        return dataclasses.replace(problem, curvature=c, is_finite=True)
    # Rows are taken whole, where there are enough.
    has_rows = r.ndim > 1 and max(r.shape[:-1]) * _RUNS >= r.size
    axis = int(np.argmax(r.shape[:-1] if has_rows else r.shape))
    length = min(r.size // _RUNS, r.shape[axis]) // _LEAST_RUN * _LEAST_RUN
    if not length:
        return dataclasses.replace(problem, curvature=c, is_finite=True)
    rows = r.shape[axis] // length
    rows -= rows % _ROWS if rows > _ROWS else 0

    def in_runs(x: jax.Array) -> jax.Array:
        x = jax.lax.slice_in_dim(x, 0, rows * length, axis=axis)
        return x.reshape(*x.shape[:axis], rows, length // _LEAST_RUN, _LEAST_RUN, *x.shape[axis + 1 :])

    sampled = _two_of_each_run(in_runs(r), in_runs(c), axis)
    return Problem(*sampled, problem.members, tuple(range(r.ndim + 1)), True)


def _sample_of_rows(problem: Problem, rows: Rows) -> Problem:
    """The same of the columns of rows, as many as tensors of that size want."""
    r, c = problem.r, problem.without_pinned(problem.curvature)
    run = run_of_sample(max(map(math.prod, rows.shapes)))
    if run is None or run == 1:
        return dataclasses.replace(problem, curvature=c, is_finite=True)
    in_runs = (len(r), LENGTH // run, run // _LEAST_RUN, _LEAST_RUN, LANES)
    sampled = _two_of_each_run(r.reshape(in_runs), c.reshape(in_runs), 1)
    r, c = (jnp.moveaxis(x, 0, 1).reshape(len(r), LENGTH, -1) for x in sampled)
    return Problem(r, c, problem.members, problem.axes, True, rows)


def _two_of_each_run(r: jax.Array, c: jax.Array, axis: int) -> Scales:
    """Magnitudes and curvature of two weights of each run, which the two axes behind `axis` are, along a new axis."""
    length = r.shape[axis + 1] * r.shape[axis + 2]
    zero = jnp.zeros((), r.dtype)

    def larger(p: tuple[jax.Array, ...], q: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        return tuple(jnp.where(p[0] < q[0], y, x) for x, y in zip(p, q, strict=True))

    largest = c * r * r, r, c
    for reduced in (axis + 2, axis + 1):  # in short runs at first, over which the loop is vectorised
        largest = jax.lax.reduce(largest, (zero - 1, zero, zero), larger, (reduced,))
    energy, of_r, of_c = largest
    other_r, other_c = (x[(slice(None),) * (axis + 1) + (-1, -1)] for x in (r, c))
    other_c = jnp.where(other_c * other_r * other_r < energy, other_c * (length - 1), 0)
    # A new axis: to lengthen one would move what lies on several devices.
    return jnp.stack([of_r, other_r]), jnp.stack([of_c, other_c])
