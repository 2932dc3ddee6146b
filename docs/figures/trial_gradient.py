"""One two-stage step across a valley, in full precision: `python docs/figures/trial_gradient.py`.

The preconditioner is that of gradient descent, curvature 1, so that arrows are gradients.
"""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from drawing import FOLDER, LATENT, MUTED, QUANTIZED, TRIAL, new_figure, save

import fobt

START, RATE, A = jnp.array([[-1.8, 0.9]]), 0.95, 0.75


class Count(NamedTuple):
    """The state of gradient descent."""

    count: jax.Array


def descend(grads: Any, state: Count) -> tuple[Any, Any, Count]:
    """The gradient as direction, and curvature 1."""
    return grads, jax.tree.map(jnp.ones_like, grads), Count(state.count + 1)


GRADIENT_DESCENT = fobt.Preconditioner(
    lambda _: Count(jnp.zeros((), int)), descend, lambda state, curvature: (curvature, state)
)


def loss(w: jax.Array) -> jax.Array:
    """A valley along the first axis."""
    return jnp.sum(jnp.array([[0.4, 2.0]]) * w**2) / 2


def main(folder: Path = FOLDER) -> None:
    """Draws the figure into a folder."""
    points = []

    def grad_fn(w: jax.Array) -> jax.Array:
        points.append(w)
        return jax.grad(loss)(w)

    tx = fobt.forward_backtrack(RATE, fobt.full_precision(), a=A, preconditioner=GRADIENT_DESCENT)
    updates, _ = tx.update(jax.grad(loss)(START), tx.init(START), START, grad_fn=grad_fn)
    start, trial, end = (np.asarray(w)[0] for w in (START, points[0], optax.apply_updates(START, updates)))

    figure, (ax,) = new_figure(7, 3.6)
    x, y = np.meshgrid(np.linspace(-2.2, 0.6, 150), np.linspace(-1.3, 1.3, 150))
    ax.contour(x, y, (0.4 * x**2 + 2 * y**2) / 2, levels=np.arange(1, 9) ** 2 / 30, colors=MUTED, linewidths=0.8)
    trial_step = -RATE * np.asarray(jax.grad(loss)(jnp.asarray(trial)[None]))[0]
    arrows = (
        (start, trial, LATENT, "one step forward, -η g"),
        (trial, trial + trial_step, QUANTIZED, "trial gradient, -η g*"),
        (start, end, TRIAL, "the step taken, -η (a g + (1 - a) g*)"),
    )
    for tail, head, color, label in arrows:
        ax.annotate("", head, tail, arrowprops={"arrowstyle": "->", "color": color, "linewidth": 1.8})
        ax.plot([], [], color=color, label=label)
    for point, name, offset in ((start, "w", (-10, 8)), (trial, "w*", (4, -14)), (end, "next w", (8, -2))):
        ax.plot(*point, "o", color="black", markersize=4)
        ax.annotate(name, point, xytext=offset, textcoords="offset points")
    ax.set(xlabel="first weight", ylabel="second weight")
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    save(figure, folder / "trial_gradient.svg")


if __name__ == "__main__":
    main()
