"""Behind batch normalisation the scale of binary weights cancels: in the loss, and up to a factor in the gradient."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from training_cases import random_examples

import fobt
from experiments.core.losses import squared_hinge
from experiments.core.network import split_model, training_pass
from experiments.models.feed_forward import digits_cnn, lenet5, mlp

NETWORKS = {
    "digits_cnn": (digits_cnn, 1.0, (8, 8, 1)),
    "lenet5": (lenet5, 0.25, (28, 28, 1)),
    "mlp": (mlp, 0.0625, (28, 28, 1)),
}


def normalised(network: str) -> tuple[Callable, Any]:
    """Training-mode loss of a network as a function of its weights, and its binary weights."""
    make, width, shape = NETWORKS[network]
    graph, params, batch_stats = split_model(make(nnx.Rngs(0), width))
    batch = random_examples(64, shape, 0)

    def loss(weights: Any) -> jax.Array:
        return squared_hinge(training_pass(graph, weights, batch_stats, batch.images)[0], jnp.asarray(batch.labels))

    return loss, fobt.quantized_params(params, None, fobt.binary())


def bare() -> tuple[Callable, Any]:
    """The same of 64-32-32-10 without normalisation."""
    keys = jax.random.split(jax.random.key(0), 3)
    params = [jax.random.normal(key, shape) for key, shape in zip(keys, [(64, 32), (32, 32), (32, 10)], strict=True)]
    batch = random_examples(64, (8, 8, 1), 0)

    def loss(weights: Any) -> jax.Array:
        features = jnp.asarray(batch.images).reshape(64, 64)
        for kernel in weights[:-1]:
            features = jax.nn.relu(features @ kernel / np.sqrt(len(kernel)))
        return squared_hinge(features @ weights[-1] / np.sqrt(32), jnp.asarray(batch.labels))

    return loss, fobt.quantized_params(params, None, fobt.binary())


def scaled(weights: Any, factor: float) -> Any:
    """Every quantized weight times a factor."""
    return jax.tree.map(lambda leaf: factor * leaf if leaf.ndim >= 2 else leaf, weights)


def measures(loss: Callable, weights: Any, factor: float) -> tuple[float, float, float]:
    """What a factor on the weights does: ratio of losses, and cosine and ratio of norms of the gradients."""
    evaluate = jax.jit(jax.value_and_grad(loss))
    (before, grads), (after, scaled_grads) = evaluate(weights), evaluate(scaled(weights, factor))
    g, h = (
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree) if leaf.ndim >= 2])
        for tree in (grads, scaled_grads)
    )
    norms = np.linalg.norm(g), np.linalg.norm(h)
    return float(after / before), float(g @ h / norms[0] / norms[1]), float(norms[1] / norms[0])


@pytest.mark.parametrize("factor", [2.0, 100.0])
@pytest.mark.parametrize("network", NETWORKS)
def test_behind_batch_normalisation_the_scale_cancels(network: str, factor: float):
    loss, weights = normalised(network)
    # Training takes the scales of the digits network to about three times the initial ones. There the ε of batch
    # normalisation, 1e-4, is small against the variances; at the initial ones the cosine still feels it.
    for start, least_cosine in [(3.0, 0.999), (1.0, 0.99)]:
        ratio, cosine, norms = measures(loss, scaled(weights, start), factor)
        assert abs(ratio - 1) < 1e-3
        assert cosine > least_cosine
        np.testing.assert_allclose(norms, 1 / factor, rtol=1e-2)  # a factor that Adam divides out


def test_without_normalisation_it_does_not():
    ratio, cosine, norms = measures(*bare(), 2.0)
    assert abs(ratio - 1) > 0.1
    assert cosine < 0.9
    assert norms > 1
