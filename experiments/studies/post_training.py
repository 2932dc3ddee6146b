"""Quantization after training: `python -m experiments post_training --output FOLDER [options]`.

It trains a network in full precision, then quantizes all weight layers, without any further training, by rounding to
nearest, by the projections of loss-aware training, and by loss-aware post-training quantization (LAPQ). Batch
normalisation stays as it is, its running averages too.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from matplotlib.figure import Figure
from rich.console import Console

import fobt
from experiments.configs import make_job
from experiments.core.cli import fail, make_console, parse_options
from experiments.core.config import TrainConfig
from experiments.core.evaluation import Evaluator
from experiments.core.losses import LOSSES
from experiments.core.network import split_model
from experiments.core.programs import TrainState
from experiments.core.records import write_results
from experiments.data import Dataset, load_dataset
from experiments.methods.rows import Row
from experiments.reporting.saved_run import SavedRun, read_run
from experiments.reporting.statistics import mean_and_deviation
from experiments.reporting.tables import Columns, markdown, spread
from experiments.train import run_job

COMMAND = "post_training"
FULL_PRECISION, PROJECTION = "full precision", "projection, curvature 1"
NORM_PHASES, LAPQ = "LAPQ, phases 1 and 2", "LAPQ"
COLUMNS: Columns = {
    "bits": ("bits", str),
    "method": ("method", str),
    "calibration_loss": ("calibration loss", spread(".4f")),
    "test_loss": ("test loss", spread(".4f")),
    "test_accuracy": ("test accuracy %", spread(".2f")),
    "evaluations": ("loss evaluations", spread(".0f")),
    "seconds": ("seconds", spread(".1f")),
}
EXPLANATION = """
{job}: {epochs} epochs in full precision, then weights quantized without further training; batch normalisation stays in
full precision and keeps its running averages. Mean ± standard deviation over {seeds} seed(s). The calibration loss is
that of the first {images} training images; LAPQ decides on nothing else, and no number of this table chose a setting.
Loss evaluations: how often a method took the calibration loss. Seconds: with compilation, on a machine with other work.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PostTrainingConfig:
    """Train a network in full precision and quantize it afterwards."""

    job: Literal["digits", "mnist_small_mlp", "mnist_lenet5", "mnist_mlp", "cifar10_vgg", "svhn"] = "mnist_lenet5"
    """The job whose network, data and schedule are used."""
    epochs: int = 3
    """Passes over the training images."""
    bits: tuple[int, ...] = (4, 3, 2)
    """Bits per weight, on the linear grid."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the training."""
    calibration_images: int = 512
    """The calibration loss is taken over so many training images, the first ones."""
    max_evaluations: int = 200
    """How often the joint search of LAPQ may evaluate the calibration loss."""
    training: Path | None = None
    """Folder of the training, by default one in --output; finished runs that it has are not repeated."""
    quick: bool = False
    """Shrink the training to seconds, to see whether it works."""
    output: Path
    """Folder for the results."""

    def training_config(self) -> TrainConfig:
        """The training."""
        return make_job(
            self.job,
            methods=("full_precision",),
            epochs=self.epochs,
            seeds=self.seeds,
            quick=self.quick,
            reestimate_batch_stats=0,  # quantized weights are evaluated with the running averages too
            output=self.training or self.output / "training",
        ).effective()


LossFn = Callable[[Any], jax.Array]
Losses = tuple[float, ...]  # the calibration loss of each evaluation of a method, in order
Quantization = Callable[[TrainState, LossFn, fobt.Quantizer], tuple[Any, Losses]]


def round_to_nearest(trained: TrainState, loss_fn: LossFn, quantizer: fobt.Quantizer) -> tuple[Any, Losses]:
    """Every weight to the nearest level, the largest level being max|w|."""
    del loss_fn

    def round_leaf(w: jax.Array) -> jax.Array:
        return quantizer.round_to_nearest(w, jnp.max(jnp.abs(w))).dequantize() if w.ndim >= 2 else w

    return jax.tree.map(jax.jit(round_leaf), trained.params), ()


def projection(trained: TrainState, loss_fn: LossFn, quantizer: fobt.Quantizer, weighted: bool) -> tuple[Any, Losses]:
    """The projection of loss-aware training, with the curvature of the training if `weighted`, with 1 otherwise."""
    del loss_fn
    project = jax.jit(fobt.quantized_params, static_argnames="quantizer")
    return project(trained.params, trained.optimizer if weighted else None, quantizer=quantizer), ()


def lapq(trained: TrainState, loss_fn: LossFn, quantizer: fobt.Quantizer, max_evaluations: int) -> tuple[Any, Losses]:
    """LAPQ, with so many evaluations for its joint search."""
    result = fobt.lapq(loss_fn, trained.params, quantizer, max_evaluations=max_evaluations)
    return fobt.dequantize(result.quantized), result.losses


def main(arguments: Sequence[str]) -> None:
    """Trains, quantizes, and writes post_training.md, post_training.json and post_training.png into the folder."""
    config = parse_options(PostTrainingConfig, arguments, COMMAND)
    console = make_console()
    training = config.training_config()
    folder = run_job(training, console).path
    dataset = load_dataset(training.dataset, training.limit)
    quantizations: dict[str, Quantization] = {
        "round to nearest, scale max|w|": round_to_nearest,
        PROJECTION: functools.partial(projection, weighted=False),
        "projection, curvature of the training": functools.partial(projection, weighted=True),
        NORM_PHASES: functools.partial(lapq, max_evaluations=0),
        LAPQ: functools.partial(lapq, max_evaluations=config.max_evaluations),
    }
    records = []
    for seed in training.seeds:
        try:
            run = read_run(folder / Row(method="full_precision").name / f"seed-{seed}")
        except ValueError as error:
            fail(str(error), code=2, command=COMMAND)
        records += quantize_all(config, run, dataset, quantizations, seed)
        console.print(f"seed {seed}: quantized", highlight=False)
    write(config, records, console)


def quantize_all(
    config: PostTrainingConfig, run: SavedRun, dataset: Dataset, quantizations: dict[str, Quantization], seed: int
) -> list[dict[str, Any]]:
    """A record for full precision, and one for each number of bits and method."""
    loss, trained, graph = LOSSES[run.config.loss], run.arrays.state, split_model(run.model)[0]
    evaluator = Evaluator(run.model, loss, dataset.prepare)
    calibration = dataset.train.first(config.calibration_images)
    batch = next(calibration.batches(len(calibration)))

    def loss_fn(weights: Any) -> jax.Array:
        scores = nnx.merge(graph, weights, trained.batch_stats)(dataset.prepare(batch.images), training=False)
        return loss(scores, jnp.asarray(batch.labels))

    def record(bits: int, method: str, weights: Any, losses: Losses, seconds: float | None) -> dict[str, Any]:
        test = evaluator(weights, trained.batch_stats, dataset.test)
        return {
            "bits": bits,
            "method": method,
            "seed": seed,
            "calibration_loss": evaluator(weights, trained.batch_stats, calibration).loss,
            "test_loss": test.loss,
            "test_accuracy": 100 * test.accuracy,
            "evaluations": len(losses),
            "seconds": seconds,
            "losses": losses,
        }

    records = [record(32, FULL_PRECISION, trained.params, (), None)]
    for bits in config.bits:
        for name, quantize in quantizations.items():
            start = time.perf_counter()
            weights, losses = jax.block_until_ready(quantize(trained, loss_fn, fobt.linear(bits)))
            records.append(record(bits, name, weights, losses, time.perf_counter() - start))
    return records


def write(config: PostTrainingConfig, records: list[dict[str, Any]], console: Console) -> None:
    """Writes the table, the records and the plot."""
    rows = []
    for bits, method in dict.fromkeys((record["bits"], record["method"]) for record in records):
        runs = {r["seed"]: r for r in records if (r["bits"], r["method"]) == (bits, method)}
        measured = [key for key in COLUMNS if key not in ("bits", "method")]
        spreads = {
            key: mean_and_deviation({seed: run[key] for seed, run in runs.items()})
            for key in measured
            if all(run[key] is not None for run in runs.values())
        }
        rows.append({"bits": bits, "method": method} | spreads)
    explanation = EXPLANATION.format(
        job=config.job, epochs=config.epochs, seeds=len(config.seeds), images=config.calibration_images
    )
    table = markdown(COLUMNS, rows)
    write_results(config.output, COMMAND, table + explanation, {"table": rows, "records": records})
    plot(records, config.output / "post_training.png")
    console.out(table, highlight=False)


def plot(records: list[dict[str, Any]], path: Path) -> None:
    """The lowest calibration loss so far against the evaluations of LAPQ: a panel for each number of bits.

    A dot is where the joint search starts; a dotted line is the loss of the projection with curvature 1.
    """
    by_key = {(record["bits"], record["method"], record["seed"]): record for record in records}
    all_bits = list(dict.fromkeys(record["bits"] for record in records if record["method"] == LAPQ))
    figure = Figure(figsize=(4.6 * len(all_bits), 4), layout="constrained")
    for axes, bits in zip(figure.subplots(1, len(all_bits), squeeze=False)[0], all_bits, strict=True):
        for seed in dict.fromkeys(record["seed"] for record in records):
            color = f"C{seed % 10}"
            lowest = np.minimum.accumulate(by_key[bits, LAPQ, seed]["losses"])
            start = by_key[bits, NORM_PHASES, seed]["evaluations"]
            axes.plot(range(1, len(lowest) + 1), lowest, drawstyle="steps-post", color=color, label=f"seed {seed}")
            axes.plot(start, lowest[start - 1], "o", color=color)
            axes.axhline(by_key[bits, PROJECTION, seed]["calibration_loss"], color=color, linestyle=":")
        axes.set(title=f"{bits} bits", xlabel="evaluations of the calibration loss")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.get_axes()[0].set_ylabel("lowest calibration loss so far")
    figure.savefig(path, dpi=110)
