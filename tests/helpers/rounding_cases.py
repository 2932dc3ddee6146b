"""Rounding to the nearest of the levels written by hand, and the Lp norm of its error."""

import numpy as np
from grid_cases import allowed_levels


def some_weights(shape, seed=0):
    """Weights with heavy tails."""
    return np.random.default_rng(seed).standard_t(df=4, size=shape).astype(np.float32)


def nearest_levels(grid, weights, scale):
    """Every weight to the nearest of the levels written by hand, in float64."""
    levels = scale * allowed_levels(grid)
    return levels[np.argmin(np.abs(np.asarray(weights, np.float64)[..., None] - levels), axis=-1)]


def lp_error(grid, weights, scale, norm):
    return np.sum(np.abs(np.asarray(weights, np.float64) - nearest_levels(grid, weights, scale)) ** norm)
