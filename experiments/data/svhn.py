"""SVHN: 32×32 colour images of house numbers in street scenes, labelled with the digit in the middle."""

from collections.abc import Sequence

import numpy as np

from experiments.data.arrays import Arrays, Dataset
from experiments.data.tfds_arrays import read_split


def svhn(per_class: tuple[int, int] = (400, 200)) -> Dataset:
    """Cropped SVHN, 598,388/6,000/26,032: the training images and the extra ones, less a balanced validation part.

    The pixels stay uint8: 1.9 GB in memory, and twice that while they are read.

    Args:
        per_class: How many images of each class are for validation, of the training images and of the extra ones: the
            last ones of the class.

    Raises:
        MissingDataError: When tensorflow-datasets has no SVHN prepared as ArrayRecord.

    References:
        Sermanet et al., `Convolutional Neural Networks Applied to House Numbers Digit Classification
        <https://arxiv.org/abs/1204.3968>`_, 2012: the split, which maxout networks, BinaryConnect and LAQ kept. Which
        images of a class they drew is not stated.
    """
    parts = [_hold_out(split, count) for split, count in zip(("train", "extra"), per_class, strict=True)]
    train, validation = (_concatenate(part) for part in zip(*parts, strict=True))
    return Dataset(train, validation, read_split("svhn_cropped", "test"))


def _hold_out(split: str, per_class: int) -> tuple[Arrays, Arrays]:
    """The images of a split without the last ones of each class, and these, both in their order."""
    examples = read_split("svhn_cropped", split)
    held_out = np.zeros(len(examples), bool)
    for label in range(10):
        held_out[np.flatnonzero(examples.labels == label)[-per_class:]] = True
    return examples.take(~held_out), examples.take(held_out)


def _concatenate(parts: Sequence[Arrays]) -> Arrays:
    return Arrays(np.concatenate([part.images for part in parts]), np.concatenate([part.labels for part in parts]))
