"""Paths of two weights over the contours of a quadratic loss: loss-aware quantization against looking ahead."""

import operator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import fobt
from experiments.core.records import environment, write_json
from experiments.studies.zigzag.iteration import Trajectory, gradient_descent, run

A_VALUES = (1.0, 0.6)
STEPS = 40
# The loss ½ (w - MINIMISER)ᵀ HESSIAN (w - MINIMISER), with the curvatures 1 and 0.15.
MINIMISER = np.array([[1.0, -0.6]])
ANGLE, CURVATURES = 0.5, np.array([1.0, 0.15])
AXES = np.array([[np.cos(ANGLE), -np.sin(ANGLE)], [np.sin(ANGLE), np.cos(ANGLE)]])
HESSIAN = AXES @ np.diag(CURVATURES) @ AXES.T
START = np.array([[-1.0, -1.5]])


@dataclass(frozen=True)
class Case:
    """One row of the figure: a quantizer, an optimizer under the method, and a learning rate."""

    quantizer_name: str
    quantizer: Any
    optimizer_name: str
    preconditioner: fobt.Preconditioner
    learning_rate: float


CASES = (
    Case("binary", fobt.binary(), "gradient steps", gradient_descent(), 1.0),
    Case("linear, 3 bits", fobt.linear(3, solver="exact"), "gradient steps", gradient_descent(), 1.8),
    Case("binary", fobt.binary(), "Adam with b1 = 0", fobt.adam_preconditioner(b1=0.0), 0.3),
    Case("binary", fobt.binary(), "Adam with b1 = 0.9", fobt.adam_preconditioner(), 0.1),
)


def loss(weights: jax.Array) -> jax.Array:
    """The loss of two weights, shape (1, 2)."""
    error = weights - jnp.asarray(MINIMISER, weights.dtype)
    return jnp.sum(error @ jnp.asarray(HESSIAN, weights.dtype) * error) / 2


def write(folder: Path) -> None:
    """Writes trajectories.png and trajectories.json."""
    figure = Figure(figsize=(10, 4.1 * len(CASES)), layout="constrained")
    figure.suptitle(
        f"Loss ½ (w - w°)ᵀ H (w - w°) with curvatures {CURVATURES[0]:g} and {CURVATURES[1]:g}, {STEPS} steps",
        fontsize=12,
    )
    records = []
    with jax.enable_x64(True):
        for case, panels in zip(CASES, figure.subplots(len(CASES), 2, squeeze=False), strict=True):
            paths = _run(case)
            for number, (a, axes) in enumerate(zip(A_VALUES, panels, strict=True)):
                path = jax.tree.map(operator.itemgetter(number), paths)
                record = _record(case, a, path)
                records.append(record)
                name = "LAQ" if a == 1 else f"looking ahead, a = {a:g}"
                axes.set_title(
                    f"{name}: {case.quantizer_name}, {case.optimizer_name}, η = {case.learning_rate:g}\n"
                    f"loss of the last half {record['mean_loss_of_last_half']:.4f}, "
                    f"{record['jumps']} jumps to other codes",
                    fontsize=10,
                )
                _draw(axes, path)
            # Both panels of a row show the same window.
            limits = [(axes.get_xlim(), axes.get_ylim()) for axes in panels]
            for axes in panels:
                axes.set(
                    xlim=(min(x[0] for x, _ in limits), max(x[1] for x, _ in limits)),
                    ylim=(min(y[0] for _, y in limits), max(y[1] for _, y in limits)),
                )
                _draw_contours(axes)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(folder / "trajectories.png", dpi=90)
    content = {
        "environment": environment(),
        "minimiser": MINIMISER.tolist(),
        "hessian": HESSIAN.tolist(),
        "start": START.tolist(),
        "trajectories": records,
    }
    write_json(folder / "trajectories.json", content)


def _run(case: Case) -> Trajectory:
    """The trajectories for all of A_VALUES, stacked."""
    return jax.jit(
        jax.vmap(
            lambda a: run(
                loss,
                jnp.asarray(START),
                STEPS,
                learning_rate=case.learning_rate,
                a=a,
                quantizer=case.quantizer,
                preconditioner=case.preconditioner,
            )
        )
    )(jnp.asarray(A_VALUES))


def _record(case: Case, a: float, path: Trajectory) -> dict[str, Any]:
    codes = np.asarray(path.quantized.codes)
    return {
        "quantizer": case.quantizer_name,
        "optimizer": case.optimizer_name,
        "learning_rate": case.learning_rate,
        "a": a,
        "jumps": int(np.sum(np.any(codes[1:] != codes[:-1], axis=(1, 2)))),
        "mean_loss_of_last_half": float(np.mean(path.losses[STEPS // 2 :])),
        "latents": np.asarray(path.latents[:, 0]).tolist(),
        "quantized": np.asarray(path.weights[:, 0]).tolist(),
        "losses": np.asarray(path.losses).tolist(),
    }


def _draw(axes: Axes, path: Trajectory) -> None:
    latents, quantized = np.asarray(path.latents[:, 0]), np.asarray(path.weights[:, 0])
    axes.plot(*quantized.T, "-o", color="C3", linewidth=0.7, markersize=3, label="quantized ŵ")
    axes.plot(*latents.T, "-o", color="C0", linewidth=1.2, markersize=3, label="latent w")
    axes.plot(*latents[0], "s", color="black", markersize=6, label="start")
    axes.plot(*MINIMISER[0], "*", color="black", markersize=11, label="minimiser w°")


def _draw_contours(axes: Axes) -> None:
    x, y = (np.linspace(*limits, 120) for limits in (axes.get_xlim(), axes.get_ylim()))
    error = np.stack(np.meshgrid(x, y), axis=-1) - MINIMISER[0]
    values = np.einsum("yxi,ij,yxj->yx", error, HESSIAN, error) / 2
    axes.contour(x, y, values, levels=0.01 * 2.0 ** np.arange(0, 12), colors="0.75", linewidths=0.6, zorder=0)
    axes.set(xlabel="first weight", ylabel="second weight")
