"""The paths of single weights over the last steps of a training."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import fobt

HIGHEST, RANDOM = 4, 3  # how many weights are chosen for their frequency and at random


@dataclasses.dataclass(frozen=True)
class Place:
    """One weight.

    Attributes:
        path: Path of its leaf.
        index: Where it is in the leaf.
        reason: Why it was chosen.
    """

    path: str
    index: tuple[int, ...]
    reason: str


@dataclasses.dataclass(frozen=True)
class Paths:
    """Latents and quantized values of some weights in successive forward passes.

    Attributes:
        places: The weights.
        first_step: Number of the first step, counted from 1.
        values: Shape (steps, 2, weights): latents, then quantized values.
    """

    places: Sequence[Place]
    first_step: int
    values: np.ndarray


def choose(state: fobt.oscillations.OscillationState, seed: int) -> list[Place]:
    """The weights that oscillate most often, and some at random, of a state that follows all weights."""
    frequencies = {path: np.asarray(leaf.followed.frequency) for path, leaf in state.leaves.items()}
    starts = np.cumsum([0, *(f.size for f in frequencies.values())])
    joined = np.concatenate([f.ravel() for f in frequencies.values()])

    def place(number: int, reason: str) -> Place:
        leaf = int(np.searchsorted(starts, number, side="right")) - 1
        path, values = list(frequencies.items())[leaf]
        index = np.unravel_index(number - starts[leaf], values.shape)
        return Place(path, tuple(map(int, index)), reason.format(joined[number]))

    highest = np.argsort(-joined, kind="stable")[:HIGHEST]
    chance = np.random.default_rng(seed).choice(len(joined), RANDOM, replace=False)
    return [place(number, "highest frequency, {:.2f}") for number in highest] + [
        place(number, "at random, frequency {:.2f}") for number in chance
    ]


def reader(places: Sequence[Place], evaluated: Callable[[Any, Any], Any]) -> Callable[[Any, Any], jax.Array]:
    """A function from parameters and optimizer state to latents and quantized values at `places`, shape (2, weights).

    Args:
        places: Which weights.
        evaluated: From parameters and optimizer state to quantized weights.
    """

    def pick(tree: Any) -> jax.Array:
        leaves = {
            jax.tree_util.keystr(path, simple=True, separator="/"): leaf
            for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
        }
        return jnp.stack([leaves[place.path][place.index] for place in places])

    return jax.jit(lambda params, state: jnp.stack([pick(params), pick(evaluated(params, state))]))


def plot_paths(rows: Mapping[str, Paths], path: Path) -> None:
    """A column for each row of the table, a panel for each weight.

    Args:
        rows: Paths by the label of the row.
        path: The PNG to write.
    """
    figure = Figure(figsize=(7.5 * len(rows), 1.9 * (HIGHEST + RANDOM)), layout="constrained")
    grid = figure.subplots(HIGHEST + RANDOM, len(rows), squeeze=False, sharex="col")
    for (label, paths), column in zip(rows.items(), grid.T, strict=True):
        steps = np.arange(paths.first_step, paths.first_step + len(paths.values))
        for number, (place, axes) in enumerate(zip(paths.places, column, strict=True)):
            latents, quantized = paths.values[:, 0, number], paths.values[:, 1, number]
            axes.axhline(0, color="0.8", linewidth=0.8)
            axes.step(steps, quantized, where="mid", color="C1", linewidth=0.8, label="quantized")
            axes.plot(steps, latents, color="C0", linewidth=1.2, label="latent")
            axes.set_title(f"{place.path}[{', '.join(map(str, place.index))}], {place.reason}", fontsize="small")
        column[-1].set_xlabel("step")
        column[0].set_title(f"{label}\n\n{column[0].get_title()}", fontsize="small")
    grid[0, 0].legend(frameon=False, loc="upper left", fontsize="small")
    figure.suptitle(
        f"Weights in the last steps: {HIGHEST} with the highest frequency of oscillations before, {RANDOM} at random"
    )
    figure.savefig(path, dpi=90)
