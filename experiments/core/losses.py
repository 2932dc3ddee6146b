"""The losses of the paper's networks: means over a minibatch."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeAlias

import jax
import jax.numpy as jnp
import optax

Loss: TypeAlias = Callable[[jax.Array, jax.Array], jax.Array]  # from scores and labels to a scalar


def squared_hinge(scores: jax.Array, labels: jax.Array) -> jax.Array:
    """Squared hinge loss of one-against-all classifiers (L2-SVM): mean of max(0, 1 - t·score)².

    The target t is +1 for the labelled class and -1 for all others; the mean runs over examples and classes.

    Args:
        scores: One score per class, shape (batch, classes).
        labels: Class indices, shape (batch,).

    Returns:
        A scalar.

    Example:
        >>> scores = jnp.array([[2.0, -0.5], [0.0, 0.0]])
        >>> float(squared_hinge(scores, jnp.array([0, 1])))  # (0 + 0.5² + 1 + 1) / 4
        0.5625
    """
    targets = 2.0 * jax.nn.one_hot(labels, scores.shape[-1], dtype=scores.dtype) - 1.0
    return jnp.mean(jnp.square(optax.losses.hinge_loss(scores, targets)))


def cross_entropy(scores: jax.Array, labels: jax.Array) -> jax.Array:
    """Softmax cross-entropy, mean over examples.

    Args:
        scores: Logits, shape (batch, classes).
        labels: Class indices, shape (batch,).

    Returns:
        A scalar.

    Example:
        >>> round(float(cross_entropy(jnp.log(jnp.array([[0.25, 0.75]])), jnp.array([0]))), 4)  # -log(0.25)
        1.3863
    """
    return jnp.mean(optax.losses.softmax_cross_entropy_with_integer_labels(scores, labels))


LOSSES: Mapping[str, Loss] = MappingProxyType({"squared_hinge": squared_hinge, "cross_entropy": cross_entropy})
