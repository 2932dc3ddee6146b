"""Quantized weights on random strongly convex quadratics ½ (w - w°)ᵀ H (w - w°): where does looking ahead help?

The eigenvalues of H are spaced evenly in the logarithm from 1/κ to 1, its eigenvectors are random; minimiser and start
are standard normal. A loss counts in units of that of the quantized minimiser.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import scipy

import fobt
from experiments.studies.zigzag import comparison

DIMENSIONS = 20
CONDITION_NUMBERS = (1, 10, 100)
QUANTIZERS = {
    "binary": fobt.binary(),
    "ternary": fobt.ternary(solver="alternating"),
    "3 bits": fobt.linear(3, solver="alternating"),
}
LEARNING_RATES = {
    "gradient steps": (0.01, 0.03, 0.1, 0.3, 1.0, 1.5, 2.0, 3.0),
    "Adam, b1 = 0": (0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
    "Adam, b1 = 0.9": (0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
}


def loss(weights: jax.Array, data: tuple[jax.Array, jax.Array]) -> jax.Array:
    """The quadratic at weights of shape (1, DIMENSIONS), for H and w°."""
    hessian, minimiser = data
    error = weights - minimiser
    return jnp.sum(error @ hessian * error) / 2


def problems(condition_number: float, draws: int) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """H, w° and starts of seeds 0 to draws - 1."""
    eigenvalues = np.geomspace(1 / condition_number, 1.0, DIMENSIONS)
    rngs = [np.random.default_rng(seed) for seed in range(draws)]
    bases = [scipy.stats.ortho_group.rvs(DIMENSIONS, random_state=rng) for rng in rngs]
    hessians = np.stack([basis * eigenvalues @ basis.T for basis in bases])
    minimisers, starts = np.stack([rng.normal(size=(2, 1, DIMENSIONS)) for rng in rngs], axis=1)
    return (hessians.astype(np.float32), minimisers.astype(np.float32)), starts.astype(np.float32)


def measure(
    condition_numbers: tuple[int, ...], quantizer: str, optimizer: str, *, draws: int, steps: int
) -> list[comparison.Setting]:
    """The runs of one quantizer and optimizer, a setting for each condition number."""
    drawn = [problems(number, draws) for number in condition_numbers]
    data, starts = jax.tree.map(lambda *arrays: np.concatenate(arrays), *drawn)
    units = np.asarray(jax.vmap(lambda d: loss(QUANTIZERS[quantizer](d[1]).dequantize(), d))(data))
    together = comparison.measure(
        loss,
        data,
        jnp.asarray(starts),
        units,
        problem="all",
        quantizer=(quantizer, QUANTIZERS[quantizer]),
        optimizer=optimizer,
        learning_rates=LEARNING_RATES[optimizer],
        largest_curvature=1.0,
        steps=steps,
    )
    parts = [np.split(array, len(condition_numbers), axis=2) for array in (together.log_losses, together.flips)]
    return [
        comparison.Setting(f"κ = {number}", quantizer, optimizer, together.learning_rates, *arrays)
        for number, *arrays in zip(condition_numbers, *parts, strict=True)
    ]


def write(folder: Path, *, draws: int = 24, steps: int = 60) -> None:
    """Writes strongly_convex.png, strongly_convex.md and strongly_convex.json.

    Args:
        folder: Where.
        draws: Random problems for each condition number.
        steps: T; loss-aware quantization also runs twice as long.
    """
    settings = [
        setting
        for optimizer in comparison.OPTIMIZERS
        for quantizer in QUANTIZERS
        for setting in measure(CONDITION_NUMBERS, quantizer, optimizer, draws=draws, steps=steps)
    ]
    sizes = {"dimensions": DIMENSIONS, "problems each": draws, "steps": steps}
    comparison.write(folder, "strongly_convex", settings, sizes)
