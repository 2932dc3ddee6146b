"""The compiled programs of a training run: the step, the weights to evaluate, and the evaluation."""

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.typing import ArrayLike

import fobt
from experiments.data import Batch, Dataset, Examples
from experiments.methods import Method
from experiments.models import Network

EVALUATION_BATCH = 1000

Loss: TypeAlias = Callable[[jax.Array, jax.Array], jax.Array]
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


def split_model(model: Network) -> tuple[nnx.GraphDef[Network], Any, Any]:
    """The model as static graph, parameters and batch statistics, the last two as trees of plain arrays."""
    graph, params, *rest = nnx.split(model, nnx.Param, nnx.BatchStat)
    return graph, nnx.as_pure(params), nnx.as_pure(rest[0])


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
    two_stage: bool,
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
        two_stage: Whether this step takes a trial gradient. A Python bool: each value is a program of its own, because
            a convolution inside `lax.cond` is several times slower on CPU.
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
        model = nnx.merge(graph, method.forward(weights, forward_key), state.batch_stats)
        value = loss(model(images, training=True), jnp.asarray(batch.labels))
        return value, nnx.as_pure(nnx.state(model, nnx.BatchStat))

    # The method projects, so what it gives is differentiated as it is.
    loss_and_grads = fobt.value_and_grad(loss_fn, fobt.full_precision(), has_aux=True)
    (value, batch_stats), grads, grad_fn = loss_and_grads(method.projected(state.params, state.optimizer), None)
    # The same projection once more: XLA computes it once.
    codes = method.codes(state.params, state.optimizer, forward_key)
    updates, optimizer = method.optimizer.update(
        grads, state.optimizer, state.params, grad_fn=grad_fn, two_stage=two_stage
    )
    params = optax.apply_updates(state.params, updates)
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
            model = nnx.merge(graph, weights, batch_stats)
            model(dataset.prepare(batch.images), training=True)
            return nnx.as_pure(nnx.state(model, nnx.BatchStat))

        self.update_batch_stats = jax.jit(update_batch_stats)

    def init_state(self, model: Network, seed: int) -> TrainState:
        """The state before the first step."""
        _, params, batch_stats = split_model(model)
        return self._init(params, batch_stats, np.uint32(seed))


@dataclass(frozen=True)
class Evaluation:
    """Mean loss and accuracy over a part of a data set."""

    loss: float
    accuracy: float


class Evaluator:
    """Evaluates weights with the running averages of batch normalisation.

    Args:
        model: A model of the architecture to evaluate.
        loss: From scores and labels to the mean loss.
        prepare: From stored images to those that the network sees.
    """

    def __init__(self, model: Network, loss: Loss, prepare: Callable[[ArrayLike], jax.Array]):
        graph = split_model(model)[0]

        def sums(weights: Any, batch_stats: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
            scores = nnx.merge(graph, weights, batch_stats)(prepare(batch.images), training=False)
            labels = jnp.asarray(batch.labels)
            return loss(scores, labels) * len(batch), jnp.sum(jnp.argmax(scores, axis=-1) == labels)

        self._sums = jax.jit(sums)

    def __call__(self, weights: Any, batch_stats: Any, examples: Examples) -> Evaluation:
        """Loss and accuracy over all examples."""
        sums = [self._sums(weights, batch_stats, batch) for batch in examples.batches(EVALUATION_BATCH)]
        losses, correct = zip(*jax.device_get(sums), strict=True)
        return Evaluation(float(sum(losses)) / len(examples), int(sum(correct)) / len(examples))
