r"""The near-exact solver: the best of some candidates for α, in a few passes over the weights.

The α that minimises (P) is between sizes that weights have, one of them smaller, one larger:

    a m ≤ α ≤ b M,    √m = Σ C r √r / Σ C r,    √M = Σ C r² √r / Σ C r²,

with factors a and b of the grid. In M weights count by what is lost where they become 0; it is the larger one, and both
are those of the many where a weight far beyond them hardly counts. Candidates in fixed ratios are compared by what they
gain when α is fitted to their levels, first from end to end and then near to the best one.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from fobt._src.quantizers.grid import Grid
from fobt._src.quantizers.sample import sample_of_tensor
from fobt._src.quantizers.solvers import (
    Problem,
    Scales,
    best_fit,
    fitted_to,
    is_pinned,
    joint_reduce,
    joint_sum,
    ratio,
    reduce_rest,
    run_axis,
    split_runs,
)

# Factors a, and b of the linear grid with 2 bits and of logarithmic ones, measured: but for the steepest tails, the
# optima of normal, Laplace, Student, Cauchy, uniform, sparse, bimodal, log-normal and log-uniform weights, with
# curvature that is constant, log-normal, log-uniform or follows the weights, are in between.
_LEAST, _MOST, _MOST_LOGARITHMIC = {2: 0.9}, 1.2, {2: 1.2, 3: 2.2, 4: 7.0, 5: 40.0}
# How many candidates are compared twice: of tensors, and, as passes cost most there, of groups by their bits. More
# where levels are many, and once more where the objective has many minima.
_OF_TENSORS, _OF_GROUPS, _OF_MANY_LEVELS = 21, {2: 7, 3: 7, 4: 9}, 31
# Groups with so many places where a level changes are solved exactly: each of them is a candidate.
_FEW_CHANGES = 64
# All weights are fitted to the α of a sample and to two beside it, by this factor. From there α may change by that
# factor, and the slope of what fitting changes is not taken for less.
_BESIDE, _FARTHEST, _FLATTEST = 1.03, 1.25, -1e-3


def candidates(problem: Problem, grid: Grid) -> Scales:
    """The α that assigns and the one that fits, for every group; not for the binary grid."""
    if not problem.r.size:
        return fitted_to(problem, grid, jnp.ones(()))
    sample = problem.sample or sample_of_tensor(problem)
    sample = dataclasses.replace(sample, curvature=sample.without_pinned(sample.curvature), is_finite=True)
    changes = math.prod(sample.r.shape[axis] for axis in sample.axes) * grid.max_code
    if changes <= _FEW_CHANGES and problem.rows is None:
        return fitted_to(problem, grid, _best_change(sample, grid))
    assigning = _best_ratio(sample, grid)
    if sample.r.size == problem.r.size and problem.rows is None:
        return fitted_to(problem, grid, assigning)
    one_of_each = assigning if problem.rows is not None else assigning.reshape((1,) * problem.r.ndim)
    return _by_secant(problem, grid, one_of_each)


def _best_ratio(problem: Problem, grid: Grid) -> jax.Array:
    """The best of the candidates between a m and b M."""
    r, c, axes = problem.r, problem.curvature, problem.axes
    is_linear = grid.spacing == "linear"
    has_many = grid.bits > (4 if is_linear else 3)
    count = _OF_MANY_LEVELS if has_many else _OF_TENSORS if problem.is_of_tensors else _OF_GROUPS[grid.bits]
    zooms = 2 if has_many and not is_linear else 1
    moment, root = c * r, jnp.sqrt(r)
    smaller = ratio(*joint_sum(moment * root, moment, axes, problem.rows)) ** 2
    larger = ratio(*joint_sum(moment * r * root, moment * r, axes, problem.rows)) ** 2
    # Every bit makes the optimum larger by about √2, and rounding finer.
    most = _MOST * 2 ** (grid.bits / 2 - 1) if is_linear else _MOST_LOGARITHMIC[grid.bits]
    least = _LEAST.get(grid.bits, 1.0) * smaller
    span = jnp.log(jnp.maximum(most * larger / least, 1))
    # As many again between the two neighbours of the best one, which is in their middle.
    places = [np.linspace(0, 1, count)]
    for zoom in range(zooms):
        distance = (2 / (count + 1)) ** zoom / (count - 1)
        places.append(distance * np.linspace(-1, 1, count + 2)[1:-1])

    def best_near(alpha: jax.Array, places: jax.Array) -> tuple[jax.Array, None]:
        alphas = _rounded(alpha[None] * jnp.exp(span[None] * places.reshape(-1, *[1] * r.ndim)))
        return best_fit(*_sums_of_fits(problem, grid, alphas), 0), None

    return jax.lax.scan(best_near, least, jnp.asarray(places, r.dtype))[0]


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
    """The best of one α, two beside it, and that to which they point: where fitting α to its levels does not change it.

    Alternation stops there too, but each of its steps goes only a part of the way, less the more levels there are.
    """
    near = _rounded(alpha[None] * jnp.asarray([1 / _BESIDE, 1, _BESIDE], alpha.dtype).reshape(-1, *[1] * alpha.ndim))
    fits, gains = _fits_and_gains(problem, grid, near)
    error = fits - near
    slopes = jnp.diff(error, axis=0) / jnp.diff(near, axis=0)
    # Between rounded numbers the slope may be anything; alternation itself has -1 at most.
    slope = jnp.clip(jnp.where(error[1] > 0, slopes[1], slopes[0]), -1, _FLATTEST)
    to = _rounded(jnp.clip(near[1] - error[1] / slope, near[1] / _FARTHEST, near[1] * _FARTHEST))[None]
    tried = (near, fits, gains), (to, *_fits_and_gains(problem, grid, to))
    assigning, fits, gains = (jnp.concatenate(x) for x in zip(*tried, strict=True))
    best = jnp.argmax(gains, 0)[None]
    return jnp.take_along_axis(assigning, best, 0)[0], jnp.take_along_axis(fits, best, 0)[0]


def _fits_and_gains(problem: Problem, grid: Grid, alphas: jax.Array) -> Scales:
    """The α that fit the levels nearest to r / α, for α along a leading axis, and their gains."""
    x, y = _sums_of_fits(problem, grid, alphas)
    fits = ratio(x, y)
    return fits, x * fits


def _sums_of_fits(problem: Problem, grid: Grid, alphas: jax.Array) -> Scales:
    """Σ C r β and Σ C β² of the levels β nearest to r / α, for candidates α along a leading axis."""
    r, c, inverse = problem.r, problem.curvature, grid.steps_per_level / alphas
    axis, run = run_axis(r, problem.axes) if problem.rows is None else (1, 0)

    def terms(r: jax.Array, c: jax.Array, inverse: jax.Array) -> Scales:
        levels = grid.nearest_steps(r * inverse)
        weighted = c * levels if problem.is_finite else jnp.where(is_pinned(c), 0, c * levels)
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
