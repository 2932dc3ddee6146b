"""The grid of the paper's appendix, (m, a): `python -m experiments ablation [options]`.

For each period m and backtracking coefficient a it trains the method, and beside it LAQ, which is a = 1, and writes a
table and a heat map of validation accuracy and minibatch loss. It is resumable: finished runs are kept.
"""

import dataclasses
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from matplotlib.figure import Figure
from rich.console import Console

from experiments.configs import make_job
from experiments.core.cli import make_console, parse_options
from experiments.core.config import require
from experiments.methods.rows import Row
from experiments.reporting.paper import A_VALUES
from experiments.reporting.results import Job, read_job
from experiments.reporting.statistics import standard_deviation
from experiments.reporting.tables import Columns, markdown
from experiments.train import run_job

MEASURES = {
    "validation_accuracy": ("validation accuracy %", 100.0, "{:.2f}"),
    "minibatch_loss": ("minibatch loss", 1.0, "{:.4f}"),
}
EXPLANATION = """\
Mean and standard deviation over seeds: validation accuracy at the best epoch, minibatch loss over the last epoch.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AblationConfig:
    """Train the method over a grid of periods and backtracking coefficients."""

    job: Literal["digits", "mnist_small_mlp", "mnist_lenet5", "mnist_mlp", "cifar10_vgg", "svhn"] = "digits"
    """The job whose network, data and schedule are used."""
    periods: tuple[int, ...] = (1, 5, 10)
    """Periods m."""
    every_unit: Literal["steps", "epochs"] = "epochs"
    """What the periods count; with m = 1 every step is two-stage."""
    a_values: tuple[float, ...] = A_VALUES
    """Backtracking coefficients, each in (0, 1)."""
    epochs: int | None = None
    """Passes over the training images, instead of the job's own."""
    schedule: Literal["paper", "laq", "cosine"] | None = None
    """Learning-rate schedule, instead of the job's own."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of every cell."""
    limit: int | None = None
    """Use only so many images of each part of the data set."""
    output: Path
    """Folder for the results: new, or of an earlier call with the same settings."""

    def __post_init__(self) -> None:
        require(all(0 < a < 1 for a in self.a_values), "a-values", "in (0, 1)", self.a_values)


def main(arguments: Sequence[str]) -> None:
    """Trains, and writes ablation.md, ablation.json and ablation.png into the folder."""
    config = parse_options(AblationConfig, arguments, "ablation")
    base = make_job(
        config.job,
        epochs=config.epochs,
        schedule=config.schedule,
        limit=config.limit,
        seeds=config.seeds,
        output=config.output,
    )
    console = make_console()
    run_job(dataclasses.replace(base, methods=("laq",)), console)
    for a in config.a_values:
        row = dataclasses.replace(
            base, methods=("forward_backtrack",), a=a, every=config.periods, every_unit=config.every_unit
        )
        run_job(row, console)
    write_grid(config.output, console)


def write_grid(folder: Path, console: Console) -> None:
    """Writes the table and the heat map of all finished runs of a job folder."""
    job = read_job(folder)
    rows = [row for row in job.runs if row.method == "forward_backtrack" and _results(job, row)]
    laq = next((row for row in job.runs if row.method == "laq" and _results(job, row)), None)
    records = [_record(job, row) for row in sorted(rows, key=lambda row: (row.every or 0, -(row.a or 0)))]
    if laq is not None:
        records.append(_record(job, laq))
    columns: Columns = {"m": ("m", str), "a": ("a", "{:g}".format), "seeds": ("seeds", str)}
    for key, (title, _, text) in MEASURES.items():
        columns = {**columns, key: (title, text.format), f"{key}_deviation": ("±", text.format)}
    columns = {
        **columns,
        "paper": ("paper's test accuracy %", "{:.2f}".format),
        "gradients": ("gradients", "{:,}".format),
    }
    table = markdown(columns, records)
    (folder / "ablation.md").write_text(f"{table}\n{EXPLANATION}", encoding="utf-8")
    (folder / "ablation.json").write_text(json.dumps(records, indent=2) + "\n", encoding="utf-8")
    _plot(records, folder / "ablation.png", job)
    console.out(table, highlight=False)


def _results(job: Job, row: Row) -> list[dict[str, Any]]:
    return [run.result for run in job.runs[row] if run.result is not None]


def _record(job: Job, row: Row) -> dict[str, Any]:
    results = _results(job, row)
    record: dict[str, Any] = {
        "m": "LAQ" if row.every is None else "every step" if row.every == 1 else f"{row.every} {row.every_unit}",
        "a": row.a,
        "seeds": len(results),
        "paper": job.paper_accuracy(row),
        "gradients": results[0]["gradient_evaluations"],
    }
    measured = {
        "validation_accuracy": job.results(row, "validation_accuracy"),
        "minibatch_loss": job.last_epoch(row, "minibatch_loss"),
    }
    for key, (_, factor, _) in MEASURES.items():
        values = [factor * value for value in measured[key].values()]
        record[key] = statistics.fmean(values)
        record[f"{key}_deviation"] = standard_deviation(values)
    return record


def _plot(records: list[dict[str, Any]], path: Path, job: Job) -> None:
    """One heat map for each measure; LAQ is in the title."""
    cells = {(record["m"], record["a"]): record for record in records if record["a"] is not None}
    laq = next((record for record in records if record["a"] is None), None)
    periods = list(dict.fromkeys(m for m, _ in cells))
    a_values = sorted({a for _, a in cells}, reverse=True)
    if not cells:
        return
    figure = Figure(figsize=(12, 1.6 + 0.8 * len(periods)), layout="constrained")
    for axes, (key, (title, _, text)) in zip(figure.subplots(1, len(MEASURES)), MEASURES.items(), strict=True):
        values = [[cells[m, a][key] if (m, a) in cells else float("nan") for a in a_values] for m in periods]
        image = axes.imshow(values, aspect="auto", cmap="viridis" if key == "validation_accuracy" else "viridis_r")
        for i, line in enumerate(values):
            for j, value in enumerate(line):
                box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "boxstyle": "round,pad=0.15"}
                axes.text(j, i, text.format(value), ha="center", va="center", fontsize="small", bbox=box)
        beside = "" if laq is None else f"  (LAQ: {text.format(laq[key])})"
        axes.set(xlabel="a", ylabel="m", title=f"{job.path.name}: {title}{beside}")
        axes.set_xticks(range(len(a_values)), [f"{a:g}" for a in a_values])
        axes.set_yticks(range(len(periods)), periods)
        figure.colorbar(image, ax=axes)
    figure.savefig(path, dpi=110)
