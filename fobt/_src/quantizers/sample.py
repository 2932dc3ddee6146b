"""A sample of a large tensor that chooses among the candidates: two weights of every run.

The most important weight of a run, which the outliers are among, counts for itself, and one other for all others.
"""

from __future__ import annotations

from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from fobt._src.quantizers.grid import Grid
from fobt._src.quantizers.rows import LANES, LENGTH, ROW, Rows
from fobt._src.quantizers.solvers import Problem, is_pinned

Arrays: TypeAlias = tuple[jax.Array, ...]

# Of so many weights a sample is enough; more where the objective has many minima, as on logarithmic grids.
_LEAST, _LEAST_LOGARITHMIC = 2**15, 2**17
# Runs of a tensor are joined until they are in so many rows at most.
_MOST_ROWS = 512
# A tensor that may be spread over devices has about so many runs, each of at least so many weights, in rows that are a
# multiple of so many, which makes sums over them fast.
_RUNS, _LEAST_RUN, _ROWS = 2**14, 4, 16


def is_sampled(size: int, grid: Grid) -> bool | None:
    """Whether a sample chooses among the candidates for a tensor of so many weights; None where it makes no row."""
    least = _LEAST_LOGARITHMIC if grid.spacing == "logarithmic" and grid.bits > 3 else _LEAST
    return None if size < ROW else size >= least


def importance(r: jax.Array, c: jax.Array, members: jax.Array) -> jax.Array:
    """An integer that grows with C r², about its logarithm; lower without curvature, -1 where there is no weight.

    The bits of floats are about their logarithms. Products may overflow: magnitudes are those before normalisation.
    What is not finite, and shall not pass as finite, is most important.
    """
    bits = jnp.finfo(r.dtype).bits
    of_r, of_c = (jax.lax.bitcast_convert_type(x, f"int{bits}") for x in (r, c))
    counts = (c > 0) & ~is_pinned(c) | ~(r <= jnp.finfo(r.dtype).max)
    return jnp.where(members, (of_r >> 2) + jnp.where(counts, (of_c >> 3) + (1 << (bits - 3)), 0), -1)


def most_important(runs: Arrays, axis: int) -> Arrays:
    """Importance, magnitude and curvature of the most important weight along an axis."""

    def larger(p: Arrays, q: Arrays) -> Arrays:
        return tuple(jnp.where(p[0] < q[0], y, x) for x, y in zip(p, q, strict=True))

    return jax.lax.reduce(runs, _nothing(runs), larger, (axis,))


def _nothing(runs: Arrays) -> Arrays:
    """What stands for no weight."""
    return tuple(jnp.asarray(value, x.dtype) for value, x in zip((-1, 0, 0), runs, strict=True))


def sample_of_rows(r: jax.Array, c: jax.Array, members: jax.Array, rows: Rows) -> Arrays:
    """Magnitudes, curvature and members of the sample of every tensor, as rows of it; no run is left out."""
    every = importance(r, c, members), r, c
    first, length = most_important(every, 1), LENGTH
    while len(rows.shapes) == 1 and len(first[0]) > _MOST_ROWS:
        run = min(LENGTH, -(-len(first[0]) // _MOST_ROWS))
        gap = (0, -len(first[0]) % run, 0), (0, 0, 0)
        padded = (jax.lax.pad(x, zero, gap) for x, zero in zip(first, _nothing(first), strict=True))
        first, length = most_important(tuple(x.reshape(-1, run, LANES) for x in padded), 1), length * run
    runs = np.arange(len(first[0]))
    # Another place in each run, lest all are in the same columns of a matrix.
    place = np.minimum(runs * length + 3 * runs % length, len(r) * LENGTH - 1)
    other = [x.reshape(-1, LANES)[place] for x in every]
    of_others = jnp.where((other[0] < first[0]) | is_pinned(other[2]), other[2] * (length - 1), 0)
    pairs = (first[1], other[1]), (first[2], of_others), (first[0] >= 0, other[0] >= 0)
    return tuple(jnp.stack(pair, 1).reshape(len(runs), LENGTH, -1) for pair in pairs)


def sample_of_tensor(problem: Problem) -> Problem:
    """The sample of one large tensor that keeps its axes, otherwise the problem; some weights may be overlooked."""
    r, c = problem.r, problem.without_pinned(problem.curvature)
    if problem.rows is not None or not problem.is_of_tensors or r.size < _LEAST_RUN * _RUNS:
        return problem
    # Rows are taken whole, where there are enough.
    has_rows = r.ndim > 1 and max(r.shape[:-1]) * _RUNS >= r.size
    axis = int(np.argmax(r.shape[:-1] if has_rows else r.shape))
    length = min(r.size // _RUNS, r.shape[axis]) // _LEAST_RUN * _LEAST_RUN
    if not length:
        return problem
    rows = r.shape[axis] // length
    rows -= rows % _ROWS if rows > _ROWS else 0

    def in_runs(x: jax.Array) -> jax.Array:
        x = jax.lax.slice_in_dim(x, 0, rows * length, axis=axis)
        return x.reshape(*x.shape[:axis], rows, length // _LEAST_RUN, _LEAST_RUN, *x.shape[axis + 1 :])

    every = in_runs(importance(r, c, jnp.ones_like(r, bool))), in_runs(r), in_runs(c)
    # In short runs at first, over which the loop is vectorised.
    first = most_important(most_important(every, axis + 2), axis + 1)
    other = [x[(slice(None),) * (axis + 1) + (-1, -1)] for x in every]
    of_others = jnp.where(other[0] < first[0], other[2] * (length - 1), 0)
    # A new axis: to lengthen one would move what lies on several devices.
    pairs = (jnp.stack([first[1], other[1]]), jnp.stack([first[2], of_others]))
    return Problem(*pairs, problem.members, tuple(range(r.ndim + 1)), True)
