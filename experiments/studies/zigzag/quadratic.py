"""The paper's two theorems on the quadratic ½Lw² without quantizer, and what holds there instead.

With x = ηL a loss-aware step multiplies w by 1 - x and a two-stage step by r(x) = 1 - x + (1 - a)x²; see
`experiments.studies.zigzag.theory`. Everything is measured by running the library over a plane of (a, x), with the
identity as quantizer, the gradient as direction and curvature 1.
"""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

import fobt
from experiments.core.records import write_results
from experiments.reporting.tables import Columns, markdown
from experiments.studies.zigzag import theory
from experiments.studies.zigzag.iteration import gradient_descent, run

CURVATURE = 3.0
STEPS = 40
# A grid on which no point lies on a boundary of the closed form.
A_VALUES = np.linspace(0.0, 1.0, 101)[1:] - 0.0031
X_VALUES = np.linspace(0.0, 10.0, 201)[1:] - 0.0127
SHOWN_A = 0.6
YES_OR_NO = {True: "yes", False: "no"}
TABLE_X, TABLE_A = (0.5, 1.0, 1.5, 2.0, 2.4), (0.4, 0.6, 0.75, 0.9)
SHOWN_X = np.linspace(0.01, 3.0, 300)
CONDITION_NUMBERS = (1.0, 3.0, 10.0, 100.0, 1000.0)
THEOREM_COLUMNS: Columns = {
    "x": ("ηL", "{:g}".format),
    "a": ("a", "{:g}".format),
    "bound": ("bound of Theorem 1", "{:.4f}".format),
    "loss": ("loss", "{:.4f}".format),
    "bound_holds": ("bound holds", YES_OR_NO.__getitem__),
    "laq_loss": ("loss of LAQ", "{:.4f}".format),
    "condition": ("condition of Theorem 2", YES_OR_NO.__getitem__),
    "better": ("better than LAQ", YES_OR_NO.__getitem__),
    "best_a": ("best a", "{:.3f}".format),
}
SPECTRUM_COLUMNS: Columns = {
    "condition_number": ("curvatures 1/κ to 1, κ", "{:g}".format),
    "learning_rate": ("best η", "{:.3f}".format),
    "a": ("best a", "{:.3f}".format),
    "factor": ("factor of a step", "{:.4f}".format),
    "laq_factor_of_two_steps": ("factor of two steps of LAQ at its best η", "{:.4f}".format),
}


def weights(x_values: npt.ArrayLike, a_values: npt.ArrayLike, steps: int) -> np.ndarray:
    """The weight before each step, from 1, shape (a, x, step)."""
    with jax.enable_x64(True):
        return np.asarray(_plane(jnp.asarray(x_values, float), jnp.asarray(a_values, float), steps))


@functools.partial(jax.jit, static_argnums=2)
def _plane(x_values: jax.Array, a_values: jax.Array, steps: int) -> jax.Array:
    def path(a: jax.Array, x: jax.Array) -> jax.Array:
        return run(
            lambda weights: CURVATURE * jnp.sum(weights**2) / 2,
            jnp.ones((1, 1)),
            steps,
            learning_rate=x / CURVATURE,
            a=a,
            quantizer=fobt.full_precision(),
            preconditioner=gradient_descent(),
        ).latents[:, 0, 0]

    return jax.vmap(jax.vmap(path, (None, 0)), (0, None))(a_values, x_values)


def measured_regions(x_values: np.ndarray, a_values: np.ndarray, steps: int = STEPS) -> dict[str, np.ndarray]:
    """Where the method converges and where it beats loss-aware quantization, shape (a, x); `steps` is even.

    A run converges where the weight is smaller after its steps than before. The method beats one loss-aware step where
    its weight is smaller after equally many steps, and two where it is smaller after half as many.
    """
    laq, method = np.abs(weights(x_values, [1.0], steps + 1)), np.abs(weights(x_values, a_values, steps + 1))
    return {
        "laq_converges": np.broadcast_to(laq[..., -1] < 1, method.shape[:2]),
        "converges": method[..., -1] < 1,
        "beats_one_step": method[..., -1] < laq[..., -1],
        "beats_two_steps": method[..., steps // 2] < laq[..., -1],
    }


def write(folder: Path) -> None:
    """Writes quadratic.png, quadratic.md and quadratic.json."""
    measured = measured_regions(X_VALUES, A_VALUES)
    theorems, spectra = _theorem_records(), [_spectrum_record(number) for number in CONDITION_NUMBERS]
    content = {
        "grid": {"a": A_VALUES.tolist(), "x": X_VALUES.tolist(), "steps": STEPS},
        "theorems": theorems,
        "best_learning_rate_and_a": spectra,
        "loss_after_one_step": _draw(measured, folder / "quadratic.png"),
    }
    tables = markdown(THEOREM_COLUMNS, theorems) + "\n" + markdown(SPECTRUM_COLUMNS, spectra)
    write_results(folder, "quadratic", tables, content)


def _theorem_records() -> list[dict[str, Any]]:
    after = weights(TABLE_X, [*TABLE_A, 1.0], 2)[..., 1]
    return [
        {
            "x": x,
            "a": a,
            "bound": (bound := float(theory.theorem_1_bound(x, a))),
            "loss": (loss := float(after[i, j] ** 2)),
            "bound_holds": loss <= bound,
            "laq_loss": (laq_loss := float(after[-1, j] ** 2)),
            "condition": bool(theory.theorem_2_condition(x, a)),
            "better": loss < laq_loss,
            "best_a": theory.best_a(x),
        }
        for j, x in enumerate(TABLE_X)
        for i, a in enumerate(TABLE_A)
    ]


def _spectrum_record(condition_number: float) -> dict[str, float]:
    """Best learning rate and a for curvatures from 1/condition_number to 1, and what the library does with them."""
    eta, a = theory.best_learning_rate_and_a(1 / condition_number, 1.0)
    curvatures = np.linspace(1 / condition_number, 1.0, 1001)
    laq = weights(2 / (1 + 1 / condition_number) * curvatures, [1.0], 3)[0, :, 2]
    return {
        "condition_number": condition_number,
        "learning_rate": eta,
        "a": a,
        "factor": float(np.max(np.abs(weights(eta * curvatures, [a], 2)[0, :, 1]))),
        "laq_factor_of_two_steps": float(np.max(np.abs(laq))),
    }


def _draw(measured: dict[str, np.ndarray], path: Path) -> dict[str, Any]:
    """Draws the figure; returns the numbers of its first panel."""
    figure = Figure(figsize=(16, 5), layout="constrained")
    bound, plane, factors = figure.subplots(1, 3, width_ratios=(1, 1.35, 1))
    losses = weights(SHOWN_X, [SHOWN_A], 2)[0, :, 1] ** 2
    bound.plot(SHOWN_X, losses, color="C3", label="loss after a two-stage step, measured")
    bound.plot(
        SHOWN_X, theory.theorem_1_bound(SHOWN_X, SHOWN_A), color="black", linestyle="--", label="bound of Theorem 1"
    )
    bound.plot(1, (1 - SHOWN_A) ** 2, "o", color="C3", label="ηL = 1: loss (1 - a)², bound 0")
    bound.set(
        title=f"Theorem 1 on ½Lw², a = {SHOWN_A:g}", xlabel="ηL", ylabel="loss in units of the loss before", ylim=(0, 2)
    )
    bound.legend(fontsize="small", loc="upper left")
    _draw_plane(plane, measured)
    after = weights(SHOWN_X, [*TABLE_A, 1.0], 3)
    for number, a in enumerate(TABLE_A):
        factors.plot(SHOWN_X, np.abs(after[number, :, 1]), color=f"C{number}", label=f"a = {a:g}")
    factors.plot(SHOWN_X, np.abs(after[-1, :, 1]), color="black", label="LAQ")
    factors.plot(SHOWN_X, np.abs(after[-1, :, 2]), color="black", linestyle=":", label="two steps of LAQ")
    factors.axhline(1, color="0.6", linewidth=0.8)
    factors.set(title="Factor of a step, measured", xlabel="ηL", ylabel="|w after| / |w before|", ylim=(0, 1.6))
    factors.legend(fontsize="small", loc="upper left", bbox_to_anchor=(0.12, 1))
    figure.savefig(path, dpi=110)
    return {"a": SHOWN_A, "x": SHOWN_X.tolist(), "loss": losses.tolist()}


def _draw_plane(axes: Axes, measured: dict[str, np.ndarray]) -> None:
    """What was measured as colours, the boundaries in closed form as lines."""
    kinds = {
        "does not converge": "white",
        "converges, not better than LAQ": "#d9d9d9",
        "better than a step of LAQ": "#a6dba0",
        "and than two steps, at equal gradients": "#4d9f5a",
    }
    kind = measured["converges"] * (1 + measured["beats_one_step"] * (1 + measured["beats_two_steps"]))
    axes.pcolormesh(
        X_VALUES, A_VALUES, kind, cmap=ListedColormap(list(kinds.values())), vmin=0, vmax=3, rasterized=True
    )
    x, a = np.linspace(0.01, 10, 1000), np.linspace(0.001, 0.999, 999)
    lines = [
        *axes.plot(1 / (1 - a), a, color="black", label="limit of convergence, a = 1 - 1/x and |r| = 1"),
        *axes.plot(x, 2 / x - 1, color="C3", linestyle="--", label="Theorem 2 claims better above, a = 2/x - 1"),
        *axes.plot(
            x[x > 1], 1 - 2 * (x[x > 1] - 1) / x[x > 1] ** 2, color="C0", label="better than LAQ above, for x > 1"
        ),
        *axes.plot(x, [theory.best_a(value) for value in x], color="C1", label="best a, 1 - (x - 1)/x²"),
        axes.axvline(2, color="black", linestyle=":", label="LAQ converges to the left"),
    ]
    axes.contour(x, a, theory.factor(x[None], a[:, None]), levels=[-1.0], colors="black", linestyles="-")
    patches = [Patch(facecolor=color, edgecolor="0.7", label=name) for name, color in kinds.items()]
    axes.set(title="Where looking ahead helps: measured (colours), closed form (lines)", xlabel="x = ηL", ylabel="a")
    axes.set(xlim=(0, 10), ylim=(0, 1))
    axes.legend(handles=[*patches, *lines], fontsize="small", loc="lower right")
