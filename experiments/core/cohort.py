"""Many models of one method trained at once: every seed and setting of a comparison, with one compiled program.

Models without convolutions train together: several steps are one `lax.scan` over `vmap` of a step, with the data on the
device. On CPU a convolution in a scan, or with a kernel for each model, takes several times as long as by itself, so
networks with convolutions train one after the other there; the results are the same but for rounding.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import fobt
from experiments.core.config import TrainConfig
from experiments.core.evaluation import EVALUATION_BATCH, batch_sums
from experiments.core.losses import LOSSES
from experiments.core.network import abstract_network, make_network, split_model, training_pass
from experiments.core.programs import TrainState, initial_state, train_step
from experiments.data import Arrays, Batch, Dataset
from experiments.methods.method import Hyperparameters, Method

# Models and steps of one program, so that searches and trainings of any length share it.
TOGETHER = 8
BLOCK = 10
REESTIMATION_BATCHES = 50

MakeMethod: TypeAlias = Callable[[Hyperparameters], Method]
Advance: TypeAlias = Callable[..., tuple[TrainState, jax.Array]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, order=True)
class Setting:
    """What is tuned for each method.

    Attributes:
        learning_rate: At the start; it falls to 0 along half a cosine.
        b1: Decay rate of the first moment.
        b2: Decay rate of the second moment.
    """

    learning_rate: float
    b1: float
    b2: float


@dataclass(frozen=True)
class Member:
    """One model of a cohort.

    Attributes:
        seed: Of initial weights and batch order.
        setting: How it trains.
    """

    seed: int
    setting: Setting


@dataclass(frozen=True)
class CohortPrograms:
    """The programs of a training, for a group of models, or for a single one without an axis for it.

    Attributes:
        init: From settings and seeds to the state before the first step.
        advance: From settings, data, state and the images of some steps to state and minibatch losses; state is
            donated.
        evaluated: From settings and state to the weights that are evaluated.
    """

    init: Callable[[Setting, jax.Array], TrainState]
    advance: Advance
    evaluated: Callable[[Setting, TrainState], Any]


class Cohort:
    """Trains models of one network with one method.

    Args:
        job: Network, loss, batch size and bounds of the weights.
        dataset: The data, in memory.
        make_method: From hyperparameters, whose numbers are traced, to the method.

    Attributes:
        together: How many models train together.
        programs: From the number of steps of a training to its programs.
    """

    def __init__(self, job: TrainConfig, dataset: Dataset, make_method: MakeMethod):
        self._job, self._dataset, self._make_method = job, dataset, make_method
        graph, loss = split_model(abstract_network(job))[0], LOSSES[job.loss]
        self._graph, self._loss = graph, loss

        def update_batch_stats(weights: Any, batch_stats: Any, batch: Batch) -> Any:
            return training_pass(graph, weights, batch_stats, dataset.prepare(batch.images))[1]

        self.together = TOGETHER if trains_together(job) else 1
        self._update_batch_stats = jax.jit(self._over_models(update_batch_stats, (0, 0, None)))
        self._sums = jax.jit(self._over_models(batch_sums(graph, loss, dataset.prepare), (0, 0, None)))
        self.programs = functools.cache(self._make_programs)

    def _make_programs(self, steps: int) -> CohortPrograms:
        """The programs of trainings of so many steps, of which methods may be made in Python."""

        def method(setting: Setting) -> Method:
            rate, cosine = setting.learning_rate, optax.cosine_decay_schedule(1.0, steps)
            return self._make_method(
                Hyperparameters(
                    lambda count: rate * cosine(count),
                    setting.b1,
                    setting.b2,
                    weight_bounds=self._job.weight_bounds,
                    steps=steps,
                )
            )

        def init(setting: Setting, seed: jax.Array) -> TrainState:
            _, params, batch_stats = split_model(make_network(self._job, seed))
            return initial_state(method(setting), params, batch_stats, seed)

        def step(setting: Setting, data: Batch, state: TrainState, indices: jax.Array) -> tuple[TrainState, jax.Array]:
            batch = Batch(data.images[indices], data.labels[indices])
            state, totals = train_step(
                self._graph, self._loss, self._dataset, method(setting), None, state, jnp.zeros(2), batch
            )
            return state, totals[0]

        def evaluated(setting: Setting, state: TrainState) -> Any:
            return method(setting).evaluated(state.params, state.optimizer)

        step = self._over_models(step, (0, None, 0, 0))
        if self.together == 1:
            advance: Advance = functools.partial(_in_turn, jax.jit(step, donate_argnums=2))
        else:
            advance = jax.jit(functools.partial(_scanned, step), donate_argnums=2)
        return CohortPrograms(
            jax.jit(self._over_models(init, (0, 0))), advance, jax.jit(self._over_models(evaluated, (0, 0)))
        )

    def _over_models(self, function: Callable[..., Any], axes: tuple[int | None, ...]) -> Callable[..., Any]:
        """The function of a group of models, or of a single model without an axis for it."""
        return function if self.together == 1 else jax.vmap(function, axes)

    @functools.cached_property
    def data(self) -> Batch:
        """The training images, on the device."""
        train = self._dataset.train
        assert isinstance(train, Arrays)
        return Batch(jnp.asarray(train.images), jnp.asarray(train.labels))

    def run(self, members: Sequence[Member], steps: int) -> list[dict[str, float]]:
        """Trains and evaluates.

        Args:
            members: The models.
            steps: Steps of a training.

        Returns:
            For each one the mean minibatch loss over its last epoch, and losses and accuracies in percent at the
            evaluated weights, with batch statistics re-estimated at these weights.
        """
        records: list[dict[str, float]] = []
        for start in range(0, len(members), self.together):
            group = list(members[start : start + self.together])
            # What is missing in the last group is filled up, so that one program serves all.
            filled = [*group, *itertools.repeat(group[-1], self.together - len(group))]
            records += self._run_group(filled, steps)[: len(group)]
        return records

    def initial(self, members: Sequence[Member], steps: int) -> tuple[Setting, TrainState]:
        """Settings and states before the first step, of a group of models, or of a single one without an axis."""
        settings = self._stack([member.setting for member in members])
        seeds = self._stack([np.uint32(member.seed) for member in members])
        return settings, self.programs(steps).init(settings, seeds)

    def orders(self, members: Sequence[Member], steps: int) -> np.ndarray:
        """Which images each of the first steps takes: (steps, models, batch), or (steps, batch) of a single model."""
        orders = [np.stack(list(itertools.islice(self._order(member.seed), steps))) for member in members]
        return orders[0] if self.together == 1 else np.stack(orders, axis=1)

    def _order(self, seed: int) -> Iterator[np.ndarray]:
        train = self._dataset.train
        assert isinstance(train, Arrays)
        for epoch in itertools.count(1):
            yield from train.shuffled_indices(self._job.batch_size, seed, epoch)

    def _run_group(self, group: Sequence[Member], steps: int) -> list[dict[str, float]]:
        settings, state = self.initial(group, steps)
        programs, orders, blocks = self.programs(steps), self.orders(group, steps), []
        for start in range(0, steps, BLOCK):
            state, losses = programs.advance(settings, self.data, state, orders[start : start + BLOCK])
            blocks.append(losses)
        weights, batch_stats = programs.evaluated(settings, state), state.batch_stats
        if jax.tree.leaves(batch_stats):
            # Training counts epochs from 1, so it never has the batches of this order.
            batches = self._dataset.train.shuffled_batches(self._job.batch_size, 0, 0)
            update = functools.partial(self._update_batch_stats, weights)
            batch_stats = fobt.reestimate_batch_stats(
                update, batch_stats, itertools.islice(batches, REESTIMATION_BATCHES)
            )
        last_epoch = min(steps, len(self._dataset.train) // self._job.batch_size)
        measures = {"minibatch_loss": np.mean(np.concatenate(blocks)[-last_epoch:], axis=0)}
        for part in ("train", "validation", "test"):
            examples = getattr(self._dataset, part)
            sums = [self._sums(weights, batch_stats, batch) for batch in examples.batches(EVALUATION_BATCH)]
            loss, correct = (np.sum(jax.device_get(values), axis=0) for values in zip(*sums, strict=True))
            measures |= {f"{part}_loss": loss / len(examples), f"{part}_accuracy": 100 * correct / len(examples)}
        return [
            {key: float(np.atleast_1d(values)[number]) for key, values in measures.items()}
            for number in range(len(group))
        ]

    def _stack(self, trees: Sequence[Any]) -> Any:
        trees = [jax.tree.map(jnp.asarray, tree) for tree in trees]
        return trees[0] if self.together == 1 else jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def trains_together(job: TrainConfig) -> bool:
    """Whether models of this network train together on this device."""
    modules = (module for _, module in nnx.iter_modules(abstract_network(job)))
    return jax.default_backend() != "cpu" or not any(isinstance(module, nnx.Conv) for module in modules)


def _scanned(
    step: Any, settings: Setting, data: Batch, state: TrainState, orders: jax.Array
) -> tuple[TrainState, jax.Array]:
    """Steps in one program: state, and losses of shape (steps, models)."""
    return jax.lax.scan(lambda state, indices: step(settings, data, state, indices), state, orders)


def _in_turn(
    step: Any, settings: Setting, data: Batch, state: TrainState, orders: np.ndarray
) -> tuple[TrainState, jax.Array]:
    """One program for each step: state, and losses of shape (steps,)."""
    losses = []
    for indices in orders:
        state, loss = step(settings, data, state, indices)
        losses.append(loss)
    return state, jnp.stack(losses)
