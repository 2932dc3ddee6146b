"""Methods compared with learning rate, b1, b2 and a tuned for each: `python -m experiments.tuning --output FOLDER`.

The settings of a row are searched one after another: each is set to the value with the lowest validation loss after the
last epoch, with seeds of their own, while the others stay at the best values so far. Then every row trains with its
settings and new seeds. All rows have the same number of gradient evaluations: rows with two per minibatch have fewer
epochs and a compressed schedule. It is resumable: finished runs are kept.
"""

import dataclasses
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import tyro
from rich.console import Console

from experiments.config import GRID_METHODS, MethodName, QuantizerName, TrainConfig
from experiments.configs import JOBS
from experiments.results_reading import Run, read_job
from experiments.rows import expand
from experiments.statistics import as_record, relative_difference, standard_deviation
from experiments.tables import Columns, interval, markdown
from experiments.train import run_job

Setting: TypeAlias = dict[str, float]
# In the order of the search. The first value of each is where the search starts.
SETTINGS: dict[str, tuple[float, ...]] = {
    "learning_rate": (0.01, 0.001, 0.003, 0.03),
    "b2": (0.999, 0.99, 0.95, 0.9),
    "b1": (0.9, 0.8, 0.5, 0.0),
    "a": (0.6, 0.3, 0.9),
}
METHODS_WITH_A = ("forward_backtrack", "optimistic")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TuningConfig:
    """Tune every method on validation data, then compare them at equal gradient evaluations."""

    job: Literal["digits", "mnist_small_mlp", "mnist_lenet5"] = "digits"
    """The job whose network, data and schedule are used."""
    methods: tuple[MethodName, ...] = (
        "laq",
        "nadam",
        "nesterov",
        "optimistic",
        "forward_backtrack",
        "two_steps",
        "sam",
        "bwn",
    )
    """Rows of the table; the first one is what the others are compared with."""
    quantizer: QuantizerName = "binary"
    """Grid of laq and the methods built on it."""
    bits: int | None = None
    """Bits per weight of linear and logarithmic grids."""
    epochs: int | None = None
    """Passes over the training images of rows with one gradient per minibatch, instead of the job's own."""
    tuning_seeds: tuple[int, ...] = (100, 101)
    """Seeds of the search."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds of the comparison."""
    limit: int | None = None
    """Use only so many images of each part of the data set."""
    output: Path
    """Folder for the results: new, or of an earlier call with the same settings."""


def main(arguments: Sequence[str]) -> None:
    """Searches and compares, and writes tuning.md and tuning.json into the folder."""
    config = tyro.cli(TuningConfig, args=arguments, prog="python -m experiments.tuning")
    if set(config.seeds) & set(config.tuning_seeds):
        raise SystemExit(
            f"python -m experiments.tuning: --tuning-seeds must not be among --seeds, got {config.tuning_seeds}"
        )
    console = Console(width=None if sys.stdout.isatty() else 120)
    finals, searches = {}, {}
    for method in config.methods:
        setting, searches[method] = search(config, method, console)
        finals[method] = setting, train(config, method, setting, config.seeds, config.output / "compared", console)
    write_table(config.output, finals, searches, console)


def search(config: TuningConfig, method: MethodName, console: Console) -> tuple[Setting, list[dict[str, Any]]]:
    """The best setting of a method, and the validation loss of every setting that was tried."""
    tried: list[dict[str, Any]] = []

    def score(setting: Setting) -> float:
        runs = train(config, method, setting, config.tuning_seeds, config.output / "search", console)
        loss = statistics.fmean(run.metrics[-1]["validation_loss"] for run in runs)
        tried.append({**setting, "validation_loss": loss})
        return loss

    names = [name for name in SETTINGS if name != "a" or method in METHODS_WITH_A]
    best = {name: SETTINGS[name][0] for name in names}
    for name in names:
        best = min(({**best, name: value} for value in SETTINGS[name]), key=score)
    return best, tried


def train(
    config: TuningConfig, method: MethodName, setting: Setting, seeds: Sequence[int], folder: Path, console: Console
) -> list[Run]:
    """Trains one row with one setting; rows with the same setting share a job folder."""
    changes = {key: value for key in ("epochs", "limit") if (value := getattr(config, key)) is not None}
    name = "-".join(f"{key}{value:g}" for key, value in setting.items() if key != "a")
    job = TrainConfig(
        **{
            **{field.name: getattr(JOBS[config.job], field.name) for field in dataclasses.fields(TrainConfig)},
            "methods": (method,),
            "quantizer": config.quantizer if method in GRID_METHODS else None,
            "bits": config.bits,
            "budget": "gradients",
            "every": (1,),
            "seeds": tuple(seeds),
            "output": folder / name,
            **changes,
            **setting,
        }
    )
    run_job(job, console)
    (row,) = expand(job)
    return [run for run in read_job(folder / name).runs[row] if run.seed in seeds]


def write_table(
    folder: Path,
    finals: dict[MethodName, tuple[Setting, list[Run]]],
    searches: dict[MethodName, list[dict[str, Any]]],
    console: Console,
) -> None:
    """Writes the comparison, and what the search tried."""
    losses = {
        method: {run.seed: run.result["train_loss"] for run in runs if run.result is not None}
        for method, (_, runs) in finals.items()
    }
    reference = next(iter(losses.values()))
    records = []
    for method, (setting, runs) in finals.items():
        results = [run.result for run in runs if run.result is not None]
        record: dict[str, Any] = {"label": runs[0].row.label, **setting, "seeds": len(results)}
        for key, factor in [("train_loss", 1), ("validation_accuracy", 100), ("test_accuracy", 100)]:
            values = [factor * result[key] for result in results]
            record[key] = statistics.fmean(values)
            record[f"{key}_deviation"] = standard_deviation(values)
        record["gradients"] = statistics.fmean(result["gradient_evaluations"] for result in results)
        if losses[method] is not reference:
            record["train_loss_to_first"] = as_record(relative_difference(losses[method], reference))
        records.append(record)
    table = markdown(COLUMNS, records)
    (folder / "tuning.md").write_text(table, encoding="utf-8")
    (folder / "tuning.json").write_text(
        json.dumps({"compared": records, "searched": searches}, indent=2) + "\n", encoding="utf-8"
    )
    console.out(table, highlight=False)


COLUMNS: Columns = {
    "label": ("method", str),
    "learning_rate": ("learning rate", "{:g}".format),
    "b1": ("b1", "{:g}".format),
    "b2": ("b2", "{:g}".format),
    "a": ("a", "{:g}".format),
    "gradients": ("gradients", "{:,.0f}".format),
    "seeds": ("seeds", str),
    "train_loss": ("train loss", "{:.5f}".format),
    "train_loss_deviation": ("±", "{:.5f}".format),
    "train_loss_to_first": ("Δ to the first, %", interval(".0f", factor=100)),
    "validation_accuracy": ("validation accuracy %", "{:.2f}".format),
    "test_accuracy": ("test accuracy %", "{:.2f}".format),
    "test_accuracy_deviation": ("±", "{:.2f}".format),
}

if __name__ == "__main__":
    main(sys.argv[1:])
