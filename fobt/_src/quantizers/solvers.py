r"""Solvers of the curvature-weighted projection, for all groups of a tensor at once.

For each group of weights with magnitudes rᵢ = |wᵢ| and curvature Cᵢ ≥ 0 the projection

    minimise  ½ Σᵢ Cᵢ (rᵢ - α βᵢ)²   over α > 0 and levels βᵢ ≥ 0 of the grid                                      (P)

is solved in one of its two unknowns when the other is given:

- given α, βᵢ is the level nearest to rᵢ/α: `Grid.nearest`;
- given β, α = Σ C r β / Σ C β², and the objective is ½ (Σ C r² - (Σ C r β)² / Σ C β²): `fit`.

So a solver has to find one number per group, the α that assigns the levels. `closed_form` returns the α of the binary
grid; the others return two arrays with one number per group (`keepdims`): the α that assigns the levels, and the α that
then fits these levels.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from fobt._src.quantizers.grid import Grid
from fobt._src.quantizers.rows import Rows

Scales: TypeAlias = tuple[jax.Array, jax.Array]

# Gains that differ by less than so many units of rounding, times α, are taken as equal.
_TIE = 32

# Lengths of the runs that are reduced first. Rows that are a multiple of a page apart compete for the same few lines of
# the nearest cache.
_SHORTEST_RUN, _FEW, _LONGEST_RUN, _PAGE = 4, 8, 16, 4096

_MAX_ROUNDS = 10
_TOLERANCE = 1e-6


@dataclasses.dataclass(frozen=True)
class Problem:
    """The magnitudes of a tensor's weights in grouped form, with what (P) says of them.

    Attributes:
      r: magnitudes, finite, the largest of every group of the order of 1, so that sums neither overflow nor vanish; 0
        for places that only fill up the grouped form. Pinned weights may be larger.
      curvature: C ≥ 0 in the shape of `r`; infinite for pinned weights, which have no say in α.
      members: 1 for weights, 0 for places that only fill up the grouped form; broadcastable to `r`.
      axes: the axes over which a group extends.
      is_finite: whether no weight is pinned.
      rows: where `r` has the rows of tensors with a scale each, of which `axes` are those within a row.
      sample: a smaller problem with about the same solution, where there is one.
    """

    r: jax.Array
    curvature: jax.Array
    members: jax.Array
    axes: tuple[int, ...]
    is_finite: bool = False
    rows: Rows | None = None
    sample: Problem | None = None

    @property
    def is_of_tensors(self) -> bool:
        """Whether groups are whole tensors."""
        return self.rows is not None or len(self.axes) == self.r.ndim

    def without_pinned(self, x: jax.Array) -> jax.Array:
        """x, and 0 where weights are pinned.

        Each loop should select for itself, from what it has computed: on CPU, XLA stores what several loops share.
        """
        return x if self.is_finite else jnp.where(is_pinned(self.curvature), 0, x)


def is_pinned(curvature: jax.Array) -> jax.Array:
    """Where a curvature is infinite; without that constant, at which `jax_debug_infs` stops."""
    return curvature > jnp.finfo(curvature.dtype).max


def normalise(weights: jax.Array, largest: jax.Array) -> jax.Array:
    """Weights ≥ 0 over the `largest` of their group, or as they are where that is 0; never infinite."""
    # XLA divides by multiplying with the reciprocal, which for the largest floats is subnormal and may be flushed to 0.
    shrink = jnp.where(largest > 1, 1 / 16, 1)
    ratio = weights * shrink / jnp.where(largest == 0, 1, largest * shrink)
    return jnp.minimum(ratio, jnp.finfo(ratio.dtype).max)


def closed_form(problem: Problem, default: jax.Array) -> jax.Array:
    """Binary grid: every level is 1, so α = Σ C r / Σ C, or `default` where there is no curvature."""
    c = problem.without_pinned(problem.curvature)
    numerator, denominator = joint_sum(c * problem.r, c, problem.axes, problem.rows)
    return jnp.where(denominator == 0, default, numerator / jnp.where(denominator == 0, 1, denominator))


def alternating(problem: Problem, grid: Grid, codes: jax.Array | None) -> Scales:
    """Algorithm 2: fit α to the levels, assign the levels to α, until neither changes; a local minimum.

    `codes`, the magnitudes of previous codes, are the start; without them, and in a group where they are of no use
    since all that have a weight are zero, it is the pattern r > 0.7 mean(r).
    """
    r, c, axes, without_pinned = problem.r, problem.curvature, problem.axes, problem.without_pinned
    mean = ratio(*joint_sum(without_pinned(r), without_pinned(problem.members), axes))
    start = (r > 0.7 * mean).astype(r.dtype)
    if codes is not None:
        useful = jnp.max(without_pinned(jnp.where(r > 0, codes, 0)), axes, keepdims=True, initial=0) > 0
        start = jnp.where(useful, grid.levels(codes), start)

    def unsettled(carry: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        assigning, fitted, _ = carry
        return jnp.abs(fitted - assigning) > _TOLERANCE * fitted

    def step(carry: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        assigning, fitted, rounds = carry
        active = unsettled(carry)
        assigning = jnp.where(active, fitted, assigning)
        return assigning, jnp.where(active, fit(problem, grid, assigning), fitted), rounds + 1

    first = ratio(*joint_sum(without_pinned(c * start * r), without_pinned(c * start * start), axes))
    carry = (first, fit(problem, grid, first), jnp.asarray(1))
    assigning, fitted, _ = jax.lax.while_loop(
        lambda carry: jnp.any(unsettled(carry)) & (carry[2] < _MAX_ROUNDS), step, carry
    )
    return assigning, fitted


def exact(problem: Problem, grid: Grid) -> Scales:
    """The global optimum, by sorting the n L values of α at which a level changes (n weights, L positive levels).

    As α falls from infinity, weight i takes level j where α passes rᵢ / midpointⱼ; the running sums of the changes give
    the objective of every assignment on the way, and the optimum is one of them.
    """
    if not problem.r.size:
        return fitted_to(problem, grid, jnp.ones(()))
    kept = tuple(axis for axis in range(problem.r.ndim) if axis not in problem.axes)
    flat = (*(problem.r.shape[axis] for axis in kept), -1)
    r, c = (
        x.transpose(*kept, *problem.axes).reshape(flat)[..., None]
        for x in (problem.r, problem.without_pinned(problem.curvature))
    )
    midpoints = jnp.asarray(grid.midpoints, r.dtype)
    midpoints, change, squared_change = (
        jnp.expand_dims(x, range(r.ndim - 1)) for x in (midpoints, *_level_changes(grid, r.dtype))
    )
    _, change_1, change_2 = jax.lax.sort(
        tuple(x.reshape(flat) for x in (-r / midpoints, c * r * change, c * squared_change)),
        num_keys=1,
    )
    best = best_fit(jnp.cumsum(change_1, -1), jnp.cumsum(change_2, -1), -1)
    return fitted_to(problem, grid, jnp.expand_dims(best, problem.axes))


def _level_changes(grid: Grid, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    """β(j) - β(j-1) and β(j)² - β(j-1)² for j = 1 ... n."""
    squared = jnp.diff(grid.positive_levels**2, prepend=0.0)
    return jnp.asarray(grid.level_changes, dtype), squared.astype(dtype)


def best_fit(sum_1: jax.Array, sum_2: jax.Array, axis: int) -> jax.Array:
    """The fitting α of the best of the assignments along an axis, given their Σ C r β and Σ C β²."""
    alpha = jnp.where(sum_2 > 0, sum_1 / jnp.where(sum_2 > 0, sum_2, 1), 0)
    # The same weights have several forms, as (1, ⅓) = (⅓, 1). Of what is equal to rounding, take the smallest α.
    gain = sum_1 * alpha * (1 - _TIE * jnp.finfo(alpha.dtype).eps * alpha)
    # No index of the maximum, which 32 bits cannot hold for every axis. Where there is NaN, nothing is below it.
    is_best = ~(gain < jnp.max(gain, axis, keepdims=True))
    best = jnp.min(jnp.where(is_best, alpha, jnp.finfo(alpha.dtype).max), axis)
    return jnp.where(best > 0, best, 1)


def fitted_to(problem: Problem, grid: Grid, assigning: jax.Array) -> Scales:
    """An α that assigns the levels, and the one that fits them."""
    return assigning, fit(problem, grid, assigning)


def fit(problem: Problem, grid: Grid, assigning: jax.Array) -> jax.Array:
    """The α that fits the levels nearest to r / assigning."""
    per_level = grid.steps_per_level
    steps = grid.nearest_steps(problem.r * (per_level / assigning))
    weighted = problem.without_pinned(problem.curvature * steps)
    x, y = joint_sum(weighted * problem.r, weighted * steps, problem.axes, problem.rows)
    return ratio(per_level * x, y)


def ratio(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """The quotient, and 1 where that is not positive: a group without weights, or of which no weight has a level."""
    undefined = (numerator <= 0) | (denominator <= 0)
    return jnp.where(undefined, 1, numerator / jnp.where(undefined, 1, denominator))


def joint_sum(
    x: jax.Array, y: jax.Array, axes: tuple[int, ...], rows: Rows | None = None
) -> tuple[jax.Array, jax.Array]:
    """Σ x and Σ y over the axes, `keepdims`, and over the rows of each tensor."""
    return _reduced(x, y, axes, rows, 0, jax.lax.add)


def joint_max(
    x: jax.Array, y: jax.Array, axes: tuple[int, ...], rows: Rows | None = None
) -> tuple[jax.Array, jax.Array]:
    """The largest of x ≥ -1 and of y ≥ -1, as `joint_sum`; -1 where there is none."""
    return _reduced(x, y, axes, rows, -1, jax.lax.max)


def joint_reduce(
    x: jax.Array, y: jax.Array, axes: tuple[int, ...], initial: float, operation: Callable[[Any, Any], Any]
) -> tuple[jax.Array, jax.Array]:
    """Two arrays reduced over axes in one loop.

    On CPU, XLA computes what one loop needs on the fly, but stores what several loops share: two separate reductions of
    expressions of the same weights cost several times as much as a joint one.
    """
    initial_values = (jnp.asarray(initial, x.dtype),) * 2
    return jax.lax.reduce((x, y), initial_values, _in_pairs(operation), axes)


@functools.cache  # outside of jit, a program is found again by this function
def _in_pairs(operation: Callable[[Any, Any], Any]) -> Callable[[Any, Any], tuple[Any, Any]]:
    return lambda p, q: (operation(p[0], q[0]), operation(p[1], q[1]))


def run_axis(x: jax.Array, axes: tuple[int, ...]) -> tuple[int, int]:
    """One of the axes, and the length of its runs over which a joint reduction is fast; 1 where there is none.

    Where the axis has another one behind it, the loop is vectorised over that. On one device, where no long run divides
    the axis, a few rows are left.
    """
    axis = max((axis for axis in axes if axis < x.ndim - 1), default=None, key=lambda axis: (x.shape[axis], axis))
    # Explicit mesh axes cannot always be split.
    if axis is None or jax.typeof(x).sharding.mesh.explicit_axes:
        return 0, 1
    row = math.prod(x.shape[axis + 1 :]) * x.dtype.itemsize
    longest = _LONGEST_RUN if row % _PAGE else _SHORTEST_RUN
    run = _run_length(x.shape[axis], longest)
    if run < min(longest, _FEW) <= x.shape[axis] and jax.device_count() == 1:
        return axis, longest if x.shape[axis] >= longest else _FEW
    return axis, run


def _reduced(
    x: jax.Array,
    y: jax.Array,
    axes: tuple[int, ...],
    rows: Rows | None,
    initial: float,
    operation: Callable[[Any, Any], Any],
) -> tuple[jax.Array, jax.Array]:
    """Two arrays reduced over the axes, `keepdims`, first over short runs of one of them."""
    if rows is not None:
        columns = joint_reduce(x, y, (1,), initial, operation)
        of_lanes = jnp.sum if operation is jax.lax.add else jnp.max
        x, y = (rows.over_tensors(of_lanes(column, 1), operation)[:, None, None] for column in columns)
        return x, y
    axis, run = run_axis(x, axes)
    if run == 1:
        return reduce_rest(x, y, axes, initial, operation)
    (x, rest_x), (y, rest_y) = (split_runs(array, axis, run) for array in (x, y))
    x, y = joint_reduce(x, y, (axis + 1,), initial, operation)
    x, y = reduce_rest(x, y, axes, initial, operation)
    if rest_x.shape[axis]:
        rest_x, rest_y = reduce_rest(rest_x, rest_y, axes, initial, operation)
        x, y = operation(x, rest_x), operation(y, rest_y)
    return x, y


def split_runs(x: jax.Array, axis: int, run: int) -> tuple[jax.Array, jax.Array]:
    """The whole runs of an axis, which becomes two, and the rows that are left."""
    size = x.shape[axis] // run * run
    whole = jax.lax.slice_in_dim(x, 0, size, axis=axis)
    whole = whole.reshape(*x.shape[:axis], size // run, run, *x.shape[axis + 1 :])
    return whole, jax.lax.slice_in_dim(x, size, None, axis=axis)


def reduce_rest(
    x: jax.Array, y: jax.Array, axes: tuple[int, ...], initial: float, operation: Callable[[Any, Any], Any]
) -> tuple[jax.Array, jax.Array]:
    """What is left of two arrays after their runs, reduced over the axes, `keepdims`."""
    if x.ndim - 1 in axes:  # A joint reduction is not vectorised there; separate ones are.
        reduce = jnp.sum if operation is jax.lax.add else jnp.max
        return reduce(x, axes, keepdims=True, initial=initial), reduce(y, axes, keepdims=True, initial=initial)
    x, y = joint_reduce(x, y, axes, initial, operation)
    return jnp.expand_dims(x, axes), jnp.expand_dims(y, axes)


def _run_length(size: int, longest: int) -> int:
    """A divisor of `size` from 4 to `longest`, or 1 where there is none.

    The longest one of those that leave most factors 2 to the number of runs, of which there may be as many as devices,
    so that runs stay whole where an axis is sharded evenly.
    """
    divisors = [run for run in range(_SHORTEST_RUN, longest + 1) if size % run == 0]
    return max(divisors, key=lambda run: (min(size // run & -(size // run), jax.device_count()), run), default=1)
