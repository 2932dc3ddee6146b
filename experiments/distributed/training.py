"""One training, the same program in every process: each step is one computation over the devices of all of them."""

import dataclasses
import functools
import os
import signal
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from experiments.checkpoints import Checkpoints, Position
from experiments.config import TrainConfig
from experiments.data import Dataset
from experiments.distributed.placement import make_mesh, shard_batches, shardings
from experiments.losses import LOSSES
from experiments.methods import Method, build
from experiments.models import NETWORKS
from experiments.progress import ProgressDisplay
from experiments.rows import Row
from experiments.run import DISPLAY_PERIOD, TRAIN_LOSS_EXAMPLES
from experiments.run_folder import JobFolder, RunFolder
from experiments.steps import Evaluator, Step, TrainState, initial_state, split_model, train_step

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
    """

    config: TrainConfig
    row: Row
    processes: int
    params: Params
    checkpoint_steps: int
    killed_after: int | None = None

    @property
    def label(self) -> str:
        """Its name in what is printed."""
        count = "1 process" if self.processes == 1 else f"{self.processes} processes, params {self.params}"
        killed = "" if self.killed_after is None else f", killed after step {self.killed_after}"
        return f"{self.row.label}, {count}{killed}"

    @property
    def seed(self) -> int:
        """Seed of initial weights and batch order."""
        return self.config.seeds[0]

    def folder(self) -> RunFolder:
        """Where its results go."""
        name = f"{self.processes}_processes-{self.params}" + ("" if self.killed_after is None else "-killed")
        assert self.config.output is not None
        config = dataclasses.replace(self.config, output=self.config.output / name)
        return JobFolder(config, config.dataset).run(self.row, self.seed)

    def checkpoints(self) -> Checkpoints:
        """Its checkpoints; every process opens them."""
        return Checkpoints(self.folder().path / "checkpoints", period=0)


class Programs:
    """What a training runs on the devices.

    Args:
        training: The training.
        dataset: Its data.
        mesh: The devices.

    Attributes:
        method: How it trains.
        steps: For plain (False) and two-stage steps (True): from state, totals and minibatch to state and totals.
        evaluated: From params and optimizer state to the weights that are evaluated, all of them on every device.
        evaluator: Evaluates such weights.
    """

    def __init__(self, training: Training, dataset: Dataset, mesh: Mesh):
        config = training.config
        steps_per_epoch = len(dataset.train) // config.batch_size
        schedule = config.schedules[config.schedule]
        learning_rate = schedule.in_steps(config.initial_learning_rate(), config.epochs, steps_per_epoch)
        bounds, steps = config.weight_bounds, config.epochs * steps_per_epoch
        self.method: Method = build(training.row, learning_rate, bounds, config.b1, config.b2, steps=steps)
        make_model, loss = NETWORKS[config.network], LOSSES[config.loss]
        self._model = make_model(nnx.Rngs(training.seed), config.width)
        graph, *arrays = split_model(self._model)

        init = functools.partial(initial_state, self.method)
        self._arguments = *jax.device_get(arrays), np.uint32(training.seed)
        example = jax.eval_shape(init, *self._arguments)
        state_shardings = shardings(example, mesh, sharded=training.params == "sharded")
        replicated = shardings(jax.eval_shape(lambda: jnp.zeros(2)), mesh, sharded=False)
        self._init = jax.jit(init, out_shardings=state_shardings)
        self.totals = jax.jit(lambda: jnp.zeros(2), out_shardings=replicated)
        self.steps: dict[bool, Step] = {
            kind: jax.jit(
                functools.partial(train_step, graph, loss, dataset, self.method, kind),
                out_shardings=(state_shardings, replicated),
                donate_argnums=(0, 1),
            )
            for kind in (False, True)
        }
        self.evaluated = jax.jit(
            lambda state: (self.method.evaluated(state.params, state.optimizer), state.batch_stats),
            out_shardings=replicated,
        )
        self.evaluator = Evaluator(self._model, loss, dataset.prepare)

    def init_state(self) -> TrainState:
        """The state before the first step."""
        return self._init(*self._arguments)


def train(training: Training, dataset: Dataset, progress: ProgressDisplay) -> None:
    """Trains from the last checkpoint, or from the initial weights; all processes call this with the same arguments.

    Args:
        training: What to train; its folder gets a line per epoch, checkpoints, and the result.
        dataset: Its data.
        progress: Shows where it is.
    """
    config, row, seed = training.config, training.row, training.seed
    mesh = make_mesh(jax.devices())
    dataset = shard_batches(dataset, mesh)
    programs = Programs(training, dataset, mesh)
    steps_per_epoch = len(dataset.train) // config.batch_size
    writer = training.folder() if jax.process_index() == 0 else None

    checkpoints = training.checkpoints()
    start = programs.init_state(), programs.totals()
    position, (state, totals) = checkpoints.restore(start) or (Position(), start)
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
    checkpoints.close()

    result = {
        "processes": training.processes,
        "params": training.params,
        "killed_after": training.killed_after,
        "resumed_after": resumed_after,
        "steps": config.epochs * steps_per_epoch,
        "state_bytes_of_a_process": bytes_here(state),
    } | evaluate(programs, state, dataset, "train", "validation", "test")
    if writer:
        writer.write_result(writer.identity | result)
    progress.finish_run(f"loss {result['train_loss']:.4f}, test accuracy {100 * result['test_accuracy']:.2f} %")


def evaluate(programs: Programs, state: TrainState, dataset: Dataset, *parts: str) -> dict[str, Any]:
    """Loss and accuracy at the quantized weights over parts of the data set."""
    weights, batch_stats = programs.evaluated(state)
    measures = {}
    for part in parts:
        examples = getattr(dataset, part)
        examples = examples.first(TRAIN_LOSS_EXAMPLES) if part == "train" else examples
        result = programs.evaluator(weights, batch_stats, examples)
        measures |= {f"{part}_loss": result.loss, f"{part}_accuracy": result.accuracy}
    return measures


def bytes_here(tree: Any) -> int:
    """Bytes that this process holds of the arrays of a tree."""
    return sum(shard.data.nbytes for leaf in jax.tree.leaves(tree) for shard in leaf.addressable_shards)
