"""How far the objective of a projection is above the global optimum, found in float64 by sorting."""

from typing import Any

import jax
import numpy as np

import fobt

# Where there are more breakpoints than these, so many candidates are compared instead, and the neighbours of the best
# ones refined.
_SORTED, _CANDIDATES, _REFINED, _ALTERNATIONS = 2**22, 4096, 32, 30
_GROUPS = 400


def excess(quantizer: fobt.Quantizer, weights: Any, curvature: Any) -> float:
    """The objective of a projection over the optimum, minus 1, summed over groups, or over some of many.

    Args:
        quantizer: One scale per tensor, per channel of the last axis, or per block of the first axis.
        weights: A matrix.
        curvature: Of its shape.
    """
    count = max(4, _GROUPS // quantizer.grid.max_code)
    quantized = jax.jit(lambda w, c: quantizer(w, c).dequantize())(weights, curvature)
    w, c, q = (_groups(quantizer, np.asarray(x, np.float64), count) for x in (weights, curvature, quantized))
    found = np.sum(c * (w - q) ** 2)
    return float(found / sum(optimum(*group, quantizer.grid) for group in zip(w, c, strict=True)) - 1)


def optimum(weights: np.ndarray, curvature: np.ndarray, grid: Any) -> float:
    """The least Σ C (w - α β)² over α > 0 and levels β of a grid.

    Example:
        >>> optimum(np.array([4.0, 2.0, -0.5]), np.ones(3), fobt.ternary().grid)
        2.25
    """
    levels, midpoints = grid.positive_levels, grid.midpoints
    if grid.spacing == "binary":
        return float(np.sum(curvature * (np.abs(weights) - np.average(np.abs(weights), weights=curvature)) ** 2))
    order = np.argsort(np.abs(weights))
    r, c = np.abs(weights)[order], curvature[order]
    change_1, change_2 = np.diff(levels, prepend=0.0), np.diff(levels**2, prepend=0.0)
    if r.size * levels.size <= _SORTED:
        falling = np.argsort(-(r[:, None] / midpoints).ravel())  # the α at which a weight reaches a level
        x, y = (np.cumsum((part[:, None] * by).ravel()[falling]) for part, by in ((c * r, change_1), (c, change_2)))
        gain = np.divide(x**2, y, out=np.zeros_like(x), where=y > 0)
        return float(np.sum(c * r**2) - np.max(gain, initial=0.0))
    above_1, above_2 = (np.concatenate([np.cumsum(x[::-1])[::-1], [0.0]]) for x in (c * r, c))

    def sums(alphas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        first = np.searchsorted(r, alphas[:, None] * midpoints, side="right")
        return above_1[first] @ change_1, above_2[first] @ change_2

    def gains(alphas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x, y = sums(alphas)
        fitted = np.divide(x, y, out=np.zeros_like(x), where=y > 0)
        return x * fitted, fitted

    coarse = r[-1] * np.geomspace(1e-4, 2, _CANDIDATES)
    best = coarse[np.argsort(-gains(coarse)[0])[:_REFINED]]
    alphas = np.ravel(best[:, None] * np.geomspace(0.998, 1.002, _REFINED))
    for _ in range(_ALTERNATIONS):
        fitted = gains(alphas)[1]
        alphas = np.where(fitted > 0, fitted, alphas)
    return float(np.sum(c * r**2) - np.max(gains(alphas)[0], initial=0.0))


def _groups(quantizer: fobt.Quantizer, x: np.ndarray, count: int) -> np.ndarray:
    """Some groups as rows."""
    granularity = quantizer.granularity
    if granularity == fobt.per_tensor():
        rows = x.reshape(1, -1)
    else:
        size = getattr(granularity, "size", len(x))
        rows = x.T.reshape(-1, size)
    return rows[:: max(1, len(rows) // count)]
