"""The data sets by name."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from experiments.data.arrays import Arrays, Batch, Dataset, Examples, MissingDataError, TrainingExamples
from experiments.data.cifar10 import cifar10_augmented, cifar10_whitened
from experiments.data.digits import digits
from experiments.data.imagenet import imagenet
from experiments.data.mnist import mnist
from experiments.data.svhn import svhn

__all__ = ["DATASETS", "Arrays", "Batch", "Dataset", "Examples", "MissingDataError", "TrainingExamples"]

DATASETS: Mapping[str, Callable[[], Dataset]] = MappingProxyType(
    {
        "digits": digits,
        "mnist": mnist,
        "cifar10_whitened": cifar10_whitened,
        "cifar10_augmented": cifar10_augmented,
        "svhn": svhn,
        "imagenet": imagenet,
    }
)
