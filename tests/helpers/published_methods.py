"""Steps of published methods in plain float64 NumPy, one line per formula; imports nothing from fobt.

Letters: w latents, Q the levels of a tensor in ascending order (scale included), rho the inverse slope, g gradients.
"""

# ruff: noqa: N803 - Q is the letter of the papers, as an argument too

import itertools
import math

import numpy as np


def nearest(w, Q):
    """The nearest level of every weight; halfway between two the one of smaller magnitude."""
    return np.array([min(Q, key=lambda q: (abs(x - q), abs(q))) for x in w.ravel()]).reshape(w.shape)


def neighbours(x, Q):
    """The levels below and above x, or None where it is beyond the outermost one."""
    for lower, upper in itertools.pairwise(Q):
        if lower <= x <= upper:
            return lower, upper
    return None


def annealed(w, Q, rho):
    """PARQ: every weight drawn towards its nearest level, 0 < rho < 1."""
    result = np.empty(w.shape)
    for index in np.ndindex(*w.shape):
        x = w[index]
        if (pair := neighbours(x, Q)) is None:
            outermost = Q[-1] if x > 0 else Q[0]
            result[index] = outermost + rho * (x - outermost)
        else:
            centre, half = (pair[0] + pair[1]) / 2, (pair[1] - pair[0]) / 2
            result[index] = centre + min(max((x - centre) / rho, -half), half)
    return result


def gaussian_scale(levels):
    """QuEST: the alpha for which alpha * levels are nearest to a standard normal number, by a sum over its density."""
    x = np.linspace(-12, 12, 24_001)
    density = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    candidates = np.linspace(0.5, 5, 901)
    errors = [np.sum(density * np.min((x[:, None] - alpha * levels[None]) ** 2, axis=1)) for alpha in candidates]
    return candidates[np.argmin(errors)]


def trusted(w, g, scale, levels):
    """QuEST: the gradient where the nearest level is at most half a step away; levels are those of scale 1."""
    Q, half_step = scale * levels, scale * (levels[-1] - levels[-2]) / 2
    return np.where(np.abs(w - nearest(w, Q)) <= half_step, g, 0)


def hadamard(size):
    """The orthonormal matrix of Sylvester: entry (i, j) has the sign of the parity of the bits that i and j share."""
    signs = [[(-1) ** bin(i & j).count("1") for j in range(size)] for i in range(size)]
    return np.array(signs) / math.sqrt(size)


def rounding_variance(x, Q):
    """LOTION: the variance of x rounded to one of its neighbours at random, with x for its mean."""
    if (pair := neighbours(x, Q)) is None:
        return 0.0
    lower, upper = pair
    p = (x - lower) / (upper - lower)  # probability of the upper one
    return p * (upper - x) ** 2 + (1 - p) * (lower - x) ** 2
