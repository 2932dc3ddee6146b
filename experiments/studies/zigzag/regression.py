"""One weight between two grid points: how often it flips, with and without looking ahead.

Nagel's toy regression: inputs of second moment 1, the loss ½ (ŵ - target)², and ŵ the point of a fixed grid of step 1
nearest to the latent w; the gradient passes straight through the rounding. With this the library's update on the latent
is loss-aware quantization (a = 1) or looking ahead, with rounding as projection.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import fobt
from experiments.core.records import write_results
from experiments.reporting.tables import Columns, markdown
from experiments.studies.zigzag.iteration import Trajectory, gradient_descent, run
from experiments.studies.zigzag.theory import flips_per_step

OPTIMIZERS = {
    "gradient steps": gradient_descent(),
    "Adam with b1 = 0": fobt.adam_preconditioner(b1=0.0),
    "Adam with b1 = 0.9": fobt.adam_preconditioner(),
}
LEARNING_RATES = (0.001, 0.01, 0.1)
A_VALUES = (1.0, 0.75, 0.6, 0.5)
# No simple fractions, whose paths are short cycles.
DISTANCES = np.linspace(0.0, 0.5, 25)[1:-1] + 0.001
START = 0.45
# The second half counts.
STEPS = 8000
SHOWN_DISTANCE, SHOWN_LEARNING_RATE, SHOWN_STEPS = 0.3, 0.05, 60
SHOWN_OPTIMIZER = "gradient steps"


def rounded(latents: jax.Array) -> jax.Array:
    """The nearest integers, with the gradient of the identity."""
    return latents + jax.lax.stop_gradient(jnp.round(latents) - latents)


def trajectory(
    distance: Any, *, optimizer: str, learning_rate: Any, a: Any, steps: int, start: float = START
) -> Trajectory:
    """The path of the latent for a target at a distance above the grid point 0."""
    return run(
        lambda weights: jnp.sum((rounded(weights) - distance) ** 2) / 2,
        jnp.full((1, 1), start),
        steps,
        learning_rate=learning_rate,
        a=a,
        quantizer=fobt.full_precision(),
        preconditioner=OPTIMIZERS[optimizer],
    )


def measure(
    optimizer: str, learning_rates: np.ndarray, a_values: np.ndarray, distances: np.ndarray, steps: int = STEPS
) -> tuple[np.ndarray, np.ndarray]:
    """Flips per step and mean loss over the second half of the steps, each of shape (a, learning rate, distance)."""

    def last_half(a: jax.Array, learning_rate: jax.Array, distance: jax.Array) -> tuple[jax.Array, jax.Array]:
        path = trajectory(distance, optimizer=optimizer, learning_rate=learning_rate, a=a, steps=steps)
        codes = jnp.round(path.latents[steps // 2 :, 0, 0])
        return jnp.mean(codes[1:] != codes[:-1]), jnp.mean(path.losses[steps // 2 :])

    over_distances = jax.vmap(last_half, (None, None, 0))
    over_learning_rates = jax.vmap(over_distances, (None, 0, None))
    with jax.enable_x64(True):
        flips, losses = jax.jit(jax.vmap(over_learning_rates, (0, None, None)))(
            jnp.asarray(a_values), jnp.asarray(learning_rates), jnp.asarray(distances)
        )
    return np.asarray(flips), np.asarray(losses)


def write(folder: Path) -> None:
    """Writes regression.png, regression.md and regression.json."""
    measured = {
        optimizer: measure(optimizer, np.array(LEARNING_RATES), np.array(A_VALUES), DISTANCES)
        for optimizer in OPTIMIZERS
    }
    records = [
        {
            "optimizer": optimizer,
            "learning_rate": learning_rate,
            "a": a,
            "flips": float(np.mean(flips[i, j])),
            "loss": float(np.mean(losses[i, j])),
            "nearest": float(np.mean(DISTANCES**2) / 2),
            "flips_by_distance": flips[i, j].tolist(),
            "loss_by_distance": losses[i, j].tolist(),
        }
        for optimizer, (flips, losses) in measured.items()
        for j, learning_rate in enumerate(LEARNING_RATES)
        for i, a in enumerate(A_VALUES)
    ]
    columns: Columns = {
        "optimizer": ("optimizer", str),
        "learning_rate": ("η", "{:g}".format),
        "a": ("a", lambda a: "1 (LAQ)" if a == 1 else f"{a:g}"),
        "flips": ("flips per step, mean over targets", "{:.3f}".format),
        "loss": ("loss, mean over targets", "{:.4f}".format),
        "nearest": ("loss of the nearest grid points", "{:.4f}".format),
    }
    content = {
        "steps": STEPS,
        "distances": DISTANCES.tolist(),
        "records": records,
        "path": _draw(measured, folder / "regression.png"),
    }
    write_results(folder, "regression", markdown(columns, records), content)


def _draw(measured: dict[str, tuple[np.ndarray, np.ndarray]], path: Path) -> dict[str, Any]:
    """Draws the figure; returns the paths of its last panel."""
    figure = Figure(figsize=(12, 8.4), layout="constrained")
    ((plain, ahead), (adam, times)) = figure.subplots(2, 2)
    line = np.linspace(0, 0.5, 201)
    flips = measured["gradient steps"][0]
    plain.plot(line, [flips_per_step(d) for d in line], color="0.7", linewidth=5, label="closed form, 2·distance")
    for j, learning_rate in enumerate(LEARNING_RATES):
        plain.plot(DISTANCES, flips[0, j], "os^"[j], markersize=7 - 2 * j, label=f"η = {learning_rate:g}")
    plain.set_title("LAQ, gradient steps: the learning rate does not matter")
    for i, a in enumerate(A_VALUES):
        ahead.plot(DISTANCES, flips[i, 1], "o", color=f"C{i}", markersize=4, label=f"a = {a:g}" + " (LAQ)" * (a == 1))
        if a in (1.0, 0.6):
            ahead.plot(line, [flips_per_step(d, a) for d in line], color=f"C{i}", linewidth=1, label="its closed form")
    ahead.set_title(f"Looking ahead, gradient steps, η = {LEARNING_RATES[1]:g}: no flip below 1 - a")
    for number, optimizer in enumerate(["Adam with b1 = 0", "Adam with b1 = 0.9"]):
        for style, i in (("o-", 0), ("s--", A_VALUES.index(0.6))):
            adam.plot(
                DISTANCES,
                measured[optimizer][0][i, 1],
                style,
                color=f"C{number}",
                markersize=4,
                linewidth=0.8,
                label=f"{optimizer}, " + ("LAQ" if i == 0 else f"a = {A_VALUES[i]:g}"),
            )
    adam.set_title(f"The same with Adam, η = {LEARNING_RATES[1]:g}")
    for axes in (plain, ahead, adam):
        axes.set(xlabel="distance of the target from the nearest grid point, in steps", ylabel="flips per step")
        axes.legend(fontsize="small", loc="upper left")
        axes.grid(alpha=0.3)
    shown = {}
    for color, a in (("C3", 1.0), ("C0", 0.6)):
        with jax.enable_x64(True):
            path_of_a = trajectory(
                SHOWN_DISTANCE,
                optimizer=SHOWN_OPTIMIZER,
                learning_rate=SHOWN_LEARNING_RATE,
                a=a,
                steps=SHOWN_STEPS,
                start=0.2,
            )
        shown[a] = np.asarray(path_of_a.latents)[:, 0, 0]
        name = "LAQ" if a == 1 else f"a = {a:g}"
        times.plot(shown[a], color=color, linewidth=1.5, label=f"latent, {name}")
        times.step(
            range(SHOWN_STEPS), np.round(shown[a]), color=color, linewidth=0.8, where="mid", label=f"quantized, {name}"
        )
    times.axhline(SHOWN_DISTANCE, color="black", linewidth=0.8, linestyle="--", label="target")
    times.set(
        title=f"Target at {SHOWN_DISTANCE:g}, {SHOWN_OPTIMIZER}, η = {SHOWN_LEARNING_RATE:g}",
        xlabel="step",
        ylabel="weight",
    )
    times.legend(fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1.08), ncols=3)
    figure.savefig(path, dpi=110)
    return {
        "distance": SHOWN_DISTANCE,
        "learning_rate": SHOWN_LEARNING_RATE,
        "latents": [{"a": a, "values": values.tolist()} for a, values in shown.items()],
    }
