"""The jobs of `python -m experiments.train`, one small file each, which holds what differs from the defaults."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from experiments.configs import (
    cifar10_vgg,
    cifar10_vgg_augmented,
    digits,
    digits_mlp,
    imagenet_resnet18,
    mnist_lenet5,
    mnist_mlp,
    mnist_plain_mlp,
    mnist_small_mlp,
    svhn,
)
from experiments.core.config import TrainConfig

JOBS: Mapping[str, TrainConfig] = MappingProxyType(
    {
        module.CONFIG.job: module.CONFIG
        for module in (
            digits,
            digits_mlp,
            mnist_lenet5,
            mnist_mlp,
            mnist_small_mlp,
            mnist_plain_mlp,
            cifar10_vgg,
            cifar10_vgg_augmented,
            svhn,
            imagenet_resnet18,
        )
    }
)


def make_job(name: str, **settings: Any) -> TrainConfig:
    """A job with some settings instead of its own; those that are None stay its own."""
    return dataclasses.replace(JOBS[name], **{key: value for key, value in settings.items() if value is not None})
