"""The toy problem c|w|^{3/2} with exact derivatives: LAQ never converges, looking ahead does for ½ < a < 1.

The weight is binary. The gradient is g = 1.5c sign(w)|w|^{1/2} and the curvature 0.75c|w|^{-1/2} = 1.125c²/|g|, so a
loss-aware step is w ← -w, for every start, and a two-stage step w ← (3 - 4a)w.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

import fobt
from experiments.core.records import environment, write_json
from experiments.studies.zigzag.iteration import Trajectory, known_curvature, run
from experiments.studies.zigzag.theory import factor

C, START, STEPS = 1.0, 0.3, 20
SHOWN = (1.0, 0.9, 0.75, 0.6, 0.5)
A_VALUES = np.linspace(0.3, 1.0, 29)


def trajectory(a: Any, steps: int) -> Trajectory:
    """The path of the weight, from START."""

    def loss(weights: jax.Array) -> jax.Array:
        magnitude = jnp.abs(weights)
        # The derivative of |w|^1.5 at 0, which is 0, without that of a power at 0.
        return C * jnp.sum(jnp.where(magnitude > 0, jnp.where(magnitude > 0, magnitude, 1) ** 1.5, 0))

    def curvature(grads: jax.Array) -> jax.Array:
        # Infinite at 0, where the gradient is 0 and any curvature gives the same step.
        return 1.125 * C**2 / jnp.where(grads == 0, 1, jnp.abs(grads))

    return run(
        loss,
        jnp.full((1, 1), START),
        steps,
        learning_rate=1.0,
        a=a,
        quantizer=fobt.binary(),
        preconditioner=known_curvature(curvature),
    )


def weights(a_values: npt.ArrayLike, steps: int) -> np.ndarray:
    """The weight before each step, shape (a, step)."""
    with jax.enable_x64(True):
        latents = jax.jit(jax.vmap(lambda a: trajectory(a, steps).latents))(jnp.asarray(a_values))
    return np.asarray(latents)[:, :, 0, 0]


def write(folder: Path) -> None:
    """Writes toy.png and toy.json."""
    paths = dict(zip(SHOWN, weights(SHOWN, STEPS), strict=True))
    before, after = weights(A_VALUES, 2).T
    measured, closed = after / before, factor(2.0, A_VALUES)
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, (a, path) in enumerate(paths.items()):
        name = "LAQ (a = 1)" if a == 1 else f"a = {a:g}"
        left.plot(path, "-o", markersize=3, color=f"C{number}", label=name)
    left.set(title="f(w) = |w|^1.5, binary, exact derivatives, η = 1", xlabel="step", ylabel="weight")
    left.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    left.set_xticks(range(0, STEPS + 1, 5))
    right.plot(A_VALUES, np.abs(closed), color="0.6", linewidth=4, label="closed form |3 - 4a|")
    right.plot(A_VALUES, np.abs(measured), "o", color="C3", markersize=3.5, label="one step of the library")
    right.axhline(1, color="black", linewidth=0.8, linestyle="--", label="no convergence at or above")
    right.set(title="Contraction factor of a step", xlabel="a", ylabel="|w after| / |w before|")
    right.legend(fontsize="small")
    figure.savefig(folder / "toy.png", dpi=110)
    content = {
        "environment": environment(),
        "c": C,
        "paths": [{"a": a, "weights": path.tolist()} for a, path in paths.items()],
        "a": A_VALUES.tolist(),
        "measured_factor": measured.tolist(),
        "closed_form": closed.tolist(),
        "largest_difference": float(np.max(np.abs(measured - closed))),
    }
    write_json(folder / "toy.json", content)
