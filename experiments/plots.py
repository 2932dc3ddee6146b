"""The plot of a job: loss and code flips against gradient evaluations, one line per method."""

import statistics
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure


def plot_metrics(metrics: list[dict[str, Any]], path: Path) -> None:
    """Draws mean over seeds, with a band from the lowest to the highest seed.

    Args:
        metrics: The lines of metrics.jsonl.
        path: The PNG to write.
    """
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    losses, flips = figure.subplots(1, 2)
    for number, label in enumerate(dict.fromkeys(record["label"] for record in metrics)):
        records = [record for record in metrics if record["label"] == label]
        _draw(losses, records, "train_loss", label, f"C{number}")
        _draw(flips, records, "flip_share", label, f"C{number}")
    losses.set(ylabel="training loss at the evaluated weights", title="Loss")
    flips.set(ylabel="share of weights whose code flips per step", title="Code flips")
    for axes in (losses, flips):
        axes.set(xlabel="gradient evaluations", yscale="log")
        axes.grid(alpha=0.3)
    losses.legend(frameon=False)
    figure.savefig(path, dpi=150)


def _draw(axes: Axes, records: list[dict[str, Any]], key: str, label: str, color: str) -> None:
    """One line and its band; an epoch without a positive value is left out."""
    points = []
    for epoch in sorted({record["epoch"] for record in records}):
        at_epoch = [record for record in records if record["epoch"] == epoch and record[key]]
        if at_epoch:
            values = [record[key] for record in at_epoch]
            points.append((at_epoch[0]["gradient_evaluations"], statistics.fmean(values), min(values), max(values)))
    if points:
        gradient_evaluations, mean, low, high = zip(*points, strict=True)
        axes.plot(gradient_evaluations, mean, color=color, label=label)
        axes.fill_between(gradient_evaluations, low, high, color=color, alpha=0.2, linewidth=0)
