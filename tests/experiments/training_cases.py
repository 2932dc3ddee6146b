"""Small data and configurations that the tests of the experiments share."""

import dataclasses

import numpy as np

from experiments.configs import JOBS
from experiments.data import DATASETS, Arrays, Batch, Dataset

SHAPES = {"digits": (8, 8, 1), "mnist": (28, 28, 1), "imagenet": (64, 64, 3)}


def random_examples(count: int, shape: tuple[int, int, int], seed: int) -> Arrays:
    """Images of noise with a brighter row that gives away the label."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int32) % 10
    images = rng.uniform(-1, 0, (count, *shape)).astype(np.float32)
    images[np.arange(count), labels % shape[0]] += 1
    return Arrays(images, labels)


def random_dataset(name: str) -> Dataset:
    """Noise in the shape of a data set: 260 or, of larger images, 40 to train, 30 to validate, 30 to test."""
    shape = SHAPES.get(name, (32, 32, 3))
    train = 260 if shape[0] < 32 else 40
    return Dataset(*(random_examples(count, shape, seed) for seed, count in enumerate((train, 30, 30))))


RANDOM_DATASETS = {name: lambda name=name: random_dataset(name) for name in DATASETS}


def small_digits(**options):
    """The digits job with two short epochs."""
    return dataclasses.replace(
        JOBS["digits"], **{"epochs": 2, "batch_size": 16, "seeds": (0,), "limit": 64, "width": 0.25} | options
    )


def equal(first: Batch, second: Batch) -> bool:
    return np.array_equal(first.images, second.images) and np.array_equal(first.labels, second.labels)
