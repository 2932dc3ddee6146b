"""The data sets by name."""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType

from experiments.data.arrays import Arrays, Batch, Dataset, Examples, MissingDataError, TrainingExamples
from experiments.data.cifar10 import cifar10_augmented, cifar10_whitened
from experiments.data.digits import digits
from experiments.data.imagenet import imagenet
from experiments.data.mnist import mnist
from experiments.data.svhn import svhn

__all__ = ["DATASETS", "Arrays", "Batch", "Dataset", "Examples", "MissingDataError", "TrainingExamples", "load_dataset"]

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


@functools.lru_cache(maxsize=1)
def load_dataset(name: str, limit: int | None = None) -> Dataset:
    """Loads a data set, once for trainings that follow each other.

    Args:
        name: Key of `DATASETS`.
        limit: Use only so many images of each part.

    Raises:
        MissingDataError: It is not on this machine.
    """
    dataset = DATASETS[name]()
    return dataset if limit is None else dataset.first(limit)
