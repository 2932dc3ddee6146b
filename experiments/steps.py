"""The compiled programs of a training run: the step, the weights to evaluate, and the evaluation."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import fobt
from experiments.data import Split
from experiments.losses import squared_hinge
from experiments.methods import Method
from experiments.models import FeedForward

EVALUATION_BATCH = 1000

Step: TypeAlias = Callable[["TrainState", jax.Array, Split, np.ndarray], tuple["TrainState", jax.Array]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that a step changes.

    Attributes:
        params: Full-precision parameters, a tree of arrays.
        optimizer: State of the optimizer.
        batch_stats: Running averages of batch normalisation, a tree of arrays.
        codes: Codes of the quantized leaves in the last forward pass, in the order of the tree; only to count flips.
    """

    params: Any
    optimizer: optax.OptState
    batch_stats: Any
    codes: list[jax.Array]


def split_model(model: FeedForward) -> tuple[nnx.GraphDef[FeedForward], Any, Any]:
    """The model as static graph, parameters and batch statistics, the last two as trees of plain arrays."""
    graph, params, *rest = nnx.split(model, nnx.Param, nnx.BatchStat)
    return graph, nnx.as_pure(params), nnx.as_pure(rest[0])


def quantized_leaves(tree: Any) -> list[fobt.Quantized]:
    """The quantized leaves of a tree that `fobt.quantize` made."""
    leaves = jax.tree.leaves(tree, is_leaf=lambda leaf: isinstance(leaf, fobt.Quantized))
    return [leaf for leaf in leaves if isinstance(leaf, fobt.Quantized)]


def train_step(
    graph: nnx.GraphDef[FeedForward],
    method: Method,
    two_stage: bool,
    state: TrainState,
    totals: jax.Array,
    train: Split,
    indices: jax.Array,
) -> tuple[TrainState, jax.Array]:
    """One step on one minibatch.

    Args:
        graph: Static part of the model.
        method: How to train.
        two_stage: Whether this step takes a trial gradient. A Python bool: each value is a program of its own, because
            a convolution inside `lax.cond` is several times slower on CPU.
        state: State before the step.
        totals: Sums over the steps of this epoch, shape (2,): minibatch loss, share of weights whose code flipped since
            the forward pass before.
        train: All training images.
        indices: The minibatch, shape (batch,).

    Returns:
        State and totals after the step.
    """

    def loss_fn(weights: Any, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, Any]:
        model = nnx.merge(graph, weights, state.batch_stats)
        loss = squared_hinge(model(images, training=True), labels)
        return loss, nnx.as_pure(nnx.state(model, nnx.BatchStat))

    (loss, batch_stats), grads, grad_fn = fobt.value_and_grad(loss_fn, method.quantizer, has_aux=True)(
        state.params, state.optimizer, train.images[indices], train.labels[indices]
    )
    # The same projection once more: XLA computes it once.
    quantized = quantized_leaves(fobt.quantize(state.params, state.optimizer, method.quantizer))
    codes = [leaf.codes for leaf in quantized]
    updates, optimizer = method.optimizer.update(
        grads, state.optimizer, state.params, grad_fn=grad_fn, two_stage=two_stage
    )
    params = optax.apply_updates(state.params, updates)
    totals += jnp.stack([loss, flip_share(state.codes, codes)])
    return TrainState(params, optimizer, batch_stats, codes), totals


def flip_share(before: Sequence[jax.Array], after: Sequence[jax.Array]) -> jax.Array:
    """Share of all weights whose code differs; 0 where nothing is quantized."""
    flips = sum((jnp.sum(old != new) for old, new in zip(before, after, strict=True)), jnp.zeros((), jnp.int32))
    return flips.astype(jnp.float32) / max(1, sum(codes.size for codes in after))


class Programs:
    """The compiled programs of one method; its seeds share them.

    Args:
        model: A model of the architecture to train.
        method: How to train.
        kinds: Which steps there will be: plain (False), two-stage (True) or both.
        train: All training images.
        batch_size: Images per step.

    Attributes:
        steps: For each kind the step: from state, totals, training images and indices to state and totals. State and
            totals are donated. Compiled at once, so that the time of steps does not include it.
        quantized_params: From parameters and optimizer state to the weights of the forward pass.
    """

    def __init__(self, model: FeedForward, method: Method, kinds: set[bool], train: Split, batch_size: int):
        def init(params: Any, batch_stats: Any) -> TrainState:
            optimizer = method.optimizer.init(params)
            codes = [leaf.codes for leaf in quantized_leaves(fobt.quantize(params, optimizer, method.quantizer))]
            return TrainState(params, optimizer, batch_stats, codes)

        graph, *arrays = split_model(model)
        self._init = jax.jit(init)
        example = jax.eval_shape(init, *arrays), jnp.zeros(2), train, np.zeros(batch_size, np.int32)
        self.steps: dict[bool, Step] = {
            two_stage: jax.jit(functools.partial(train_step, graph, method, two_stage), donate_argnums=(0, 1))
            .lower(*example)
            .compile()
            for two_stage in sorted(kinds)
        }
        self.quantized_params = jax.jit(functools.partial(fobt.quantized_params, quantizer=method.quantizer))

    def init_state(self, model: FeedForward) -> TrainState:
        """The state before the first step."""
        _, params, batch_stats = split_model(model)
        return self._init(params, batch_stats)


@dataclass(frozen=True)
class Evaluation:
    """Mean squared hinge loss and accuracy over a part of a data set."""

    loss: float
    accuracy: float


class Evaluator:
    """Evaluates weights with the running averages of batch normalisation.

    Args:
        model: A model of the architecture to evaluate.
    """

    def __init__(self, model: FeedForward):
        graph = split_model(model)[0]

        def sums(weights: Any, batch_stats: Any, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
            scores = nnx.merge(graph, weights, batch_stats)(images, training=False)
            return squared_hinge(scores, labels) * len(labels), jnp.sum(jnp.argmax(scores, axis=-1) == labels)

        self._sums = jax.jit(sums)

    def __call__(self, weights: Any, batch_stats: Any, split: Split) -> Evaluation:
        """Loss and accuracy over all images of the split."""
        chunks = [
            self._sums(
                weights, batch_stats, split.images[i : i + EVALUATION_BATCH], split.labels[i : i + EVALUATION_BATCH]
            )
            for i in range(0, len(split), EVALUATION_BATCH)
        ]
        losses, correct = zip(*jax.device_get(chunks), strict=True)
        return Evaluation(float(sum(losses)) / len(split), int(sum(correct)) / len(split))


def bits_per_weight(quantized: Any) -> float:
    """Bits that a weight takes on average, scales included; parameters with less than two dimensions are not weights.

    Args:
        quantized: A tree that `fobt.quantize` made, or its shapes from `jax.eval_shape`.
    """
    bits = weights = 0
    for leaf in jax.tree.leaves(quantized, is_leaf=lambda leaf: isinstance(leaf, fobt.Quantized)):
        if isinstance(leaf, fobt.Quantized):
            bits += leaf.codes.size * leaf.grid.bits + 8 * leaf.scale.size * leaf.scale.dtype.itemsize
            weights += leaf.codes.size
        elif leaf.ndim >= 2:
            bits += 8 * leaf.size * leaf.dtype.itemsize
            weights += leaf.size
    return bits / weights
