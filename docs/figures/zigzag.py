"""A weight whose best value lies between two levels: `python docs/figures/zigzag.py`.

The first weight is at its optimum and holds the scale near 1. The second would be best at 0.3, between the levels 0 and
1, so its gradient always points to the other level.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from drawing import FOLDER, LATENT, MUTED, QUANTIZED, new_figure, save

import fobt

OPTIMUM, STEPS = 0.3, 120


def loss_fn(weights: jax.Array) -> jax.Array:
    """The squared distance to an optimum between levels."""
    return jnp.sum((weights - jnp.array([[1.0, OPTIMUM]])) ** 2)


def path(a: float) -> tuple[np.ndarray, np.ndarray]:
    """Latents and quantized weights of the second weight, step by step."""
    training = fobt.Training(fobt.forward_backtrack(0.05, fobt.ternary(solver="exact"), a=a, b2=0.9))
    step = jax.jit(training.step(loss_fn))
    params = jnp.array([[1.0, 0.9]])
    state = training.init(params)
    latents, quantized = [], []
    for _ in range(STEPS):
        latents.append(float(params[0, 1]))
        quantized.append(float(training.weights(params, state)[0, 1]))
        params, state, _ = step(params, state)
    return np.array(latents), np.array(quantized)


def main(folder: Path = FOLDER) -> None:
    """Draws the figure into a folder."""
    figure, axes = new_figure(8, 3, columns=2)
    for ax, a, name in zip(
        axes, (1.0, 0.6), ("loss-aware quantization (a = 1)", "forward-backtrack, a = 0.6"), strict=True
    ):
        latents, quantized = path(a)
        flips = int(np.sum((quantized[1:] != 0) != (quantized[:-1] != 0)))
        ax.axhline(OPTIMUM, color=MUTED, linestyle="--", linewidth=1, label="optimum")
        ax.step(np.arange(STEPS), quantized, where="post", color=QUANTIZED, linewidth=1, label="quantized weight")
        ax.plot(latents, color=LATENT, label="latent")
        ax.set(title=f"{name}: {flips} changes of code", xlabel="step", ylim=(-0.2, 1.3))
        ax.title.set_fontsize(10)
    axes[0].set_ylabel("weight")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    save(figure, folder / "zigzag.svg")


if __name__ == "__main__":
    main()
