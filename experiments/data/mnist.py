"""MNIST: 28×28 handwritten digits."""

from experiments.data.arrays import Arrays, Dataset
from experiments.data.tfds_arrays import read_split


def mnist() -> Dataset:
    """MNIST, 50,000/10,000/10,000: the last sixth of the training images is the validation part.

    Raises:
        MissingDataError: When tensorflow-datasets has no MNIST prepared as ArrayRecord.
    """
    train, test = read_split("mnist", "train"), read_split("mnist", "test")
    boundary = len(train) - len(train) // 6
    return Dataset(train.first(boundary), Arrays(train.images[boundary:], train.labels[boundary:]), test)
