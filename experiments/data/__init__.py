"""The data sets by name."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from experiments.data.arrays import Arrays, Batch, Dataset, Examples, MissingDataError, TrainingExamples
from experiments.data.digits import digits
from experiments.data.mnist import mnist

__all__ = ["DATASETS", "Arrays", "Batch", "Dataset", "Examples", "MissingDataError", "TrainingExamples"]

DATASETS: Mapping[str, Callable[[], Dataset]] = MappingProxyType({"digits": digits, "mnist": mnist})
