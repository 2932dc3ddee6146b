"""Tables and plots from run folders: `python -m experiments report FOLDER... [--output FOLDER]`.

For each job there is a table at equal epochs and one at equal gradient evaluations, with the paired difference to LAQ.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import tyro
from rich.console import Console

from experiments.core.cli import fail, make_console, parse_options
from experiments.methods.rows import Row
from experiments.reporting import paper
from experiments.reporting.plots import plot_jobs
from experiments.reporting.results import Job, Run, read_job, write_rows
from experiments.reporting.statistics import (
    Estimate,
    as_record,
    mean_and_deviation,
    paired_difference,
    relative_difference,
)
from experiments.reporting.tables import Columns, interval, markdown, spread

COMMAND = "report"
Values: TypeAlias = Callable[[Row], dict[int, float]]  # by seed
Difference: TypeAlias = Callable[[Mapping[int, float], Mapping[int, float]], Estimate | None]
EXPLANATION = """\
Mean ± standard deviation over seeds. Test accuracy is read once, at the epoch with the best validation accuracy and at
the quantized weights, with running batch statistics where nothing else is said. Minibatch loss: mean over the steps of
the last epoch, at the weights where each step takes its first gradient and with the batch statistics of its minibatch.
Train loss: after the last epoch, at the quantized weights, over the first 10,000 training images; only where batch
statistics were estimated anew at these weights, because with running averages it moves by factors while the weights
stand still. Gradients: gradient evaluations of one run; two-stage steps and the two controls (two LAQ steps, SAM) take
two per minibatch. Δ: paired difference to the LAQ row with the same grid, mean over common seeds, for losses relative:
geometric mean of the ratios. In brackets its 95 % interval of Student's t, of log ratios for losses; below five seeds
there is none. Bits/weight: scales included. Seconds: of training steps, on a machine with other work. Paper: one figure
without spread, {source}.
"""
EQUAL_GRADIENTS = """\
At the number of gradient evaluations that LAQ took in all: best validation accuracy until then, and losses of the last
epoch until then. A row whose training is not over by then is cut off on its learning-rate schedule; rows with
the schedule compressed finish it, and have a test accuracy.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Make tables and plots from run folders."""

    folders: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """What `python -m experiments.train` wrote."""
    output: Path | None = None
    """Where report.md, report.json and report.png go; by default into the first folder."""


def main(arguments: Sequence[str]) -> None:
    """Writes the report of the folders on the command line."""
    config = parse_options(ReportConfig, arguments, COMMAND)
    if not config.folders:
        fail("give at least one folder", code=2, command=COMMAND)
    try:
        write_report(config.folders, config.output or config.folders[0], make_console())
    except OSError as error:
        fail(str(error), code=2, command=COMMAND)


def write_report(folders: Sequence[Path], output: Path, console: Console) -> None:
    """Writes report.md, report.json and report.png, and in each job folder the records of its rows.

    Args:
        folders: Job folders.
        output: Where the files go.
        console: Where the tables are shown.

    Raises:
        OSError: A folder cannot be read, or is none, or output cannot be written.
    """
    jobs = [read_job(folder) for folder in folders]
    for folder in folders:
        write_rows(folder)
    output.mkdir(parents=True, exist_ok=True)
    content, text = [], []
    for job in jobs:
        records = {"equal_epochs": equal_epochs(job), "equal_gradients": equal_gradients(job)}
        content.append({"job": job.settings, **records})
        text.append(f"## {describe(job)}\n")
        if records["equal_epochs"]:
            text.append(_table(EQUAL_EPOCHS_COLUMNS, records["equal_epochs"]))
        if records["equal_gradients"]:
            text += [EQUAL_GRADIENTS, _table(EQUAL_GRADIENTS_COLUMNS, records["equal_gradients"])]
    text.append(EXPLANATION.format(source=paper.SOURCE))
    (output / "report.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (output / "report.md").write_text("\n".join(text), encoding="utf-8")
    plot_jobs(jobs, output / "report.png")
    console.out("\n".join(text), highlight=False)


def describe(job: Job) -> str:
    """The settings of a job in a line."""
    s = job.settings
    width = "" if s["width"] == 1 else f", width {s['width']:g}"
    limit = "" if s["limit"] is None else f", {s['limit']} images"
    statistics = s["reestimate_batch_stats"]
    reestimated = f", batch statistics of {statistics} fresh batches" if statistics else ""
    mu_dtype = s.get("mu_dtype")  # jobs of older versions have none
    moment = f", first moment in {mu_dtype}" if mu_dtype else ""
    return (
        f"{job.name}: {s['network']}{width} on {s['data_name']}{limit}, {s['epochs']} epochs, batch size "
        f"{s['batch_size']}, {s['schedule']} schedule from {s['learning_rate']:g}{moment}{reestimated}"
    )


def equal_epochs(job: Job) -> list[dict[str, Any]]:
    """A record for each row with finished runs that took all epochs."""
    records = []
    for row, runs in job.runs.items():
        finished = [run for run in runs if run.result is not None]
        if not finished or row.equal_gradients:
            continue
        records.append(
            {
                "label": row.label,
                "seeds": len(finished),
                "paper": job.paper_accuracy(row),
                **{key: _mean(job.results(row, key)) for key in ("gradient_evaluations", "bits_per_weight", "seconds")},
            }
        )
        measures: dict[str, tuple[Values, Difference]] = {
            "test_accuracy": (lambda row: _percent(job.results(row, "test_accuracy")), paired_difference)
        }
        for key in _losses(job):
            losses = job.results if key == "train_loss" else job.last_epoch
            measures[key] = (functools.partial(losses, key=key), relative_difference)
        for key, (values, difference) in measures.items():
            records[-1] |= _measured(key, values, difference, row, row.reference(job.runs))
    return records


def equal_gradients(job: Job) -> list[dict[str, Any]]:
    """A record for each row with a LAQ row to compare with, at the gradient evaluations that LAQ took."""
    laq = [run for row, runs in job.runs.items() if row.method == "laq" for run in runs if run.result is not None]
    if not laq:
        return []
    budget = min(run.metrics[-1]["gradient_evaluations"] for run in laq)
    at_budget = {row: _cut_off(runs, budget) for row, runs in job.runs.items()}

    def values(row: Row, key: str) -> dict[int, float]:
        return {seed: record[key] for seed, record in at_budget[row].items()}

    records = []
    for row, by_seed in at_budget.items():
        reference = row.reference(job.runs)
        if not by_seed or (reference is None and row.method != "laq") or row.method == "full_precision":
            continue
        record: dict[str, Any] = {
            "label": row.label,
            "seeds": len(by_seed),
            "gradient_evaluations": _mean(values(row, "gradient_evaluations")),
            "test_accuracy": None,
        }
        differences = {"validation_accuracy": paired_difference} | dict.fromkeys(_losses(job), relative_difference)
        for key, difference in differences.items():
            record |= _measured(key, functools.partial(values, key=key), difference, row, reference)
        if all(run.result is not None and run.metrics[-1]["gradient_evaluations"] <= budget for run in job.runs[row]):
            record["test_accuracy"] = mean_and_deviation(_percent(job.results(row, "test_accuracy")))
        records.append(record)
    return records


def _cut_off(runs: list[Run], budget: int) -> dict[int, dict[str, float]]:
    """For each run that got so far: its record at the last epoch within the budget, best validation accuracy in %."""
    records = {}
    for run in runs:
        within = [record for record in run.metrics if record["gradient_evaluations"] <= budget]
        reached = run.result is not None or len(within) < len(run.metrics)
        if within and reached:
            best = 100 * max(record["validation_accuracy"] for record in within)
            records[run.seed] = within[-1] | {"validation_accuracy": best}
    return records


def _losses(job: Job) -> tuple[str, ...]:
    """The losses that say something: the train loss does where batch statistics are those of the evaluated weights."""
    return ("minibatch_loss", "train_loss") if job.settings["reestimate_batch_stats"] else ("minibatch_loss",)


def _measured(key: str, values: Values, difference: Difference, row: Row, reference: Row | None) -> dict[str, Any]:
    """A measure of a row, and how it differs from that of LAQ."""
    of_row = values(row)
    to_laq = None if reference is None else as_record(difference(of_row, values(reference)))
    return {key: mean_and_deviation(of_row), f"{key}_to_laq": to_laq}


def _table(columns: Columns, records: list[dict[str, Any]]) -> str:
    """The table of the columns that have a value somewhere."""
    filled = {key for record in records for key, value in record.items() if value is not None}
    return markdown({key: column for key, column in columns.items() if key in filled}, records)


def _mean(values: dict[int, float]) -> float:
    return sum(values.values()) / len(values)


def _percent(values: dict[int, float]) -> dict[int, float]:
    return {seed: 100 * value for seed, value in values.items()}


EQUAL_EPOCHS_COLUMNS: Columns = {
    "label": ("equal epochs", str),
    "seeds": ("seeds", str),
    "test_accuracy": ("test accuracy %", spread(".2f")),
    "paper": ("paper %", "{:.2f}".format),
    "test_accuracy_to_laq": ("Δ to LAQ", interval(".2f")),
    "minibatch_loss": ("minibatch loss", spread(".2g")),
    "minibatch_loss_to_laq": ("Δ to LAQ, %", interval(".0f", factor=100)),
    "train_loss": ("train loss", spread(".2g")),
    "train_loss_to_laq": ("Δ of train loss, %", interval(".0f", factor=100)),
    "gradient_evaluations": ("gradients", "{:,.0f}".format),
    "bits_per_weight": ("bits/weight", "{:.3f}".format),
    "seconds": ("seconds", "{:.0f}".format),
}
EQUAL_GRADIENTS_COLUMNS: Columns = {
    "label": ("equal gradients", str),
    "seeds": ("seeds", str),
    "gradient_evaluations": ("gradients", "{:,.0f}".format),
    "validation_accuracy": ("validation accuracy %", spread(".2f")),
    "validation_accuracy_to_laq": ("Δ to LAQ", interval(".2f")),
    "minibatch_loss": ("minibatch loss", spread(".2g")),
    "minibatch_loss_to_laq": ("Δ to LAQ, %", interval(".0f", factor=100)),
    "train_loss": ("train loss", spread(".2g")),
    "train_loss_to_laq": ("Δ of train loss, %", interval(".0f", factor=100)),
    "test_accuracy": ("test accuracy %", spread(".2f")),
}
