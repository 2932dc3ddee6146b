"""Zig-zagging of the weights of a network by bit-width: loss-aware quantization (LAQ) against the method."""

import dataclasses
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fobt
from experiments.configs import JOBS
from experiments.core.config import TrainConfig
from experiments.core.losses import LOSSES
from experiments.core.network import abstract_network, make_network
from experiments.core.programs import Programs
from experiments.core.records import write_results
from experiments.data import Dataset, load_dataset
from experiments.methods.rows import Row
from experiments.reporting.statistics import standard_deviation
from experiments.reporting.tables import Columns, markdown
from experiments.studies.zigzag.paths import Paths, choose, plot_paths, reader

GRIDS = ("binary", "ternary", "linear3", "linear4")
ROWS = tuple(
    row
    for grid in GRIDS
    for row in (
        Row(method="laq", grid=grid),
        Row(method="forward_backtrack", grid=grid, a=0.6, every=1, every_unit="steps"),
    )
)
DRAWN_GRID = "binary"
# Heading and format of the measures that are means over all updates of a run.
MEANS = {
    "oscillation_frequency": ("oscillation frequency", "{:.5f}"),
    "oscillating_share": ("oscillating weights", "{:.4f}"),
    "flip_share": ("flip share", "{:.5f}"),
    "gradient_cosine": ("cosine of successive gradients", "{:.3f}"),
    "trial_gradient_cosine": ("cosine with trial gradient", "{:.3f}"),
    "gradient_quantization_error": ("gradient error", "{:.3f}"),
}
MEASURES = {"largest_amplitude": ("largest amplitude", "{:.3f}"), **MEANS}
EXPLANATION = """\
{network} on {dataset}, {epochs} epochs of {steps} steps, batch size {batch_size}, schedule {schedule} from {rate:g},
latent weights clipped to {bounds}: mean and standard deviation (±) over seeds {seeds}. All quantized weights are
followed. The largest amplitude is that of any latent weight during training. The other measures are means over all
updates: frequency of oscillations (moving average with weight 0.01 of the current step, mean over weights), share of
weights with a frequency above 0.005, share of codes that flip in a step, cosine between the gradients of successive
minibatches, cosine between gradient and trial gradient, distance between the gradients at quantized and at
full-precision weights relative to the norm of the latter. The method takes two gradients per step, LAQ one.
"""


@dataclasses.dataclass(frozen=True)
class TrackedRun:
    """What is kept of one run.

    Attributes:
        history: For each update what `fobt.oscillations.oscillation_metrics` returned.
        paths: The last latents and quantized values of some weights.
    """

    history: list[dict[str, Any]]
    paths: Paths


def write(
    folder: Path,
    *,
    epochs: int,
    seeds: Sequence[int],
    job: str = "mnist_small_mlp",
    limit: int | None = None,
    path_steps: int = 300,
) -> None:
    """Trains with both methods and every grid, and writes what the instruments saw.

    The files are network.json and network.md, a table of oscillations by bit-width; network_paths.png, single weights
    at 1 bit; and network_laq.png and network_forward_backtrack.png, the measures over the updates at 1 bit. The figures
    show the first seed.

    Args:
        folder: Where the files go.
        epochs: Passes over the training images; the schedule of the job is fitted to them where it depends on them.
        seeds: Of initial weights and batch order.
        job: The job whose network, data, loss and schedule are used.
        limit: Use only so many images.
        path_steps: Number of updates at the end of training over which single weights are drawn.
    """
    config = dataclasses.replace(JOBS[job], epochs=epochs, limit=limit)
    dataset = load_dataset(config.dataset, limit)
    folder.mkdir(parents=True, exist_ok=True)
    records, drawn = [], {}
    for row in ROWS:
        runs = train(config, row, dataset, seeds, path_steps)
        records.append(summary(row, runs))
        if row.grid == DRAWN_GRID:
            drawn[row.label] = runs[0].paths
            title = f"{row.label}, {config.network}, seed {seeds[0]}"
            figure = fobt.oscillations.plot_oscillations(runs[0].history)
            figure.suptitle(title)
            figure.savefig(folder / f"network_{row.method}.png", dpi=80)
    plot_paths(drawn, folder / "network_paths.png")
    explanation = EXPLANATION.format(
        network=config.network,
        dataset=dataset.name or config.dataset,
        epochs=epochs,
        steps=len(dataset.train) // config.batch_size,
        batch_size=config.batch_size,
        schedule=config.schedule,
        rate=config.initial_learning_rate(),
        seeds=", ".join(map(str, seeds)),
        bounds=list(config.weight_bounds),
    )
    columns: Columns = {"label": ("weights", str)}
    for key, (title, text) in MEASURES.items():
        columns = {**columns, key: (title, text.format), f"{key}_deviation": ("±", text.format)}
    content = {"settings": config.shared(), "seeds": list(seeds), "records": records}
    write_results(folder, "network", f"{explanation}\n{markdown(columns, records)}", content)


def train(config: TrainConfig, row: Row, dataset: Dataset, seeds: Sequence[int], path_steps: int) -> list[TrackedRun]:
    """Trains a row with every seed, all of its quantized weights followed."""
    steps_per_epoch = len(dataset.train) // config.batch_size
    method = row.build(config.hyperparameters(row, steps_per_epoch))
    tracked = fobt.oscillations.track_oscillations(
        method.optimizer, method.quantizer, sample=None, full_precision_gradient=True
    )
    method = dataclasses.replace(method, optimizer=tracked)
    two_stage = row.gradient_evaluations(1, 1) == 2
    batch = next(dataset.train.shuffled_batches(config.batch_size, 0, 1))
    programs = Programs(abstract_network(config), LOSSES[config.loss], dataset, method, {two_stage}, batch)
    metrics = jax.jit(fobt.oscillations.oscillation_metrics)

    def run(seed: int) -> TrackedRun:
        state = programs.init_state(make_network(config, seed), seed)
        totals = jnp.zeros(2)
        history: list[dict[str, Any]] = []
        values: list[jax.Array] = []
        first_step = max(1, config.epochs * steps_per_epoch - path_steps + 1)
        for epoch in range(1, config.epochs + 1):
            for batch in dataset.train.shuffled_batches(config.batch_size, seed, epoch):
                step = len(history) + 1
                if step == first_step:
                    places = choose(state.optimizer, seed)
                    read = reader(places, method.evaluated)
                if step >= first_step:
                    values.append(read(state.params, state.optimizer))
                state, totals = programs.steps[two_stage](state, totals, batch)
                history.append(metrics(state.optimizer))
        history, values = jax.device_get((history, values))
        return TrackedRun(history, Paths(places, first_step, np.stack(values)))

    return [run(seed) for seed in seeds]


def summary(row: Row, runs: Sequence[TrackedRun]) -> dict[str, Any]:
    """Means and standard deviations over the runs of a row; a measure that it does not have is None."""
    record: dict[str, Any] = {"label": row.label, "method": row.method, "grid": row.grid}
    for key in MEASURES:
        values = [_measure(key, run.history) for run in runs]
        known = not any(np.isnan(values))
        record[key] = statistics.fmean(values) if known else None
        record[f"{key}_deviation"] = standard_deviation(values) if known else None
        record[f"{key}_by_seed"] = values if known else None
    return record


def _measure(key: str, history: Sequence[dict[str, Any]]) -> float:
    values = [float(metrics["total"][key]) for metrics in history]
    return values[-1] if key == "largest_amplitude" else statistics.fmean(values)
