"""Methods compared with learning rate, b1 and b2 tuned for each: `python -m experiments tuning --output FOLDER`.

Every row has the same number of gradient evaluations and a cosine schedule over its steps. Its settings have the lowest
validation loss of a grid, with seeds that the comparison does not use. It is resumable: finished rows are kept.
"""

import dataclasses
import itertools
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from experiments.configs import make_job
from experiments.core.cli import fail, make_console, parse_options
from experiments.core.config import TrainConfig, require
from experiments.core.evaluation import TRAIN_LOSS_EXAMPLES
from experiments.core.records import jsonable, read_json, write_results
from experiments.data import Dataset, load_dataset
from experiments.methods.registry import METHODS, Entry, Options
from experiments.reporting.statistics import as_record, mean_and_deviation, relative_difference
from experiments.reporting.tables import Columns, interval, markdown, spread
from experiments.studies.tuned_training import Setting, TunedTraining

COMMAND = "tuning"
EXPLANATION = """\
{job}, {epochs} epochs, {grid} weights, {gradients:,} gradient evaluations, cosine schedule, latent weights in [-1, 1]:
losses and accuracies at the quantized weights after the last step, mean ± standard deviation over {seeds} seeds. Δ:
relative difference in train loss to LAQ and to the quantized Nesterov form, negative where the row is better: geometric
mean of the ratios, with the 95 % interval of Student's t of their logarithms. Learning rate, b1 and b2 have the lowest
validation loss, mean over the seeds {tuning_seeds}. Rows with two gradients per step (SAM, two LAQ steps,
forward-backtrack) take half as many steps.
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

    def __post_init__(self) -> None:
        among = set(self.seeds) & set(self.tuning_seeds)
        require(not among, "tuning-seeds", "other seeds than --seeds", self.tuning_seeds)


def main(arguments: Sequence[str]) -> None:
    """Searches and compares, and writes tuning.md and tuning.json into the folder."""
    config = parse_options(TuningConfig, arguments, COMMAND)
    settings = jsonable({key: getattr(config, key) for key in SHARED})
    records: dict[str, dict[str, Any]] = {}
    if (config.output / "tuning.json").exists():
        before = read_json(config.output / "tuning.json")
        if before["settings"] != settings:
            fail(f"{config.output} holds rows with other settings: choose another --output", code=2, command=COMMAND)
        records = {record["label"]: record for record in before["rows"]}
    console = make_console()
    job = make_job(config.job, epochs=config.epochs)
    dataset = load_dataset(job.dataset, config.limit)
    for label, (entry, options) in offered(config.rows).items():
        if label not in records:
            records[label] = {"label": label} | measure(config, job, dataset, entry, options)
            console.print(f"{label}: {spread('.5f')(records[label]['train_loss'])}", highlight=False)
            write(config, job, dataset, settings, records)
    console.out((config.output / "tuning.md").read_text(encoding="utf-8"), highlight=False)


def offered(rows: Literal["methods", "variants", "all"]) -> dict[str, tuple[Entry, Options]]:
    """What can be tuned, by label: methods, then variants."""
    methods = {label: (entry, options) for entry in METHODS.values() for label, options in entry.tuned.items()}
    variants = {label: (entry, options) for entry in METHODS.values() for label, options in entry.variants.items()}
    return {"methods": methods, "variants": variants, "all": methods | variants}[rows]


def measure(config: TuningConfig, job: TrainConfig, dataset: Dataset, entry: Entry, options: Options) -> dict[str, Any]:
    """The best setting of a row, and what its runs with the seeds of the comparison reached."""
    training = TunedTraining(job, dataset, config.grid, entry, options)

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
    text = f"{markdown(COLUMNS, rows)}\n{explanation}"
    write_results(config.output, "tuning", text, {"settings": settings, "rows": rows})


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
