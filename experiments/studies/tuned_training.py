"""Training with one compiled step for every setting and seed, so that a search over settings compiles once."""

import itertools
from collections.abc import Iterator
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax

from experiments.core.config import TrainConfig
from experiments.core.evaluation import Evaluation, Evaluator
from experiments.core.losses import LOSSES
from experiments.core.network import abstract_network, make_network, split_model, training_pass
from experiments.core.step import Evaluate, take_step
from experiments.data import Batch, Dataset, Examples
from experiments.methods.method import Hyperparameters, Method, make_quantizer
from experiments.methods.registry import Entry, Options

Setting: TypeAlias = tuple[float, float, float]  # learning rate at the start, b1, b2
Trained: TypeAlias = tuple[Any, Any]  # quantized weights, batch statistics


class TunedTraining:
    """Trains a network with one method, with a cosine schedule.

    Args:
        job: Network, data, batch size, epochs and loss. Methods with two gradients per step take half as many steps.
        dataset: The data.
        grid: Of the weights.
        entry: The method.
        options: Its options.
    """

    def __init__(self, job: TrainConfig, dataset: Dataset, grid: str, entry: Entry, options: Options):
        self._job, self._dataset, self._entry = job, dataset, entry
        self._steps = job.epochs * (len(dataset.train) // job.batch_size) // entry.gradients
        quantizer, loss = make_quantizer(grid), LOSSES[job.loss]
        example = abstract_network(job)
        graph = split_model(example)[0]
        self._evaluator = Evaluator(example, loss, dataset.prepare)
        cosine = optax.cosine_decay_schedule(1.0, self._steps)

        def method(setting: Setting) -> Method:
            rate, b1, b2 = setting
            hyper = Hyperparameters(lambda count: rate * cosine(count), b1, b2, steps=self._steps)
            return entry.make(hyper, quantizer=quantizer, **options)

        def step(carry: tuple[Any, Any, Any], setting: Setting, batch: Batch, second: Batch) -> tuple[Any, Any, Any]:
            params, state, batch_stats = carry

            def evaluate_on(batch: Batch) -> Evaluate:
                def loss_fn(weights: Any) -> tuple[jax.Array, Any]:
                    scores, after = training_pass(graph, weights, batch_stats, dataset.prepare(batch.images))
                    return loss(scores, jnp.asarray(batch.labels)), after

                return jax.value_and_grad(loss_fn, has_aux=True)

            (_, batch_stats_after), params, state = take_step(
                method(setting), params, state, evaluate_on(batch), evaluate_on(second)
            )
            return params, state, batch_stats_after

        self._step = jax.jit(step, donate_argnums=0)
        self._init = jax.jit(lambda params, setting: method(setting).optimizer.init(params))
        self._evaluated = jax.jit(lambda params, state, setting: method(setting).evaluated(params, state))

    def run(self, seed: int, setting: Setting) -> Trained:
        """Trains.

        Args:
            seed: Of initial weights and batch order.
            setting: The setting.

        Returns:
            The weights to evaluate.
        """
        _, params, batch_stats = split_model(make_network(self._job, seed))
        carry = params, self._init(params, setting), batch_stats
        batches = self._batches(seed)
        for _ in range(self._steps):
            batch = next(batches)
            carry = self._step(carry, setting, batch, next(batches) if self._entry.next_minibatch else batch)
        params, state, batch_stats = carry
        return self._evaluated(params, state, setting), batch_stats

    def evaluate(self, trained: Trained, examples: Examples) -> Evaluation:
        """Loss and accuracy of what `run` returned."""
        return self._evaluator(*trained, examples)

    def _batches(self, seed: int) -> Iterator[Batch]:
        for epoch in itertools.count(1):
            yield from self._dataset.train.shuffled_batches(self._job.batch_size, seed, epoch)
