"""A training over several processes: which one, and its loop, which every process runs."""

import dataclasses
import os
import signal
from dataclasses import dataclass
from typing import Any, Literal

import jax

from experiments.core.checkpoints import Checkpoints, Position
from experiments.core.config import TrainConfig
from experiments.core.evaluation import TRAIN_LOSS_EXAMPLES
from experiments.core.programs import TrainState
from experiments.core.progress import ProgressDisplay
from experiments.core.run import DISPLAY_PERIOD
from experiments.core.run_folder import JobFolder, RunFolder
from experiments.data import Dataset
from experiments.distributed.programs import ShardedPrograms
from experiments.methods.rows import Row

Params = Literal["replicated", "sharded"]


@dataclass(frozen=True, kw_only=True)
class Training:
    """One method, trained by some processes.

    Attributes:
        config: The job, with one seed, and as output the folder of all trainings.
        row: The method.
        processes: How many processes share every batch.
        params: Whether each process holds all params and optimizer state, or its part of them.
        checkpoint_steps: Steps of an epoch between two checkpoints; there is always one at its end.
        killed_after: The step after which the last process is ended by SIGKILL, unless the training went on from a
            checkpoint: it is so ended once.
        reversed_rows: Whether every batch has its rows in reverse order, which changes nothing but the order of sums.
    """

    config: TrainConfig
    row: Row
    processes: int
    params: Params
    checkpoint_steps: int
    killed_after: int | None = None
    reversed_rows: bool = False

    @property
    def label(self) -> str:
        """Its name in what is printed."""
        parts = [self.row.label, "1 process" if self.processes == 1 else f"{self.processes} processes"]
        parts += [f"params {self.params}"] if self.processes > 1 else []
        parts += ["rows reversed"] if self.reversed_rows else []
        parts += [f"killed after step {self.killed_after}"] if self.killed_after else []
        return ", ".join(parts)

    @property
    def seed(self) -> int:
        """Seed of initial weights and batch order."""
        return self.config.seeds[0]

    def folder(self) -> RunFolder:
        """Where its results go."""
        name = f"{self.processes}_processes-{self.params}"
        name += ("-reversed" if self.reversed_rows else "") + ("-killed" if self.killed_after else "")
        assert self.config.output is not None
        config = dataclasses.replace(self.config, output=self.config.output / name)
        return JobFolder(config, config.dataset).run(self.row, self.seed)

    def checkpoints(self) -> Checkpoints:
        """Its checkpoints; every process opens them."""
        return Checkpoints(self.folder().path / "checkpoints", period=0)


def train(training: Training, programs: ShardedPrograms, dataset: Dataset, progress: ProgressDisplay) -> None:
    """Trains from the last checkpoint, or from the initial weights; all processes call this with the same arguments.

    Args:
        training: What to train; its folder gets a line per epoch, checkpoints, and the result.
        programs: What runs on the devices.
        dataset: The data, with batches that are sharded.
        progress: Shows where it is.
    """
    config, row, seed = training.config, training.row, training.seed
    steps_per_epoch = len(dataset.train) // config.batch_size
    writer = training.folder() if jax.process_index() == 0 else None
    with training.checkpoints() as checkpoints:
        position, (state, totals) = checkpoints.restore(programs.example) or (Position(), programs.init())
        resumed_after = (position.epoch - 1) * steps_per_epoch + position.number
        if writer:
            writer.keep_metrics_before(position.epoch)
        progress.start_run(training.label, config.epochs, resumed_after)
        last_process = jax.process_index() == training.processes - 1
        killed_after = training.killed_after if last_process and resumed_after == 0 else None

        while position.epoch <= config.epochs:
            before, shown = (position.epoch - 1) * steps_per_epoch, position.number
            batches = dataset.train.shuffled_batches(config.batch_size, seed, position.epoch, position.number)
            for number, batch in enumerate(batches, start=position.number + 1):
                two_stage = row.gradient_evaluations(position.epoch, before + number) == 2
                state, totals = programs.steps[two_stage](state, totals, batch)
                if before + number == killed_after:
                    jax.block_until_ready(state)
                    os.kill(os.getpid(), signal.SIGKILL)
                if number % DISPLAY_PERIOD == 0 or number == steps_per_epoch:
                    progress.advance(number - shown, float(totals[0]) / number)
                    shown = number
                if number % training.checkpoint_steps == 0 and number < steps_per_epoch:
                    # Of steps, not of seconds, so that all processes write the same one.
                    checkpoints.save(before + number, dataclasses.replace(position, number=number), (state, totals))
            metrics = {
                "epoch": position.epoch,
                "steps": before + steps_per_epoch,
                "minibatch_loss": float(totals[0]) / steps_per_epoch,
                "flip_share": float(totals[1]) / steps_per_epoch if state.codes else None,
            } | evaluate(programs, state, dataset, "train", "validation")
            if writer:
                writer.append_metrics(writer.identity | metrics)
            progress.finish_epoch(position.epoch, metrics["train_loss"], metrics["validation_accuracy"])
            position, totals = Position(epoch=position.epoch + 1), programs.totals()
            checkpoints.save(before + steps_per_epoch, position, (state, totals))

    result = {
        "processes": training.processes,
        "params": training.params,
        "reversed_rows": training.reversed_rows,
        "killed_after": training.killed_after,
        "resumed_after": resumed_after,
        "steps": config.epochs * steps_per_epoch,
        "state_bytes_of_a_process": bytes_here(state),
    } | evaluate(programs, state, dataset, "train", "validation", "test")
    if writer:
        writer.write_result(writer.identity | result)
    progress.finish_run(f"loss {result['train_loss']:.4f}, test accuracy {100 * result['test_accuracy']:.2f} %")


def evaluate(programs: ShardedPrograms, state: TrainState, dataset: Dataset, *parts: str) -> dict[str, Any]:
    """Loss and accuracy at the quantized weights over parts of the data set."""
    weights, batch_stats = programs.evaluated(state)
    measures: dict[str, Any] = {}
    for part in parts:
        examples = getattr(dataset, part)
        examples = examples.first(TRAIN_LOSS_EXAMPLES) if part == "train" else examples
        result = programs.evaluator(weights, batch_stats, examples)
        measures |= {f"{part}_loss": result.loss, f"{part}_accuracy": result.accuracy}
    return measures


def bytes_here(tree: Any) -> int:
    """Bytes that this process holds of the arrays of a tree."""
    return sum(shard.data.nbytes for leaf in jax.tree.leaves(tree) for shard in leaf.addressable_shards)
