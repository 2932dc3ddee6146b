"""The networks by name, in Flax NNX."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeAlias

from flax import nnx

from experiments.models.feed_forward import (
    FeedForward,
    PlainMLP,
    digits_cnn,
    digits_mlp,
    lenet5,
    mlp,
    plain_mlp,
    small_mlp,
    svhn_net,
    vgg,
)
from experiments.models.resnet import ResNet18

__all__ = ["NETWORKS", "FeedForward", "Network", "PlainMLP", "ResNet18"]

Network: TypeAlias = FeedForward | PlainMLP | ResNet18
NETWORKS: Mapping[str, Callable[[nnx.Rngs, float], Network]] = MappingProxyType(
    {
        "digits_cnn": digits_cnn,
        "digits_mlp": digits_mlp,
        "lenet5": lenet5,
        "mlp": mlp,
        "small_mlp": small_mlp,
        "plain_mlp": plain_mlp,
        "vgg": vgg,
        "svhn_net": svhn_net,
        "resnet18": ResNet18,
    }
)
