"""The networks of the experiments with batch normalisation folded into the weights in front of it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

import fobt
from experiments.core.network import split_model
from experiments.models import Network


class Shift(nnx.Module):
    """What folding leaves of a normalisation: the addition of a bias for each channel."""

    def __init__(self, channels: int):
        self.bias = nnx.Param(jnp.zeros(channels))

    def __call__(self, features: jax.Array, *, use_running_average: bool) -> jax.Array:
        """The features plus the bias; there are no averages to choose from."""
        del use_running_average
        return features + self.bias[...].reshape((1,) * (features.ndim - 1) + (-1,))


@dataclass(frozen=True, eq=False)
class Inference:
    """A network for inference, as its static part and its arrays.

    Attributes:
        graph: The static part.
        quantized: Its weights, codes and scales where they are quantized.
        batch_stats: The running averages of the normalisations that it still has.
    """

    graph: nnx.GraphDef[Network]
    quantized: Any
    batch_stats: Any

    def __call__(self, weights: Any, images: jax.Array) -> jax.Array:
        """Scores of shape (batch, classes), for weights like `fobt.dequantize(quantized)`."""
        return nnx.merge(self.graph, weights, self.batch_stats)(images, training=False)


def fold(model: Network, quantized: Any, batch_stats: Any) -> Inference:
    """Folds the normalisation behind each weight layer into its scale and a bias; all codes stay as they are.

    A normalisation behind a max-pooling changes places with it only where no gain γ is negative; otherwise it stays.

    Args:
        model: A model of the architecture; only its structure matters, and it is not changed.
        quantized: Its parameters, as `fobt.quantize` returns them, in a tree without variables.
        batch_stats: Its running averages.

    Returns:
        A network with the same scores.
    """
    model = nnx.clone(model)
    quantized, batch_stats = _copy(quantized), _copy(batch_stats)
    blocks = [(path, module) for path, module in nnx.iter_modules(model) if hasattr(module, "norm")]
    for path, block in blocks:
        params, averages = _at(quantized, path), _at(batch_stats, path)
        if getattr(block, "pool", False) and bool(jnp.any(params["norm"]["scale"] < 0)):
            continue
        layer = params["conv" if hasattr(block, "conv") else "dense"]
        layer["kernel"], bias = fobt.fold_batch_norm(
            layer["kernel"], **averages.pop("norm"), **params["norm"], epsilon=block.norm.epsilon
        )
        params["norm"] = {"bias": bias}
        block.norm = Shift(len(bias))
    graph, *_ = split_model(model)
    return Inference(graph, quantized, _without_empty(batch_stats))


def with_rounded_activations(network: Inference, batches: Iterable[jax.Array]) -> Inference:
    """A feed-forward network whose activations are rounded to 8 bits, with ranges that hold those of a few batches.

    Args:
        network: A network without such roundings.
        batches: Images.
    """
    model: Any = nnx.merge(network.graph, fobt.dequantize(network.quantized), network.batch_stats)
    model.round_activations()
    fobt.nnx.calibrate_ranges(model, batches, lambda model, images: model(images, training=False))
    graph, _, batch_stats = split_model(model)
    return Inference(graph, network.quantized, batch_stats)


def _copy(tree: Any) -> Any:
    return {key: _copy(value) for key, value in tree.items()} if isinstance(tree, Mapping) else tree


def _without_empty(tree: dict[Any, Any]) -> dict[Any, Any]:
    pruned = {key: _without_empty(value) if isinstance(value, dict) else value for key, value in tree.items()}
    return {key: value for key, value in pruned.items() if not (isinstance(value, dict) and not value)}


def _at(tree: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree
