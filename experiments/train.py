"""Trains one network with several methods and seeds: `python -m experiments.train [job] [options]`.

Without arguments it trains 1-bit weights on handwritten digits and compares full precision, loss-aware quantization
(LAQ) and one step forward and backtrack. See experiments/README.md, or `--help` for the options.
"""

import functools
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console

import fobt
from experiments.cli import fail, parse
from experiments.config import TrainConfig
from experiments.data import DATASETS, Dataset, MissingDataError
from experiments.methods import Method, build_methods
from experiments.models import NETWORKS
from experiments.plots import plot_metrics
from experiments.progress import ProgressDisplay
from experiments.run_folder import RunFolder
from experiments.steps import Evaluation, Evaluator, Programs, bits_per_weight
from experiments.summary import describe, make_table, summarize, to_markdown

DISPLAY_PERIOD = 20  # steps between two looks at the loss, each of which waits for the device


def main(arguments: Sequence[str]) -> None:
    """Runs the job of the command line."""
    config = parse(arguments).effective()
    try:
        dataset = DATASETS[config.dataset]()
    except MissingDataError as error:
        fail(str(error), code=1)
    if config.limit is not None:
        dataset = dataset.first(config.limit)
    if config.batch_size > len(dataset.train):
        fail(f"--batch-size must be at most {len(dataset.train)}, the training images, got {config.batch_size}", code=2)
    try:
        folder = RunFolder(config)
    except OSError as error:
        fail(f"cannot write results to {error.filename}: {error.strerror}", code=2)
    try:
        train_all(config, dataset, folder, Console(width=None if sys.stdout.isatty() else 120))
    except KeyboardInterrupt:
        fail(f"interrupted; finished runs are in {folder.path}", code=130)


def train_all(config: TrainConfig, dataset: Dataset, folder: RunFolder, console: Console) -> list[dict[str, Any]]:
    """Trains every method with every seed.

    Args:
        config: The job.
        dataset: Its data.
        folder: Where results go; each finished run is there before the next one starts.
        console: Where progress and table are shown.

    Returns:
        One result per run.
    """
    data = jax.device_put(dataset)
    steps_per_epoch = len(dataset.train) // config.batch_size
    schedule = config.schedules[config.schedule]
    methods = build_methods(config, schedule.in_steps(config.initial_learning_rate(), config.epochs, steps_per_epoch))
    model = NETWORKS[config.network](nnx.Rngs(0))
    evaluator = Evaluator(model)
    runs: list[dict[str, Any]] = []
    console.print(f"{config.job}: results go to {folder.path}", highlight=False, soft_wrap=True)
    with ProgressDisplay(console, len(methods) * len(config.seeds), config.epochs, steps_per_epoch) as progress:
        for method in methods:
            progress.compile(method.label)
            kinds = {
                method.is_two_stage(step // steps_per_epoch + 1, step + 1)
                for step in range(config.epochs * steps_per_epoch)
            }
            programs = Programs(model, method, kinds, data.train, config.batch_size)
            for seed in config.seeds:
                progress.start_run(f"{method.label}, seed {seed}")
                runs.append(train_run(config, method, seed, programs, evaluator, data, folder, progress))
                rows = summarize(runs)
                folder.write_summary(rows, runs, to_markdown(config, rows))
            plot_metrics(folder.read_metrics(), folder.path / "loss_and_flips.png")
    console.print(make_table(rows), describe(config), highlight=False)
    return runs


def train_run(
    config: TrainConfig,
    method: Method,
    seed: int,
    programs: Programs,
    evaluator: Evaluator,
    data: Dataset,
    folder: RunFolder,
    progress: ProgressDisplay,
) -> dict[str, Any]:
    """Trains one method with one seed; the test images are read once, at the weights of the best validation epoch.

    Args:
        config: The job.
        method: How to train.
        seed: Of initial weights and batch order.
        programs: What runs on the device.
        evaluator: Evaluates weights.
        data: The data set, on the device.
        folder: Gets a line per epoch.
        progress: Shows where the run is.

    Returns:
        The result: what the table needs, and the epoch that validation chose.
    """
    identity = {"method": method.name, "label": method.label, "seed": seed}
    state = programs.init_state(NETWORKS[config.network](nnx.Rngs(seed)))
    best, best_epoch = Evaluation(loss=float("inf"), accuracy=-1.0), 0
    step = gradient_evaluations = 0
    seconds = 0.0
    for epoch in range(1, config.epochs + 1):
        batches = batch_order(seed, epoch, len(data.train), config.batch_size)
        totals = jnp.zeros(2)
        start = time.perf_counter()
        for number, batch in enumerate(batches, start=1):
            step += 1
            two_stage = method.is_two_stage(epoch, step)
            state, totals = programs.steps[two_stage](state, totals, data.train, batch)
            gradient_evaluations += 2 if two_stage else 1
            if number % DISPLAY_PERIOD == 0 or number == len(batches):
                loss_sum, flip_sum = np.asarray(totals).tolist()
                progress.advance((number - 1) % DISPLAY_PERIOD + 1, loss_sum / number)
        jax.block_until_ready(state)
        seconds += time.perf_counter() - start

        weights = programs.quantized_params(state.params, state.optimizer)
        train = evaluator(weights, state.batch_stats, data.train)
        validation = evaluator(weights, state.batch_stats, data.validation)
        if (validation.accuracy, -validation.loss) > (best.accuracy, -best.loss):
            best, best_epoch = validation, epoch
            # Copies, because the next step reuses the buffers of the state.
            best_weights, best_batch_stats = jax.tree.map(jnp.copy, (weights, state.batch_stats))
        folder.append_metrics(
            identity
            | {
                "epoch": epoch,
                "steps": step,
                "gradient_evaluations": gradient_evaluations,
                "minibatch_loss": loss_sum / len(batches),
                "train_loss": train.loss,
                "train_accuracy": train.accuracy,
                "validation_loss": validation.loss,
                "validation_accuracy": validation.accuracy,
                "flip_share": flip_sum / len(batches) if state.codes else None,
                "seconds": seconds,
            }
        )
        progress.finish_epoch(epoch, train.loss, validation.accuracy)
    test = evaluator(best_weights, best_batch_stats, data.test)
    progress.finish_run(f"test accuracy {100 * test.accuracy:.2f} %, loss {train.loss:.4f}, {seconds:.1f} s")
    quantize = functools.partial(fobt.quantize, quantizer=method.quantizer)
    return identity | {
        "best_epoch": best_epoch,
        "validation_accuracy": best.accuracy,
        "test_accuracy": test.accuracy,
        "train_loss": train.loss,
        "gradient_evaluations": gradient_evaluations,
        "seconds": seconds,
        "bits_per_weight": bits_per_weight(jax.eval_shape(quantize, state.params, state.optimizer)),
    }


def batch_order(seed: int, epoch: int, examples: int, batch_size: int) -> np.ndarray:
    """Indices of the minibatches of an epoch, shape (steps, batch_size): a function of seed and epoch alone."""
    order = np.random.default_rng((seed, epoch)).permutation(examples)
    return order[: examples // batch_size * batch_size].reshape(-1, batch_size).astype(np.int32)


if __name__ == "__main__":
    main(sys.argv[1:])
