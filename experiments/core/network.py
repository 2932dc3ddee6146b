"""The network of a job: made, split into its parts, and run in training."""

from typing import Any

import jax
from flax import nnx

from experiments.core.config import TrainConfig
from experiments.models import NETWORKS, Network


def make_network(config: TrainConfig, seed: int | jax.Array) -> Network:
    """The network of a job with the initial weights of a seed, which may be traced."""
    return NETWORKS[config.network](nnx.Rngs(jax.random.key(seed)), config.width)


def abstract_network(config: TrainConfig) -> Network:
    """The network of a job, with shapes in the place of weights."""
    return nnx.eval_shape(lambda: make_network(config, 0))


def split_model(model: Any) -> tuple[nnx.GraphDef[Any], Any, Any]:
    """The model as static graph, parameters and batch statistics, the last two as trees of plain arrays."""
    graph, params, *rest = nnx.split(model, nnx.Param, nnx.BatchStat)
    return graph, nnx.as_pure(params), nnx.as_pure(rest[0])


def training_pass(graph: nnx.GraphDef[Any], weights: Any, batch_stats: Any, inputs: Any) -> tuple[jax.Array, Any]:
    """The outputs of the network in training, and the batch statistics after them."""
    model = nnx.merge(graph, weights, batch_stats)
    outputs = model(inputs, training=True)
    return outputs, nnx.as_pure(nnx.state(model, nnx.BatchStat))
