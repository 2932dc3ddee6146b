"""Every method with its own settings, at equal gradients and at equal time: `python -m experiments comparison`.

For every row learning rate, b1 and b2 are searched with the same budget and with seeds of their own. The comparison is
paired over seeds. It is resumable: finished rows are kept.
"""

import dataclasses
import functools
import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
from rich.console import Console

from experiments.configs import make_job
from experiments.core.cli import fail, make_console, parse_options
from experiments.core.cohort import BLOCK, Cohort, Member, Setting
from experiments.core.config import TrainConfig, require
from experiments.core.records import jsonable, read_json, write_results
from experiments.data import Dataset, load_dataset
from experiments.methods.method import make_quantizer
from experiments.methods.registry import METHODS, Entry, Options
from experiments.reporting.statistics import as_record, mean_and_deviation, paired_difference, relative_difference
from experiments.reporting.tables import Columns, interval, markdown, spread
from experiments.studies.search import best, on_an_edge, search

COMMAND = "comparison"
REFERENCE = "LAQ"
BITS = {"binary": 1, "ternary": 2}
TIMED = ("step_seconds", "relative_step", "equal_time", "equal_time_to_laq")  # what depends on times
EXPLANATION = """\
{job}, width {width:g}, {images:,} training images, batch size {batch_size}, {grid} weights, {seeds} paired seeds.
Every row takes {gradients:,} gradient evaluations; rows with two per step take half as many steps. The learning rate
falls to 0 along half a cosine. Learning rate, b1 and b2 come from a search of up to 24 settings with the seeds
{tuning_seeds}: losses are those at the setting with the lowest training loss, accuracies those at the setting with
the lowest validation loss. * marks a value at the end of the range tried. Train loss: over the training images after
the last step, at the weights that would be shipped, with batch statistics re-estimated at them; minibatch loss: mean
over the steps of the last epoch, at the weights of the forward pass. Means ± standard deviations over seeds. Δ:
paired difference to LAQ with its 95 % t interval, for losses of log ratios. Equal time: trained once more for as many
steps as fit into the time of LAQ's training, by the times of steps taken in turn in one process.
"""
SHARED = ("job", "grid", "width", "epochs", "limit", "tuning_seeds", "seeds")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComparisonConfig:
    """Tune every method, then compare them at equal gradients and at equal time."""

    job: Literal["digits_mlp", "digits", "mnist_small_mlp", "mnist_plain_mlp", "mnist_lenet5", "cifar10_vgg"] = (
        "digits_mlp"
    )
    """The job whose network, data, batch size and loss are used."""
    grid: Literal["binary", "ternary"] = "binary"
    """Grid of the weights."""
    rows: tuple[str, ...] | None = None
    """Labels of rows, by default all."""
    width: float = 1.0
    """Hidden units and channels, as a multiple of the job's."""
    epochs: int | None = None
    """Passes over the training images of rows with one gradient per step, instead of the job's own."""
    limit: int | None = None
    """Use only so many images of each part of the data set."""
    tuning_seeds: tuple[int, ...] = (100, 101)
    """Seeds of the search."""
    seeds: tuple[int, ...] = tuple(range(8))
    """Seeds of the comparison."""
    timing_rounds: int = 11
    """Rounds in which the steps of all rows are timed in turn."""
    output: Path
    """Folder for the results: new, or of an earlier call with the same settings."""

    def __post_init__(self) -> None:
        among = set(self.seeds) & set(self.tuning_seeds)
        require(not among, "tuning-seeds", "other seeds than --seeds", self.tuning_seeds)
        labels = set(offered(self.grid))
        unknown = [label for label in self.rows or () if label not in labels]
        require(not unknown, "rows", f"among {', '.join(sorted(labels))}", unknown)


def main(arguments: Sequence[str]) -> None:
    """Searches and compares, and writes comparison.md and comparison.json into the folder."""
    config = parse_options(ComparisonConfig, arguments, COMMAND)
    settings = jsonable({key: getattr(config, key) for key in SHARED})
    records: dict[str, dict[str, Any]] = {}
    if (config.output / "comparison.json").exists():
        before = read_json(config.output / "comparison.json")
        if before["settings"] != settings:
            fail(f"{config.output} holds rows with other settings: choose another --output", code=2, command=COMMAND)
        records = {record["label"]: record for record in before["rows"]}
    Comparison(config, settings, records, make_console()).run()


def offered(grid: str) -> dict[str, tuple[Entry, Options]]:
    """The rows of a grid, by label."""
    bits = BITS[grid]
    return {
        label: (entry, options)
        for entry in METHODS.values()
        for label, options in entry.tuned.items()
        if (not entry.grids or grid in entry.grids) and (entry.bits is None or entry.bits[0] <= bits <= entry.bits[1])
    }


class Comparison:
    """A comparison that goes on.

    Args:
        config: What is compared.
        settings: What all rows have in common, as it is stored.
        records: By label, what is known already.
        console: Where progress and the table are shown.
    """

    def __init__(self, config: ComparisonConfig, settings: Any, records: dict[str, dict[str, Any]], console: Console):
        self._config, self._settings, self._records, self._console = config, settings, records, console
        self._job: TrainConfig = make_job(config.job, epochs=config.epochs, width=config.width)
        self._dataset: Dataset = load_dataset(self._job.dataset, config.limit)
        self._gradients = self._job.epochs * (len(self._dataset.train) // self._job.batch_size)
        chosen = offered(config.grid)
        self._rows = {label: chosen[label] for label in chosen if config.rows is None or label in config.rows}

    def run(self) -> None:
        """Takes every step that is missing, and shows the table."""
        cohorts = {label: self._cohort(label) for label in self._rows}
        for label, cohort in cohorts.items():
            if label not in self._records:
                self._records[label] = {"label": label} | self._tune_and_train(label, cohort)
                self._write()
                self._console.print(f"{label}: {spread('.5f')(self._records[label]['train_loss'])}", highlight=False)
        if any("step_seconds" not in self._records[label] for label in self._rows):
            # Times of other processes are not comparable, also those of rows that this call leaves out.
            for record, key in itertools.product(self._records.values(), TIMED):
                record.pop(key, None)
            for label, seconds in self._step_seconds(cohorts).items():
                self._records[label]["step_seconds"] = seconds
            self._write()
        for label, cohort in cohorts.items():
            if "equal_time" not in self._records[label]:
                self._records[label]["equal_time"] = self._train_for_equal_time(label, cohort)
                self._write()
        self._write()
        self._console.out((self._config.output / "comparison.md").read_text(encoding="utf-8"), highlight=False)

    def _cohort(self, label: str) -> Cohort:
        entry, options = self._rows[label]
        if entry.on_grid:
            options = {**options, "quantizer": make_quantizer(self._config.grid)}
        if entry.bits is not None:
            options = {**options, "bits": BITS[self._config.grid]}
        return Cohort(self._job, self._dataset, functools.partial(entry.make, **options))

    def _steps(self, label: str) -> int:
        return _whole_blocks(self._gradients / self._rows[label][0].gradients)

    def _tune_and_train(self, label: str, cohort: Cohort) -> dict[str, Any]:
        """The best settings of a row for the two things that are compared, and what its models reached with them."""
        seeds, steps = self._config.tuning_seeds, self._steps(label)
        validation: dict[Setting, float] = {}

        def score(settings: Sequence[Setting]) -> list[float]:
            records = cohort.run([Member(seed, setting) for setting in settings for seed in seeds], steps)
            train, validated = (
                [statistics.fmean(losses[i : i + len(seeds)]) for i in range(0, len(losses), len(seeds))]
                for losses in ([record[key] for record in records] for key in ("train_loss", "validation_loss"))
            )
            validation.update(zip(settings, validated, strict=True))
            return train

        scores = search(score)
        fitted, validated = best(scores), best(validation)
        by_seed = self._train(cohort, fitted, steps)
        return {
            "setting": vars(fitted),
            "edges": on_an_edge(scores),
            "steps": steps,
            "by_seed": by_seed,
            "validated": {
                "setting": vars(validated),
                "by_seed": by_seed if validated == fitted else self._train(cohort, validated, steps),
            },
            "searched": [[*vars(tried).values(), loss, validation[tried]] for tried, loss in scores.items()],
        }

    def _train(self, cohort: Cohort, setting: Setting, steps: int) -> dict[str, Any]:
        seeds = self._config.seeds
        records = cohort.run([Member(seed, setting) for seed in seeds], steps)
        return {str(seed): record for seed, record in zip(seeds, records, strict=True)}

    def _step_seconds(self, cohorts: Mapping[str, Cohort]) -> dict[str, float]:
        """The time of a step of a model, by row: blocks of steps of all rows in turn, medians."""
        blocks = {label: self._timed_block(label, cohort) for label, cohort in cohorts.items()}
        times: dict[str, list[float]] = {label: [] for label in blocks}
        for round_ in range(self._config.timing_rounds + 1):
            for label, block in blocks.items():
                elapsed = block()
                if round_ > 0:  # the first one compiles
                    times[label].append(elapsed / (BLOCK * cohorts[label].together))
        return {label: statistics.median(values) for label, values in times.items()}

    def _timed_block(self, label: str, cohort: Cohort) -> Callable[[], float]:
        """A function that takes the next steps of a row and returns their time in seconds."""
        members = [Member(seed, self._setting(label)) for seed in range(cohort.together)]
        steps = self._steps(label)
        settings, state = cohort.initial(members, steps)
        orders, advance = cohort.orders(members, BLOCK), cohort.programs(steps).advance

        def block() -> float:
            nonlocal state
            start = time.perf_counter()
            state, _ = jax.block_until_ready(advance(settings, cohort.data, state, orders))
            return time.perf_counter() - start

        return block

    def _train_for_equal_time(self, label: str, cohort: Cohort) -> dict[str, Any] | None:
        """What the models of a row reach in the time of the reference; None for the reference."""
        reference = self._records.get(REFERENCE)
        if label == REFERENCE or reference is None:
            return None
        record = self._records[label]
        steps = _whole_blocks(reference["steps"] * reference["step_seconds"] / record["step_seconds"])
        return {"steps": steps, "by_seed": self._train(cohort, self._setting(label), steps)}

    def _setting(self, label: str) -> Setting:
        return Setting(**self._records[label]["setting"])

    def _write(self) -> None:
        """Writes the table and the records so far."""
        for record in self._records.values():
            self._summarise(record)
        order = [label for label in offered(self._config.grid) if label in self._records]
        rows = [self._records[label] for label in order]
        explanation = EXPLANATION.format(
            job=self._config.job,
            width=self._job.width,
            images=len(self._dataset.train),
            batch_size=self._job.batch_size,
            grid=self._config.grid,
            seeds=len(self._config.seeds),
            gradients=self._gradients,
            tuning_seeds=" and ".join(map(str, self._config.tuning_seeds)),
        )
        text = f"{markdown(COLUMNS, rows)}\n{explanation}"
        write_results(self._config.output, "comparison", text, {"settings": self._settings, "rows": rows})

    def _summarise(self, record: dict[str, Any]) -> None:
        """Means over seeds, and differences to the reference."""
        for of, edges in ((record, record["edges"]), (record["validated"], [])):
            marked = (f"{value:g}" + ("*" if name in edges else "") for name, value in of["setting"].items())
            of["described"] = ", ".join(marked)
        record["accuracy_setting"] = record["validated"]["described"]
        record["test_accuracy"] = mean_and_deviation(by_seed(record["validated"], "test_accuracy"))
        for key in ("minibatch_loss", "train_loss"):
            record[key] = mean_and_deviation(by_seed(record, key))
        reference = self._records.get(REFERENCE)
        if reference is None or record["label"] == REFERENCE:
            return
        for key in ("minibatch_loss", "train_loss"):
            record[f"{key}_to_laq"] = as_record(relative_difference(by_seed(record, key), by_seed(reference, key)))
        accuracies = (by_seed(of["validated"], "test_accuracy") for of in (record, reference))
        record["test_accuracy_to_laq"] = as_record(paired_difference(*accuracies))
        if "step_seconds" in record and "step_seconds" in reference:
            record["relative_step"] = record["step_seconds"] / reference["step_seconds"]
        if record.get("equal_time"):
            losses = by_seed(record["equal_time"], "train_loss"), by_seed(reference, "train_loss")
            record["equal_time_to_laq"] = as_record(relative_difference(*losses))


def _whole_blocks(steps: float) -> int:
    return BLOCK * max(1, round(steps / BLOCK))


def by_seed(record: Mapping[str, Any], key: str) -> dict[int, float]:
    """A number of the models of a row, by seed."""
    return {int(seed): result[key] for seed, result in record["by_seed"].items()}


COLUMNS: Columns = {
    "label": ("equal gradients", str),
    "described": ("rate, b1, b2 for loss", str),
    "minibatch_loss": ("minibatch loss", spread(".2g")),
    "train_loss": ("train loss", spread(".2g")),
    "train_loss_to_laq": ("Δ to LAQ, %", interval(".0f", factor=100)),
    "relative_step": ("time of a step", "{:.2f}".format),
    "equal_time_to_laq": ("Δ at equal time, %", interval(".0f", factor=100)),
    "accuracy_setting": ("for accuracy", str),
    "test_accuracy": ("test accuracy %", spread(".2f")),
    "test_accuracy_to_laq": ("Δ to LAQ", interval(".2f")),
}
