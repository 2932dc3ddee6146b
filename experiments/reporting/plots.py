"""The plot of a report: minibatch loss, validation error and code flips against gradient evaluations."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.reporting.results import Job, Run

PANELS = {
    "minibatch_loss": "minibatch loss, mean of an epoch",
    "validation_error": "validation error %",
    "flip_share": "share of weights that flip per step",
}


def plot_jobs(jobs: Sequence[Job], path: Path) -> None:
    """A row of panels for each job, a line for each of its rows: mean over seeds, band from the lowest to the highest.

    Args:
        jobs: What to plot.
        path: The PNG to write.
    """
    figure = Figure(figsize=(15, 4.6 * len(jobs)), layout="constrained")
    grid = figure.subplots(len(jobs), len(PANELS), squeeze=False)
    for job, panels in zip(jobs, grid, strict=True):
        for axes, (key, title) in zip(panels, PANELS.items(), strict=True):
            for number, (row, runs) in enumerate(job.runs.items()):
                _draw(axes, runs, key, row.label, f"C{number % 10}", "--" if row.equal_gradients else "-")
            axes.set(title=title, xlabel="gradient evaluations", yscale="log")
            axes.grid(alpha=0.3)
        panels[0].set_ylabel(job.path.name)
        handles, labels = panels[0].get_legend_handles_labels()
        panels[-1].legend(handles, labels, frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=110)


def _draw(axes: Axes, runs: list[Run], key: str, label: str, color: str, style: str) -> None:
    """One line and its band; an epoch without a positive value is left out."""
    points = []
    for epoch in sorted({record["epoch"] for run in runs for record in run.metrics}):
        records = [record for run in runs for record in run.metrics if record["epoch"] == epoch]
        values = [
            100 * (1 - record["validation_accuracy"]) if key == "validation_error" else record[key]
            for record in records
        ]
        values = [value for value in values if value]
        if values:
            points.append((records[0]["gradient_evaluations"], statistics.fmean(values), min(values), max(values)))
    if points:
        gradient_evaluations, mean, low, high = zip(*points, strict=True)
        axes.plot(gradient_evaluations, mean, color=color, label=label, linestyle=style)
        axes.fill_between(gradient_evaluations, low, high, color=color, alpha=0.15, linewidth=0)
