"""How far projections are above the optimum, over weights and curvatures of many kinds that no solver was tuned on."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

import fobt
from experiments.costs.excess import optimum

GRIDS = {
    **{f"linear({bits})": (fobt.linear, bits) for bits in (2, 3, 4, 8)},
    **{f"logarithmic({bits})": (fobt.logarithmic, bits) for bits in (3, 5)},
}
TENSORS, GROUPS, CHANNELS = (3_000, 30_000, 300_000), (100, 600, 4_000), 8
# Of Σ C w², what float32 rounds away.
_ROUNDING = 1e-6
_MOST_BREAKPOINTS = 2**22


def draw_weights(rng: np.random.Generator, size: int) -> Iterator[np.ndarray]:
    """Weights with light and heavy tails, of one and of two sizes, most of them zero, two-sided, clipped."""
    normal, signs = rng.normal(size=size), rng.choice([-1.0, 1.0], size)
    yield normal
    yield rng.laplace(size=size)
    yield rng.standard_t(3, size)
    yield rng.standard_t(1.5, size)
    yield rng.uniform(-1, 1, size)
    yield signs * rng.lognormal(0, 1, size)
    yield signs * rng.lognormal(0, 2.5, size)
    yield normal * np.where(rng.random(size) < 0.1, 1, 0.01)
    yield normal * np.where(rng.random(size) < 0.01, 1, 0.01)
    yield normal * (rng.random(size) < 0.02)
    yield signs * (1 + 0.2 * normal)
    yield np.clip(normal, -1, 1)
    yield signs * rng.weibull(0.5, size)


def draw_curvatures(rng: np.random.Generator, weights: np.ndarray) -> Iterator[np.ndarray]:
    """Curvatures that are constant, log-normal, half of them zero, or follow the weights."""
    yield np.ones_like(weights)
    yield rng.lognormal(0, 1, weights.shape)
    yield rng.lognormal(0, 3, weights.shape)
    yield rng.lognormal(0, 1, weights.shape) * (rng.random(weights.shape) > 0.5)
    yield np.clip(np.abs(weights), 1e-6, 1e6)
    yield 1 / np.clip(np.abs(weights), 1e-3, 1e6)


def accuracy(seed: int) -> list[dict[str, Any]]:
    """Quantiles of the excess of the objective over the optimum, for each grid and size, of tensors and of channels.

    In units of the optimum, or of what float32 rounds away where that is more.
    """
    rows = []
    for name, (make, bits) in GRIDS.items():
        for granularity, sizes, columns in (
            (fobt.per_tensor(), TENSORS, 1),
            (fobt.per_channel(), GROUPS, CHANNELS),
        ):
            quantizer = make(bits, granularity=granularity)
            for size in sizes:
                if size * quantizer.grid.max_code > _MOST_BREAKPOINTS:
                    continue
                excesses = np.concatenate(list(_excesses(quantizer, seed, (size, columns))))
                quantiles = np.quantile(excesses, [0.5, 0.9, 0.99, 1])
                kind = "tensors" if columns == 1 else "channels"
                rows.append(
                    {"what": f"{name}, {kind} of {size:,}", "count": excesses.size}
                    | dict(zip(("median", "most", "nearly_all", "largest"), map(float, quantiles), strict=True))
                )
    return rows


def _excesses(quantizer: fobt.Quantizer, seed: int, shape: tuple[int, int]) -> Iterator[np.ndarray]:
    """The excess of each column, for every kind of weights and curvature."""
    rng = np.random.default_rng((seed, *shape))
    project = jax.jit(lambda w, c: quantizer(w, c).dequantize())
    for weights in draw_weights(rng, shape[0] * shape[1]):
        for curvature in draw_curvatures(rng, weights):
            single = [x.reshape(shape).astype(np.float32) for x in (weights, curvature)]
            w, c, q = (np.asarray(x, np.float64) for x in (*single, project(*single)))
            found, scale = np.sum(c * (w - q) ** 2, 0), np.sum(c * w**2, 0)
            best = np.array([optimum(w[:, i], c[:, i], quantizer.grid) for i in range(shape[1])])
            rounding = _ROUNDING * scale
            above, unit = np.maximum(found - best - rounding, 0), np.maximum(best, rounding)
            yield np.divide(above, unit, out=np.zeros_like(above), where=unit > 0)
