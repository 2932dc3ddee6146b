"""Data sets in memory: images centred in [-1, 1] with shape (n, height, width, channels), labels as class indices."""

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import jax
import numpy as np
import tensorflow_datasets as tfds
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split


class MissingDataError(Exception):
    """A data set is not on this machine; the message is one line that says how to get it."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Split:
    """One part of a data set, as NumPy arrays or, after `jax.device_put`, on the device.

    Attributes:
        images: float32, shape (n, height, width, channels), values in [-1, 1].
        labels: int32, shape (n,).
    """

    images: np.ndarray | jax.Array
    labels: np.ndarray | jax.Array

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int) -> "Split":
        """The first `count` examples, or all of them where there are fewer."""
        return Split(self.images[:count], self.labels[:count])


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Dataset:
    """The three parts of a data set: train to learn, validation to choose the epoch, test to be read once."""

    train: Split
    validation: Split
    test: Split

    def first(self, count: int) -> "Dataset":
        """The same data set with at most `count` examples in each part."""
        return Dataset(self.train.first(count), self.validation.first(count), self.test.first(count))


def digits() -> Dataset:
    """The 1,797 handwritten digits of 8×8 pixels that scikit-learn ships, 1,000/297/500, stratified; no download."""
    pixels, labels = load_digits(return_X_y=True)
    images = (pixels / 8.0 - 1.0).astype(np.float32).reshape(-1, 8, 8, 1)
    labels = labels.astype(np.int32)
    images, test_images, labels, test_labels = train_test_split(
        images, labels, test_size=500, stratify=labels, random_state=0
    )
    train_images, validation_images, train_labels, validation_labels = train_test_split(
        images, labels, test_size=297, stratify=labels, random_state=0
    )
    return Dataset(
        Split(train_images, train_labels), Split(validation_images, validation_labels), Split(test_images, test_labels)
    )


def mnist() -> Dataset:
    """MNIST, 50,000/10,000/10,000: the last sixth of the training images is the validation part.

    Raises:
        MissingDataError: When tensorflow-datasets has no MNIST prepared as ArrayRecord.
    """
    train, test = _read_split("mnist", "train"), _read_split("mnist", "test")
    boundary = len(train) - len(train) // 6
    validation = Split(train.images[boundary:], train.labels[boundary:])
    return Dataset(train.first(boundary), validation, test)


def _read_split(name: str, split: str) -> Split:
    """Decode one split that tensorflow-datasets has prepared as ArrayRecord; reading one needs no TensorFlow."""
    logging.getLogger("absl").setLevel(logging.ERROR)  # a hint about OpenCV, once per process
    try:
        records = tfds.data_source(name, split=split, download=False)
    except (AssertionError, KeyError, NotImplementedError, OSError, ValueError) as error:  # depends on what is there
        folder = os.environ.get("TFDS_DATA_DIR", os.path.join("~", "tensorflow_datasets"))
        raise MissingDataError(
            f"{name} is not in {folder} as ArrayRecord: point TFDS_DATA_DIR at a folder that has it, or prepare it "
            f"with `pip install tensorflow` and `tfds build {name} --file_format=array_record`"
        ) from error
    examples = records.__getitems__(range(len(records)))  # in one batch: three times as fast as record by record
    images = np.stack([example["image"] for example in examples])
    labels = np.array([example["label"] for example in examples], dtype=np.int32)
    return Split(images.astype(np.float32) / 127.5 - 1.0, labels)


DATASETS: Mapping[str, Callable[[], Dataset]] = MappingProxyType({"digits": digits, "mnist": mnist})
