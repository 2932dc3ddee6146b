"""Training with one compiled step for every setting and seed, so that a search over settings compiles once."""

import functools
import itertools
from collections.abc import Iterator
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import fobt
from experiments.config import TrainConfig
from experiments.data import Batch, Dataset, Examples
from experiments.losses import LOSSES
from experiments.methods import make_quantizer
from experiments.models import NETWORKS
from experiments.steps import Evaluation, Evaluator, split_model
from experiments.variants import Optimizer, Variant

Setting: TypeAlias = tuple[float, float, float]  # learning rate at the start, b1, b2
Trained: TypeAlias = tuple[Any, Any]  # quantized weights, batch statistics


class TunedTraining:
    """Trains a network with one variant, with a cosine schedule.

    Args:
        job: Network, data, batch size, epochs and loss. Variants with two gradients per step take half as many steps.
        dataset: The data.
        grid: Of the weights.
        variant: How to train.
    """

    def __init__(self, job: TrainConfig, dataset: Dataset, grid: str, variant: Variant):
        self._job, self._dataset, self._variant = job, dataset, variant
        self._steps = job.epochs * (len(dataset.train) // job.batch_size) // variant.gradients
        quantizer, loss = make_quantizer(grid, None, None), LOSSES[job.loss]
        example = nnx.eval_shape(lambda: NETWORKS[job.network](nnx.Rngs(0), job.width))
        graph = split_model(example)[0]
        self._evaluator = Evaluator(example, loss, dataset.prepare)
        cosine = optax.cosine_decay_schedule(1.0, self._steps)

        def make(optimizer: Optimizer, setting: Setting) -> optax.GradientTransformationExtraArgs:
            rate, b1, b2 = setting
            return optax.with_extra_args_support(optimizer(lambda count: rate * cosine(count), b1, b2, quantizer))

        def projected(params: Any, state: Any, weighted: bool) -> Any:
            return fobt.quantized_params(params, state if weighted else None, quantizer)

        def weights_of_gradient(params: Any, state: Any, setting: Setting) -> Any:
            if variant.lookahead is None:
                return projected(params, state, variant.weighted)
            lookahead = make(variant.lookahead, setting)
            if variant.trial_weighted:
                return fobt.quantized_trial_params(params, state, quantizer, lookahead)
            return projected(
                fobt.quantized_trial_params(params, state, fobt.full_precision(), lookahead), state, weighted=False
            )

        def step(
            carry: tuple[Any, Any, Any], setting: Setting, batch: Batch, second_batch: Batch
        ) -> tuple[Any, Any, Any]:
            params, state, batch_stats = carry

            def loss_fn(weights: Any, batch: Batch) -> tuple[jax.Array, Any]:
                model = nnx.merge(graph, weights, batch_stats)
                value = loss(model(dataset.prepare(batch.images), training=True), jnp.asarray(batch.labels))
                return value, nnx.as_pure(nnx.state(model, nnx.BatchStat))

            gradient = jax.grad(loss_fn, has_aux=True)
            grads, batch_stats_after = gradient(weights_of_gradient(params, state, setting), batch)
            updates, state = make(variant.optimizer, setting).update(
                grads, state, params, grad_fn=lambda weights: gradient(weights, second_batch)[0]
            )
            return optax.apply_updates(params, updates), state, batch_stats_after

        self._step = jax.jit(step, donate_argnums=0)
        self._init = jax.jit(lambda params, setting: make(variant.optimizer, setting).init(params))
        self._projected = jax.jit(functools.partial(projected, weighted=variant.weighted))

    def run(self, seed: int, setting: Setting) -> Trained:
        """Trains.

        Args:
            seed: Of initial weights and batch order.
            setting: The setting.

        Returns:
            The weights to evaluate.
        """
        _, params, batch_stats = split_model(NETWORKS[self._job.network](nnx.Rngs(seed), self._job.width))
        carry = params, self._init(params, setting), batch_stats
        batches = self._batches(seed)
        for _ in range(self._steps):
            batch = next(batches)
            carry = self._step(
                carry, setting, batch, next(batches) if self._variant.second_gradient == "next" else batch
            )
        params, state, batch_stats = carry
        return self._projected(params, state), batch_stats

    def evaluate(self, trained: Trained, examples: Examples) -> Evaluation:
        """Loss and accuracy of what `run` returned."""
        return self._evaluator(*trained, examples)

    def _batches(self, seed: int) -> Iterator[Batch]:
        for epoch in itertools.count(1):
            yield from self._dataset.train.shuffled_batches(self._job.batch_size, seed, epoch)
