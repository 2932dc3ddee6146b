"""Where the trial gradient beats its controls: `python -m experiments regimes --job digits --output FOLDER`.

Each regime changes one thing of a job: bits, learning rate, momentum, epochs, batch size, schedule. In each one the
method trains beside LAQ and beside the controls that also take two gradients per minibatch, and once more with half of
the epochs, which is as many gradients as LAQ takes. It is resumable: finished runs are kept.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from matplotlib.figure import Figure
from rich.console import Console

from experiments.configs import JOBS, make_job
from experiments.core.cli import make_console, parse_options
from experiments.core.config import MethodName, TrainConfig, require
from experiments.core.records import write_results
from experiments.methods.rows import Row
from experiments.reporting.results import Job, read_job
from experiments.reporting.statistics import as_record, mean_and_deviation, paired_difference, relative_difference
from experiments.reporting.tables import Columns, interval, markdown, spread
from experiments.train import run_job

Change = Callable[[TrainConfig], dict[str, Any]]


def _learning_rate(factor: float) -> Change:
    return lambda job: {"learning_rate": float(f"{factor * job.initial_learning_rate():g}")}


REGIMES: dict[str, Change] = {
    "the job": lambda job: {},
    "ternary": lambda job: {"quantizer": "ternary"},
    "linear 3 bits": lambda job: {"quantizer": "linear", "bits": 3},
    "learning rate ÷ 10": _learning_rate(0.1),
    "learning rate × 3": _learning_rate(3),
    "learning rate × 10": _learning_rate(10),
    "no momentum": lambda job: {"b1": 0.0},
    "a third of the epochs": lambda job: {"epochs": max(2, job.epochs // 3)},
    "a quarter of the batch": lambda job: {"batch_size": job.batch_size // 4},
    "paper's schedule": lambda job: {"schedule": "paper"},
}
METHODS: tuple[MethodName, ...] = ("laq", "sam", "two_steps", "forward_backtrack")
# What is compared: the key of a record, its heading, the row, and the row that it is compared with.
COMPARISONS = (
    ("sam_to_laq", "SAM to LAQ", "sam", "laq"),
    ("two_steps_to_laq", "two LAQ steps to LAQ", "two_steps", "laq"),
    ("method_to_laq", "method to LAQ", "forward_backtrack", "laq"),
    ("method_to_two_steps", "method to two LAQ steps", "forward_backtrack", "two_steps"),
    ("half_to_laq", "method, equal gradients, to LAQ", "half", "laq"),
)
EXPLANATION = """\
{job}, {seeds} seeds, a = {a:g}, every step two-stage. LAQ: minibatch loss over the steps of the last epoch, mean ±
standard deviation over seeds. The comparisons are relative differences of that loss, negative where the first has the
lower loss: geometric mean of the ratios over seeds, in brackets the 95 % interval of Student's t of their logarithms;
below five seeds there is none. SAM, two LAQ steps and the method take two gradients per minibatch, LAQ one; *equal
gradients* is the method with half of LAQ's epochs and its schedule compressed. The last column is the difference in
validation accuracy, in percent, at the best epoch. The settings are those of the job, tuned for no method.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegimesConfig:
    """Compare the method with LAQ and with its two-gradient controls in several regimes."""

    job: Literal["digits", "mnist_small_mlp", "mnist_lenet5"] = "digits"
    """The job whose network and data are used."""
    regimes: tuple[str, ...] | None = None
    """Which regimes; by default all that the job has a schedule for."""
    epochs: int | None = None
    """Passes over the training images, instead of the job's own."""
    a: float = 0.6
    """Backtracking coefficient of the method."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of every row."""
    limit: int | None = None
    """Use only so many images of each part of the data set."""
    output: Path
    """Folder for the results: new, or of an earlier call with the same settings."""

    def __post_init__(self) -> None:
        offered = self.offered()
        for name in self.regimes or ():
            require(name in offered, "regimes", f"among {', '.join(offered)} for {self.job}", name)

    def offered(self) -> list[str]:
        """The regimes that the job has a schedule for."""
        job = JOBS[self.job]
        return [name for name, change in REGIMES.items() if change(job).get("schedule", job.schedule) in job.schedules]


def main(arguments: Sequence[str]) -> None:
    """Trains, and writes regimes.md, regimes.json and regimes.png into the folder."""
    config = parse_options(RegimesConfig, arguments, "regimes")
    console = make_console()
    records = [train(config, name, console) for name in config.regimes or config.offered()]
    write(config, records, console)


def train(config: RegimesConfig, regime: str, console: Console) -> dict[str, Any]:
    """The record of a regime."""
    job = make_job(config.job, epochs=config.epochs, limit=config.limit, a=config.a, seeds=config.seeds)
    job = dataclasses.replace(job, methods=METHODS, every=(1,))
    folder = config.output / regime.translate({ord(" "): "_", ord("×"): "times", ord("÷"): "over", ord("'"): None})
    job = dataclasses.replace(job, **REGIMES[regime](job), output=folder)
    half = dataclasses.replace(job, methods=("forward_backtrack",), budget="gradients")
    run_job(job, console)
    run_job(half, console)
    rows = {row.method: row for row in job.rows()} | {"half": half.rows()[0]}
    return {"regime": regime} | compare(read_job(folder), rows)


def compare(job: Job, rows: dict[str, Row]) -> dict[str, Any]:
    """The comparisons of one regime."""
    losses = {name: job.last_epoch(row, "minibatch_loss") for name, row in rows.items()}
    record: dict[str, Any] = {"laq": mean_and_deviation(losses["laq"])}
    for key, _, first, second in COMPARISONS:
        record[key] = as_record(relative_difference(losses[first], losses[second]))
    accuracies = (
        {seed: 100 * value for seed, value in job.results(rows[name], "validation_accuracy").items()}
        for name in ("forward_backtrack", "two_steps")
    )
    record["accuracy_to_two_steps"] = as_record(paired_difference(*accuracies))
    return record


def write(config: RegimesConfig, records: list[dict[str, Any]], console: Console) -> None:
    """Writes the table, the records and the plot."""
    columns: Columns = {"regime": ("minibatch loss", str), "laq": ("LAQ", spread(".2g"))}
    for key, heading, _, _ in COMPARISONS:
        columns = {**columns, key: (f"{heading}, %", interval(".0f", factor=100))}
    columns = {**columns, "accuracy_to_two_steps": ("accuracy: method to two LAQ steps", interval(".2f"))}
    table = markdown(columns, records)
    epochs = make_job(config.job, epochs=config.epochs).epochs
    explanation = EXPLANATION.format(job=f"{config.job}, {epochs} epochs", seeds=len(config.seeds), a=config.a)
    write_results(config.output, "regimes", f"{table}\n{explanation}", {"regimes": records})
    plot(config, records)
    console.out(table, highlight=False)


def plot(config: RegimesConfig, records: list[dict[str, Any]]) -> None:
    """Relative differences in minibatch loss: a line for each regime, a panel for each control of the method."""
    shown = [comparison for comparison in COMPARISONS if comparison[0] in ("method_to_two_steps", "half_to_laq")]
    figure = Figure(figsize=(11, 1.2 + 0.35 * len(records)), layout="constrained")
    panels = figure.subplots(1, len(shown), sharey=True)
    for axes, (key, heading, _, _) in zip(panels, shown, strict=True):
        for place, record in enumerate(records):
            mean, low, high = (record[key][part] for part in ("mean", "low", "high"))
            if low is not None:
                axes.plot([100 * low, 100 * high], [place, place], color="C0")
            axes.plot(100 * mean, place, "o", color="C0")
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set(title=heading, xlabel="relative difference in minibatch loss, %")
        axes.set_yticks(range(len(records)), [record["regime"] for record in records])
        axes.grid(axis="x", alpha=0.3)
    panels[0].invert_yaxis()
    figure.suptitle(f"{config.job}: left of the line the method has the lower loss")
    figure.savefig(config.output / "regimes.png", dpi=110)
