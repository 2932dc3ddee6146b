"""Methods compared with learning rate, b1 and b2 tuned for each: `python -m experiments.tuning --output FOLDER`.

Every row has the same number of gradient evaluations and a cosine schedule over its steps. Its settings have the lowest
validation loss of a grid, with seeds that the comparison does not use. It is resumable: finished rows are kept.
"""

import dataclasses
import itertools
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console

from experiments.config import TrainConfig
from experiments.configs import JOBS
from experiments.data import Dataset
from experiments.run import TRAIN_LOSS_EXAMPLES
from experiments.run_folder import environment, jsonable, read_json, write_json
from experiments.statistics import as_record, mean_and_deviation, relative_difference
from experiments.tables import Columns, interval, markdown, spread
from experiments.train import load
from experiments.tuned_training import Setting, TunedTraining
from experiments.variants import METHODS, VARIANTS, Variant

EXPLANATION = """\
{job}, {epochs} epochs, {grid} weights, {gradients:,} gradient evaluations, cosine schedule, latent weights in [-1, 1]:
losses and accuracies at the quantized weights after the last step, mean ± standard deviation over {seeds} seeds. Δ:
relative difference in train loss to LAQ and to the quantized Nesterov form, negative where the row is better, with the
95 % percentile bootstrap interval. Learning rate, b1 and b2 have the lowest validation loss, mean over the seeds
{tuning_seeds}. Rows with two gradients per step (SAM, two LAQ steps, forward-backtrack) take half as many steps.
"""
# Settings that rows of one folder must share.
SHARED = ("job", "grid", "epochs", "learning_rates", "b1", "b2", "tuning_seeds", "seeds", "limit")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TuningConfig:
    """Tune every method on validation data, then compare them at equal gradient evaluations."""

    job: Literal["digits", "mnist_small_mlp", "mnist_lenet5"] = "digits"
    """The job whose network, data, batch size and loss are used."""
    rows: Literal["methods", "variants", "all"] = "all"
    """Methods and controls, variants of the methods with one gradient per step, or both."""
    grid: Literal["binary", "ternary"] = "binary"
    """Grid of the weights."""
    epochs: int | None = None
    """Passes over the training images of rows with one gradient per step, instead of the job's own."""
    learning_rates: tuple[float, ...] = (0.01, 0.03, 0.1)
    """Learning rates at the start that are tried."""
    b1: tuple[float, ...] = (0.9, 0.7)
    """Decay rates of the first moment that are tried."""
    b2: tuple[float, ...] = (0.999, 0.99)
    """Decay rates of the second moment that are tried."""
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
        _fail(f"--tuning-seeds must not be among --seeds, got {config.tuning_seeds}")
    settings = jsonable({key: getattr(config, key) for key in SHARED})
    records: dict[str, dict[str, Any]] = {}
    if (config.output / "tuning.json").exists():
        before = read_json(config.output / "tuning.json")
        if before["settings"] != settings:
            _fail(f"{config.output} holds rows with other settings: choose another --output")
        records = {record["label"]: record for record in before["rows"]}
    console = Console(width=None if sys.stdout.isatty() else 120)
    job = JOBS[config.job] if config.epochs is None else dataclasses.replace(JOBS[config.job], epochs=config.epochs)
    dataset = load(job.dataset) if config.limit is None else load(job.dataset).first(config.limit)
    config.output.mkdir(parents=True, exist_ok=True)
    offered = {"methods": METHODS, "variants": VARIANTS, "all": METHODS | VARIANTS}[config.rows]
    for label, variant in offered.items():
        if label not in records:
            records[label] = {"label": label} | measure(config, job, dataset, variant)
            console.print(f"{label}: {spread('.5f')(records[label]['train_loss'])}", highlight=False)
            write(config, job, dataset, settings, records)
    console.out((config.output / "tuning.md").read_text(encoding="utf-8"), highlight=False)


def measure(config: TuningConfig, job: TrainConfig, dataset: Dataset, variant: Variant) -> dict[str, Any]:
    """The best setting of a row, and what its runs with the seeds of the comparison reached."""
    training = TunedTraining(job, dataset, config.grid, variant)

    def score(setting: Setting) -> float:
        return statistics.fmean(
            training.evaluate(training.run(seed, setting), dataset.validation).loss for seed in config.tuning_seeds
        )

    searched = {setting: score(setting) for setting in itertools.product(config.learning_rates, config.b1, config.b2)}
    best = min(searched, key=lambda setting: searched[setting])
    by_seed = {}
    for seed in config.seeds:
        trained = training.run(seed, best)
        by_seed[seed] = {
            "train_loss": training.evaluate(trained, dataset.train.first(TRAIN_LOSS_EXAMPLES)).loss,
            "validation_accuracy": 100 * training.evaluate(trained, dataset.validation).accuracy,
            "test_accuracy": 100 * training.evaluate(trained, dataset.test).accuracy,
        }
    measured = {
        key: mean_and_deviation({seed: result[key] for seed, result in by_seed.items()}) for key in by_seed[seed]
    }
    return {
        **dict(zip(("learning_rate", "b1", "b2"), best, strict=True)),
        **measured,
        "by_seed": {str(seed): result for seed, result in by_seed.items()},
        "searched": [[*setting, loss] for setting, loss in searched.items()],
    }


def write(
    config: TuningConfig, job: TrainConfig, dataset: Dataset, settings: Any, records: dict[str, dict[str, Any]]
) -> None:
    """Writes the table and the records so far."""
    losses = {
        label: {int(seed): result["train_loss"] for seed, result in record["by_seed"].items()}
        for label, record in records.items()
    }
    for label, record in records.items():
        for key, reference in (("to_laq", "LAQ"), ("to_nesterov", "quantized Nesterov")):
            known = reference in losses and label != reference
            record[key] = as_record(relative_difference(losses[label], losses[reference]) if known else None)
    explanation = EXPLANATION.format(
        job=config.job,
        epochs=job.epochs,
        grid=config.grid,
        gradients=job.epochs * (len(dataset.train) // job.batch_size),
        seeds=len(config.seeds),
        tuning_seeds=", ".join(map(str, config.tuning_seeds)),
    )
    rows = list(records.values())
    (config.output / "tuning.md").write_text(f"{markdown(COLUMNS, rows)}\n{explanation}", encoding="utf-8")
    write_json(config.output / "tuning.json", {"environment": environment(), "settings": settings, "rows": rows})


def _fail(message: str) -> None:
    raise SystemExit(f"python -m experiments.tuning: {message}")


COLUMNS: Columns = {
    "label": ("equal gradients", str),
    "learning_rate": ("learning rate", "{:g}".format),
    "b1": ("b1", "{:g}".format),
    "b2": ("b2", "{:g}".format),
    "train_loss": ("train loss", spread(".5f")),
    "to_laq": ("Δ to LAQ, %", interval(".0f", factor=100)),
    "to_nesterov": ("Δ to Nesterov, %", interval(".0f", factor=100)),
    "validation_accuracy": ("validation accuracy %", spread(".2f")),
    "test_accuracy": ("test accuracy %", spread(".2f")),
}

if __name__ == "__main__":
    main(sys.argv[1:])
