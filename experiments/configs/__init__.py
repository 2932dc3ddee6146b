"""The jobs of `python -m experiments.train`, one small file each, which holds what differs from the defaults."""

from collections.abc import Mapping
from types import MappingProxyType

from experiments.configs import (
    cifar10_vgg,
    cifar10_vgg_augmented,
    digits,
    imagenet_resnet18,
    mnist_lenet5,
    mnist_mlp,
    mnist_small_mlp,
    svhn,
)
from experiments.core.config import TrainConfig

JOBS: Mapping[str, TrainConfig] = MappingProxyType(
    {
        module.CONFIG.job: module.CONFIG
        for module in (
            digits,
            mnist_lenet5,
            mnist_mlp,
            mnist_small_mlp,
            cifar10_vgg,
            cifar10_vgg_augmented,
            svhn,
            imagenet_resnet18,
        )
    }
)
