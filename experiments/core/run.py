"""One run: one row of a table, with one seed. It can be ended at any moment, and goes on from its last checkpoint."""

import dataclasses
import functools
import itertools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fobt
from experiments.core.checkpoints import Checkpoints, Position, RunArrays
from experiments.core.config import TrainConfig
from experiments.core.evaluation import TRAIN_LOSS_EXAMPLES, Evaluator
from experiments.core.programs import Programs, TrainState
from experiments.core.progress import ProgressDisplay
from experiments.core.run_folder import RunFolder
from experiments.data import Dataset
from experiments.methods.method import Method
from experiments.methods.rows import Row
from experiments.models import Network

DISPLAY_PERIOD = 20  # steps between two looks at the loss, each of which waits for the device


@dataclasses.dataclass(frozen=True)
class Runner:
    """What the seeds of a row share.

    Attributes:
        config: The job.
        row: Which method.
        method: What it does.
        programs: What runs on the device.
        evaluator: Evaluates weights.
        dataset: The data.
        progress: Shows where the run is.
    """

    config: TrainConfig
    row: Row
    method: Method
    programs: Programs
    evaluator: Evaluator
    dataset: Dataset
    progress: ProgressDisplay

    def run(self, model: Network, seed: int, folder: RunFolder) -> dict[str, Any]:
        """Trains from the last checkpoint, or from the initial weights.

        Validation chooses the epoch; the test images are read once, at the weights of that epoch.

        Args:
            model: The initial model.
            seed: Of batch order and random keys.
            folder: Gets a line per epoch, checkpoints, and the result.

        Returns:
            What the tables need.
        """
        config, row, programs, dataset = self.config, self.row, self.programs, self.dataset
        epochs = row.epochs(config.epochs)
        steps_per_epoch = len(dataset.train) // config.batch_size
        position, arrays = Position(), self._initial(model, seed)
        with Checkpoints(folder.path / "checkpoints", config.checkpoint_seconds) as checkpoints:
            position, arrays = checkpoints.restore(arrays) or (position, arrays)
            folder.keep_metrics_before(position.epoch)
            self.progress.start_run(
                f"{row.label}, seed {seed}", epochs, (position.epoch - 1) * steps_per_epoch + position.number
            )
            while position.epoch <= epochs:
                position, arrays = self._epoch(position, arrays, seed, checkpoints)
                steps = position.epoch * steps_per_epoch
                position, arrays, metrics = self._evaluate(position, arrays, seed, steps_per_epoch)
                folder.append_metrics(folder.identity | {"epoch": position.epoch, "steps": steps} | metrics)
                self.progress.finish_epoch(position.epoch, metrics["train_loss"], metrics["validation_accuracy"])
                position = dataclasses.replace(position, epoch=position.epoch + 1, number=0)
                if checkpoints.is_due() or position.epoch > epochs:
                    checkpoints.save(steps, position, arrays)

        weights = programs.evaluated(arrays.state.params, arrays.state.optimizer)
        batch_stats = self._batch_stats(weights, arrays.state.batch_stats, seed)
        train_loss = self.evaluator(weights, batch_stats, dataset.train.first(TRAIN_LOSS_EXAMPLES)).loss
        test = self.evaluator(arrays.best_weights, arrays.best_batch_stats, dataset.test)
        result = folder.identity | {
            "best_epoch": position.best_epoch,
            "validation_accuracy": position.best_accuracy,
            "test_accuracy": test.accuracy,
            "train_loss": train_loss,
            "gradient_evaluations": position.gradient_evaluations,
            "seconds": position.seconds,
            "bits_per_weight": self.method.bits_per_weight(arrays.state.params, arrays.state.optimizer),
        }
        folder.write_result(result)
        self.progress.finish_run(
            f"test accuracy {100 * test.accuracy:.2f} %, loss {train_loss:.4f}, {position.seconds:.1f} s"
        )
        return result

    def _initial(self, model: Network, seed: int) -> RunArrays:
        state = self.programs.init_state(model, seed)
        weights = self.programs.evaluated(state.params, state.optimizer)
        # Copies, because the first step reuses the buffers of the state.
        return RunArrays(state, jnp.zeros(2), *jax.tree.map(jnp.copy, (weights, state.batch_stats)))

    def _epoch(
        self, position: Position, arrays: RunArrays, seed: int, checkpoints: Checkpoints
    ) -> tuple[Position, RunArrays]:
        """Takes the remaining steps of an epoch."""
        config, row = self.config, self.row
        steps_per_epoch = len(self.dataset.train) // config.batch_size
        before = (position.epoch - 1) * steps_per_epoch
        state, totals = arrays.state, arrays.totals
        gradient_evaluations, shown = position.gradient_evaluations, position.number
        start = time.perf_counter()

        def now(number: int) -> tuple[Position, RunArrays]:
            seconds = position.seconds + time.perf_counter() - start
            return (
                dataclasses.replace(
                    position, number=number, gradient_evaluations=gradient_evaluations, seconds=seconds
                ),
                dataclasses.replace(arrays, state=state, totals=totals),
            )

        batches = self.dataset.train.shuffled_batches(config.batch_size, seed, position.epoch, position.number)
        for number, batch in enumerate(batches, start=position.number + 1):
            gradients = row.gradient_evaluations(position.epoch, before + number)
            state, totals = self.programs.steps[gradients == 2](state, totals, batch)
            gradient_evaluations += gradients
            if number % DISPLAY_PERIOD == 0 or number == steps_per_epoch:
                self.progress.advance(number - shown, float(totals[0]) / number)
                shown = number
                if checkpoints.is_due() and number < steps_per_epoch:
                    saved = time.perf_counter()
                    checkpoints.save(before + number, *now(number))
                    start += time.perf_counter() - saved
        jax.block_until_ready(state)
        return now(steps_per_epoch)

    def _evaluate(
        self, position: Position, arrays: RunArrays, seed: int, steps_per_epoch: int
    ) -> tuple[Position, RunArrays, dict[str, Any]]:
        """Evaluates at the end of an epoch, keeps the best weights, and resets the sums."""
        state = arrays.state
        weights = self.programs.evaluated(state.params, state.optimizer)
        batch_stats = self._batch_stats(weights, state.batch_stats, seed)
        train = self.evaluator(weights, batch_stats, self.dataset.train.first(TRAIN_LOSS_EXAMPLES))
        validation = self.evaluator(weights, batch_stats, self.dataset.validation)
        if (validation.accuracy, -validation.loss) > (position.best_accuracy, -position.best_loss):
            position = dataclasses.replace(
                position,
                best_epoch=position.epoch,
                best_accuracy=validation.accuracy,
                best_loss=validation.loss,
            )
            # Copies, because the next step reuses the buffers of the state.
            best_weights, best_batch_stats = jax.tree.map(jnp.copy, (weights, batch_stats))
            arrays = dataclasses.replace(arrays, best_weights=best_weights, best_batch_stats=best_batch_stats)
        loss_sum, flip_sum = np.asarray(arrays.totals).tolist()
        metrics = {
            "gradient_evaluations": position.gradient_evaluations,
            "minibatch_loss": loss_sum / steps_per_epoch,
            "train_loss": train.loss,
            "train_accuracy": train.accuracy,
            "validation_loss": validation.loss,
            "validation_accuracy": validation.accuracy,
            "flip_share": flip_sum / steps_per_epoch if state.codes else None,
            "frozen_share": self._frozen_share(state),
            "seconds": position.seconds,
        }
        return position, dataclasses.replace(arrays, totals=jnp.zeros(2)), metrics

    def _batch_stats(self, weights: Any, running: Any, seed: int) -> Any:
        """The batch statistics to evaluate weights with: the running averages, or those of fresh batches."""
        count = self.config.reestimate_batch_stats
        if count == 0:
            return running
        # Training counts epochs from 1, so it never has the batches of this order.
        batches = self.dataset.train.shuffled_batches(self.config.batch_size, seed, 0)
        update = functools.partial(self.programs.update_batch_stats, weights)
        return fobt.reestimate_batch_stats(update, running, itertools.islice(batches, count))

    def _frozen_share(self, state: TrainState) -> float | None:
        """Share of the quantized weights whose codes are frozen; None for methods that freeze none."""
        if self.row.method != "laq_freezing":
            return None
        frozen = sum(int(jnp.sum(leaf)) for leaf in jax.tree.leaves(fobt.oscillations.is_frozen(state.optimizer)))
        return frozen / sum(codes.size for codes in state.codes)
