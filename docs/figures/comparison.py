"""All rows of the comparisons at equal gradients, from stored results: `python docs/figures/comparison.py`.

Training loss relative to loss-aware quantization (LAQ), with 95 % intervals over paired seeds, from
`experiments/results/comparison/*/comparison.json`.
"""

import json
from pathlib import Path
from typing import Any

from drawing import FOLDER, MUTED, new_figure, save
from matplotlib.axes import Axes

RESULTS = FOLDER.parents[1] / "experiments" / "results" / "comparison"
NETWORKS = {
    "digits_mlp": ("digits, MLP", "C0", "o"),
    "digits": ("digits, CNN, 10 epochs", "C1", "s"),
    "digits_long": ("digits, CNN, 40 epochs", "C5", "P"),
    "mnist_small_mlp": ("MNIST, MLP", "C2", "^"),
    "mnist_lenet5": ("MNIST, LeNet5", "C3", "D"),
    "mnist_plain_mlp": ("MNIST, MLP without normalisation", "C4", "v"),
}
REFERENCE = "LAQ"


def read(grid: str) -> dict[str, list[dict[str, Any]]]:
    """The rows of the networks that have a result, by the name of their folder."""
    paths = {job: RESULTS / f"{job}-{grid}" / "comparison.json" for job in NETWORKS}
    return {job: json.loads(path.read_text(encoding="utf-8"))["rows"] for job, path in paths.items() if path.exists()}


def draw(ax: Axes, grid: str) -> None:
    """The rows of a grid, those of the registry from top to bottom."""
    by_job = read(grid)
    labels = list(dict.fromkeys(row["label"] for rows in by_job.values() for row in rows if row["label"] != REFERENCE))
    for job, rows in by_job.items():
        label, color, marker = NETWORKS[job]
        offset = 0.12 * (list(NETWORKS).index(job) - (len(NETWORKS) - 1) / 2)
        for row in rows:
            if estimate := row.get("train_loss_to_laq"):
                y = labels.index(row["label"]) + offset
                ax.plot([1 + estimate["low"], 1 + estimate["high"]], [y, y], color=color, linewidth=1)
                ax.plot(1 + estimate["mean"], y, marker, color=color, markersize=4)
        ax.plot([], [], marker, color=color, markersize=4, label=label)
    ax.axvline(1, color=MUTED, linewidth=1)
    ax.set(xscale="log", title=f"{grid} weights", xlabel="training loss / that of LAQ, equal gradients")
    ax.set_xlim(0.1, 20)
    ax.set_xticks([0.1, 0.3, 1, 3, 10], ["0.1", "0.3", "1", "3", "10"])
    ax.minorticks_off()
    ax.set_yticks(range(len(labels)), labels, fontsize=8)
    ax.invert_yaxis()
    ax.grid(axis="y", linewidth=0.3)


def main(folder: Path = FOLDER) -> None:
    """Draws the figure into a folder."""
    figure, axes = new_figure(11, 6.5, columns=2)
    for ax, grid in zip(axes, ("binary", "ternary"), strict=True):
        draw(ax, grid)
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, frameon=False, fontsize=8, loc="outside lower center", ncols=len(NETWORKS))
    save(figure, folder / "comparison.svg")


if __name__ == "__main__":
    main()
