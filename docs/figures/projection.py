"""Twelve latents and the levels they are projected to on four grids: `python docs/figures/projection.py`."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from drawing import FOLDER, LATENT, MUTED, QUANTIZED, new_figure, save

import fobt

LATENTS = np.sort(np.random.default_rng(1).normal(size=12))
GRIDS = {
    "binary(), 1 bit": fobt.binary(),
    "ternary(), 1.6 bits": fobt.ternary(solver="exact"),
    "linear(3), 3 bits": fobt.linear(3, solver="exact"),
    "logarithmic(3), 3 bits": fobt.logarithmic(3, solver="exact"),
}


def main(folder: Path = FOLDER) -> None:
    """Draws the figure into a folder."""
    figure, (ax,) = new_figure(7.5, 3.4)
    for row, quantizer in enumerate(GRIDS.values()):
        quantized = quantizer(jnp.asarray(LATENTS))
        levels = float(quantized.scale) * np.concatenate([[0], quantized.grid.positive_levels])
        levels = np.unique(np.concatenate([levels, -levels]))
        levels = levels[levels != 0] if quantized.grid.bits == 1 else levels
        ax.hlines(-row, -2.2, 2.2, color=MUTED, linewidth=0.5)
        ax.plot(levels, np.full_like(levels, -row), "|", color=QUANTIZED, markersize=16)
        ax.plot([LATENTS, quantized.dequantize()], [np.full(12, 0.35 - row), np.full(12, -row)], color=MUTED, lw=0.8)
        ax.plot(LATENTS, np.full(12, 0.35 - row), "o", color=LATENT, markersize=4)
    ax.set_yticks(-np.arange(len(GRIDS)), GRIDS, family="monospace")
    ax.set(xlabel="weight", ylim=(-len(GRIDS) + 0.6, 0.6))
    ax.plot([], [], "o", color=LATENT, markersize=4, label="latent")
    ax.plot([], [], "|", color=QUANTIZED, markersize=12, label="level α β")
    figure.legend(loc="outside upper right", ncols=2, frameon=False)
    save(figure, folder / "projection.svg")


if __name__ == "__main__":
    main()
