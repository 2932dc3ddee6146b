"""Loss and accuracy over a part of a data set, at weights that are given."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike

from experiments.core.losses import Loss
from experiments.core.network import split_model
from experiments.data import Batch, Examples
from experiments.models import Network

EVALUATION_BATCH = 1000
TRAIN_LOSS_EXAMPLES = 10_000  # how many training images the training loss at the evaluated weights is taken over


@dataclass(frozen=True)
class Evaluation:
    """Mean loss and accuracy over a part of a data set."""

    loss: float
    accuracy: float


def batch_sums(
    graph: nnx.GraphDef[Network], loss: Loss, prepare: Callable[[ArrayLike], jax.Array]
) -> Callable[[Any, Any, Batch], tuple[jax.Array, jax.Array]]:
    """From weights, batch statistics and a batch to the sum of the losses and the number of correct answers."""

    def sums(weights: Any, batch_stats: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        scores = nnx.merge(graph, weights, batch_stats)(prepare(batch.images), training=False)
        labels = jnp.asarray(batch.labels)
        return loss(scores, labels) * len(batch), jnp.sum(jnp.argmax(scores, axis=-1) == labels)

    return sums


class Evaluator:
    """Evaluates weights with the running averages of batch normalisation.

    Args:
        model: A model of the architecture to evaluate.
        loss: From scores and labels to the mean loss.
        prepare: From stored images to those that the network sees.
    """

    def __init__(self, model: Network, loss: Loss, prepare: Callable[[ArrayLike], jax.Array]):
        self._sums = jax.jit(batch_sums(split_model(model)[0], loss, prepare))

    def __call__(self, weights: Any, batch_stats: Any, examples: Examples) -> Evaluation:
        """Loss and accuracy over all examples."""
        sums = [self._sums(weights, batch_stats, batch) for batch in examples.batches(EVALUATION_BATCH)]
        losses, correct = zip(*jax.device_get(sums), strict=True)
        return Evaluation(float(sum(losses)) / len(examples), int(sum(correct)) / len(examples))
