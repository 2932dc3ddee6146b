"""The grids under test: how fobt makes their quantizers, and their levels written by hand."""

import functools

import jax
import numpy as np

import fobt

POSITIVE_LEVELS = {
    "binary": [1],
    "ternary": [1],
    "linear(3)": [1 / 3, 2 / 3, 1],
    "linear(4)": [1 / 7, 2 / 7, 3 / 7, 4 / 7, 5 / 7, 6 / 7, 1],
    "linear(8)": [code / 127 for code in range(1, 128)],
    "logarithmic(3)": [1 / 4, 1 / 2, 1],
    "logarithmic(4)": [1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1],
    "logarithmic(5)": [2.0**-exponent for exponent in (14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0)],
}
GRIDS = list(POSITIVE_LEVELS)
SEARCHED_GRIDS = GRIDS[1:]  # those that need a solver
SOLVERS = ["exact", "candidates", "alternating"]
SOLVED_GRIDS = [("binary", None), *((grid, solver) for grid in SEARCHED_GRIDS for solver in SOLVERS)]


def make(grid, solver=None, granularity=None, **options):
    """The quantizer of a grid; solver and granularity None stand for the default."""
    if solver is not None:
        options["solver"] = solver
    if granularity is not None:
        options["granularity"] = granularity
    if grid in ("binary", "ternary"):
        return getattr(fobt, grid)(**options)
    name, bits = grid.rstrip(")").split("(")
    return getattr(fobt, name)(int(bits), **options)


dequantize = jax.jit(fobt.Quantized.dequantize)


@functools.cache
def jitted(grid, solver=None, granularity=None, **options):
    """The quantizer of a grid, compiled once per shape and dtype for all tests."""
    return jax.jit(make(grid, solver, granularity, **options))


def allowed_levels(grid):
    """Q, ascending."""
    positive = np.array(POSITIVE_LEVELS[grid], np.float64)
    return np.concatenate([-positive[::-1], [] if grid == "binary" else [0.0], positive])


def levels_of(grid, codes):
    """β of integer codes."""
    codes = np.asarray(codes, int)
    return np.sign(codes) * np.array([0.0, *POSITIVE_LEVELS[grid]])[np.abs(codes)]


@functools.cache
def jitted_rows(grid, solver=None, granularity=None, **options):
    """Like `jitted`, for a quantizer that sees each row on its own; gives codes, scales and quantized weights."""
    quantizer = make(grid, solver, granularity, **options)

    def quantize_row(weights, curvature=None, codes=None):
        quantized = quantizer(weights, curvature, codes=codes)
        return quantized.codes, quantized.scale, quantized.dequantize()

    return jax.jit(lambda *rows: jax.vmap(quantize_row)(*rows))


def weighted_sum(curvature, x, axis=None):
    """Σ C x in float64, where curvature None stands for ones."""
    x = np.asarray(x, np.float64)
    return np.sum(x if curvature is None else np.asarray(curvature, np.float64) * x, axis)


def objective(weights, curvature, quantized, axis=None):
    """½ Σ C (w - ŵ)² in float64, with the weights ŵ that `dequantize` gives."""
    error = np.asarray(weights, np.float64) - np.asarray(dequantize(quantized), np.float64)
    return weighted_sum(curvature, 0.5 * error**2, axis)
