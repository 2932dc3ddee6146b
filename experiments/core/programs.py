"""The compiled programs of a training run: the step on a minibatch, and the weights to evaluate."""

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments.core.losses import Loss
from experiments.core.network import split_model, training_pass
from experiments.core.step import take_step
from experiments.data import Batch, Dataset
from experiments.methods.method import Method
from experiments.models import Network

Step: TypeAlias = Callable[["TrainState", jax.Array, Batch], tuple["TrainState", jax.Array]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that a step changes.

    Attributes:
        params: What is trained: full-precision parameters, and what a model-side quantizer learns; a tree of arrays.
        optimizer: State of the optimizer.
        batch_stats: Running averages of batch normalisation, a tree of arrays.
        codes: Codes of the quantized leaves in the last forward pass, in the order of the tree; only to count flips.
        seed: Seed of the run, uint32.
        steps: Steps taken, uint32; with the seed it gives the random key of a step.
    """

    params: Any
    optimizer: optax.OptState
    batch_stats: Any
    codes: list[jax.Array]
    seed: jax.Array
    steps: jax.Array


def initial_state(method: Method, params: Any, batch_stats: Any, seed: jax.Array) -> TrainState:
    """The state before the first step."""
    params = method.init(params)
    optimizer = method.optimizer.init(params)
    codes = method.codes(params, optimizer, jax.random.key(seed))
    return TrainState(params, optimizer, batch_stats, codes, seed, jnp.zeros((), jnp.uint32))


def train_step(
    graph: nnx.GraphDef[Network],
    loss: Loss,
    dataset: Dataset,
    method: Method,
    two_stage: bool | None,
    state: TrainState,
    totals: jax.Array,
    batch: Batch,
) -> tuple[TrainState, jax.Array]:
    """One step on one minibatch.

    Args:
        graph: Static part of the model.
        loss: From scores and labels to a scalar.
        dataset: Says how images are prepared and augmented.
        method: How to train.
        two_stage: Whether this step takes a trial gradient, as in `experiments.core.step.take_step`.
        state: State before the step.
        totals: Sums over the steps of this epoch, shape (2,): minibatch loss, share of weights whose code flipped since
            the forward pass before.
        batch: The minibatch.

    Returns:
        State and totals after the step.
    """
    augment_key, forward_key = jax.random.split(jax.random.fold_in(jax.random.key(state.seed), state.steps))
    images = dataset.prepare(batch.images)
    if dataset.augment is not None:
        images = dataset.augment(images, augment_key)

    def loss_fn(weights: Any) -> tuple[jax.Array, Any]:
        scores, batch_stats = training_pass(graph, method.forward(weights, forward_key), state.batch_stats, images)
        return loss(scores, jnp.asarray(batch.labels)), batch_stats

    # The projection of the step once more: XLA computes it once.
    codes = method.codes(state.params, state.optimizer, forward_key)
    evaluate = jax.value_and_grad(loss_fn, has_aux=True)
    (value, batch_stats), params, optimizer = take_step(
        method, state.params, state.optimizer, evaluate, two_stage=two_stage
    )
    totals += jnp.stack([value, flip_share(state.codes, codes)])
    return TrainState(params, optimizer, batch_stats, codes, state.seed, state.steps + 1), totals


def flip_share(before: Sequence[jax.Array], after: Sequence[jax.Array]) -> jax.Array:
    """Share of all weights whose code differs; 0 where nothing is quantized."""
    flips = sum((jnp.sum(old != new) for old, new in zip(before, after, strict=True)), jnp.zeros((), jnp.int32))
    return flips.astype(jnp.float32) / max(1, sum(codes.size for codes in after))


class Programs:
    """The compiled programs of one method; its seeds share them.

    Args:
        model: A model of the architecture to train.
        loss: From scores and labels to a scalar.
        dataset: Says how images are prepared and augmented.
        method: How to train.
        two_stage: Which steps there will be: plain (False), two-stage (True) or both.
        batch: A minibatch.

    Attributes:
        steps: For each kind the step: from state, totals and minibatch to state and totals. State and totals are
            donated. Compiled at once, so that the time of steps does not include it.
        evaluated: From parameters and optimizer state to the weights that are evaluated.
        update_batch_stats: From weights, running averages and minibatch to the running averages after a training pass;
            images are prepared as for evaluation, not augmented.
    """

    def __init__(
        self, model: Network, loss: Loss, dataset: Dataset, method: Method, two_stage: Iterable[bool], batch: Batch
    ):
        init = functools.partial(initial_state, method)
        graph, *arrays = split_model(model)
        self._init = jax.jit(init)
        example = jax.eval_shape(init, *arrays, np.uint32(0)), jnp.zeros(2), batch
        self.steps: dict[bool, Step] = {
            kind: jax.jit(functools.partial(train_step, graph, loss, dataset, method, kind), donate_argnums=(0, 1))
            .lower(*example)
            .compile()
            for kind in sorted(two_stage)
        }
        self.evaluated = jax.jit(method.evaluated)

        def update_batch_stats(weights: Any, batch_stats: Any, batch: Batch) -> Any:
            return training_pass(graph, weights, batch_stats, dataset.prepare(batch.images))[1]

        self.update_batch_stats = jax.jit(update_batch_stats)

    def init_state(self, model: Network, seed: int) -> TrainState:
        """The state before the first step."""
        _, params, batch_stats = split_model(model)
        return self._init(params, batch_stats, np.uint32(seed))
