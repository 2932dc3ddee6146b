"""The network that a finished run would ship: that of its best epoch, as codes and scales, from its last checkpoint."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fobt
from experiments.methods.method import make_quantizer
from experiments.methods.registry import METHODS
from experiments.methods.rows import Row
from experiments.reporting.saved_run import SavedRun, read_run

# XLA multiplies by 1/n where `Quantized.dequantize` divides by n: under `jax.jit` weights differ in their last bit.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Trained:
    """A trained network.

    Attributes:
        run: Its training.
        quantized: Its parameters, codes and scales where they are quantized.
        batch_stats: The running averages of batch normalisation.
    """

    run: SavedRun
    quantized: Any
    batch_stats: Any


def read_trained(folder: Path) -> Trained:
    """Reads the folder of a finished run of `experiments.train`.

    Raises:
        ValueError: It is no such folder, has no checkpoint, or its method makes weights on no grid of fobt; the message
            is one line.
    """
    run = read_run(folder)
    quantizer = quantizer_of(run.row)
    weights = run.arrays.best_weights
    if quantizer is not None:
        weights = jax.tree.map(lambda leaf: recover(leaf, quantizer) if leaf.ndim >= 2 else leaf, weights)
    return Trained(run, weights, run.arrays.best_batch_stats)


def quantizer_of(row: Row) -> fobt.Quantizer | None:
    """The quantizer on whose grid the weights of a row are; None for full precision.

    Raises:
        ValueError: They are on none; the message is one line.
    """
    if row.method == "full_precision":
        return None
    if row.grid is not None:
        return make_quantizer(row.grid, row.solver, row.scales)
    if grids := METHODS[row.method].grids:
        return make_quantizer(grids[0])
    if row.bits == 1:
        return fobt.binary()
    raise ValueError(f"weights of {row.label} are on no grid of fobt, so that they cannot be packed")


def recover(weights: jax.Array, quantizer: fobt.Quantizer) -> fobt.Quantized:
    """Codes and scale of weights that are quantized already, with one scale per tensor.

    A checkpoint keeps the dequantized weights of the best epoch. The result stands for the same weights, up to the
    roundings in which `Quantized.dequantize` with and without `jax.jit` differ; for 1 and 2 bits there are none.
    Projecting again would find the same codes, with a scale in which sums have rounded.

    Raises:
        ValueError: The weights are not on the grid.
    """
    values = np.asarray(weights)
    if quantizer.scales == 2:
        sides = [np.unique(side[side > 0]) for side in (values, -values)]
        if max(map(len, sides)) <= 1:
            scale = jnp.stack([jnp.float32(side[0]) if len(side) else jnp.float32(1) for side in sides])
            return _quantized(np.sign(values), scale, quantizer)
        raise ValueError("weights must have one positive and one negative value, as ternary weights with two scales.")
    is_binary = quantizer.grid.spacing == "binary"
    magnitudes, places = np.unique(np.abs(values), return_inverse=True)
    signs = np.where(values < 0, -1, 1 if is_binary else np.sign(values))
    if magnitudes.size == 0 or magnitudes[-1] == 0:
        return _quantized(signs, jnp.float32(0 if is_binary else 1), quantizer)
    # The largest magnitude has the largest code, or, where no weight has that one, a smaller one.
    for level in quantizer.grid.positive_levels[::-1]:
        scale = jnp.float32(magnitudes[-1] / level)
        candidate = quantizer.round_to_nearest(magnitudes, scale)
        if np.allclose(candidate.dequantize(), magnitudes, rtol=_ROUNDING, atol=0):
            codes = signs * np.asarray(candidate.codes)[places.reshape(values.shape)]
            return _quantized(codes, scale, quantizer)
    raise ValueError(f"weights must be on the grid {quantizer.grid}; their magnitudes are {magnitudes[:8]}.")


def _quantized(codes: np.ndarray, scale: jax.Array, quantizer: fobt.Quantizer) -> fobt.Quantized:
    return fobt.Quantized(
        jnp.asarray(codes, jnp.int8),
        scale,
        quantizer.grid,
        quantizer.granularity,
        quantizer.scales,
        jnp.dtype(jnp.float32),
    )
