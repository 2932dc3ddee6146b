"""The nearest binary weights with and without curvature, for two weights: `python docs/figures/curvature.py`."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from drawing import FOLDER, LATENT, MUTED, QUANTIZED, TRIAL, new_figure, save

import fobt

LATENTS, CURVATURE = np.array([1.5, 0.5]), np.array([1.0, 8.0])


def loss(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The second-order model of the loss around the latents."""
    return (CURVATURE[0] * (x - LATENTS[0]) ** 2 + CURVATURE[1] * (y - LATENTS[1]) ** 2) / 2


def main(folder: Path = FOLDER) -> None:
    """Draws the figure into a folder."""
    figure, (ax,) = new_figure(6.5, 4.2)
    x, y = np.meshgrid(np.linspace(0, 2.6, 200), np.linspace(-0.2, 1.4, 200))
    ax.contour(x, y, loss(x, y), levels=[0.05, 0.2, 0.45, 0.8, 1.25, 1.8], colors=MUTED, linewidths=0.8)
    ax.plot([0, 1.4], [0, 1.4], color=MUTED, linestyle="--", linewidth=1, label="binary weights (α, α)")
    ax.plot(*LATENTS, "o", color=LATENT, label="latents w")
    for name, curvature, color in (("curvature 1", None, QUANTIZED), ("curvature C", CURVATURE, TRIAL)):
        projected = np.asarray(fobt.binary()(jnp.asarray(LATENTS), curvature).dequantize())
        ax.annotate("", projected, LATENTS, arrowprops={"arrowstyle": "->", "color": color, "shrinkA": 5, "shrinkB": 5})
        label = f"projection with {name}: α = {projected[0]:.2f}, loss {loss(*projected):.2f}"
        ax.plot(*projected, "s", color=color, label=label)
    ax.set(xlabel="first weight, C = 1", ylabel="second weight, C = 8", aspect="equal")
    figure.legend(loc="outside upper left", frameon=False, ncols=2, fontsize=8)
    save(figure, folder / "curvature.svg")


if __name__ == "__main__":
    main()
