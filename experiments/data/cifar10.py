"""CIFAR-10: 32×32 colour images in ten classes."""

import numpy as np
import tensorflow_datasets as tfds

from experiments.data.arrays import Arrays, Dataset
from experiments.data.augmentation import crop_and_flip
from experiments.data.tfds_arrays import open_split, read_split
from experiments.data.whitening import cached_whitening, normalize_contrast

# Copies of CIFAR-10 have the same name and version, and differ in the sum of each channel over the training images.
COPIES = {
    # The channel means that everybody quotes, 0.49139968, 0.48215841 and 0.44653091, times 255·50,000·32².
    (6_415_714_204, 6_295_060_180, 5_829_907_619): "CIFAR-10",
    # One whose images went through JPEG before they were prepared.
    (6_413_765_015, 6_294_170_581, 5_829_777_341): "CIFAR-10 (JPEG copy)",
}


def cifar10_whitened() -> Dataset:
    """CIFAR-10 in the protocol of LAQ, 45,000/5,000/10,000, after contrast normalisation and ZCA whitening.

    The last 5,000 training images, in the order of the original files, are the validation part. Unlike in LAQ, the
    whitening is fitted without them. The images are float32: 740 MB in memory.

    Raises:
        MissingDataError: When tensorflow-datasets has no CIFAR-10 prepared as ArrayRecord.
    """
    train, validation, test, name = _read()
    normalized = normalize_contrast(train.images)
    whiten = cached_whitening(normalized)
    return Dataset(
        Arrays(whiten(normalized), train.labels),
        Arrays(whiten(normalize_contrast(validation.images)), validation.labels),
        Arrays(whiten(normalize_contrast(test.images)), test.labels),
        name=f"{name}, whitened",
    )


def cifar10_augmented() -> Dataset:
    """CIFAR-10, the same 45,000/5,000/10,000, pixels in [-1, 1], with random crops and mirror images in training.

    Raises:
        MissingDataError: When tensorflow-datasets has no CIFAR-10 prepared as ArrayRecord.
    """
    train, validation, test, name = _read()
    return Dataset(train, validation, test, augment=crop_and_flip, name=f"{name}, augmented")


def _read() -> tuple[Arrays, Arrays, Arrays, str]:
    """Training, validation and test images, and which copy of CIFAR-10 they are from."""
    records = open_split("cifar10", "train", decoders={"image": tfds.decode.SkipDecoding()})
    # Prepared data sets are shuffled; the ids number the images of the original files.
    ids = [record["id"] for record in records.__getitems__(range(len(records)))]  # type: ignore[attr-defined]
    train, test = read_split("cifar10", "train").take(np.argsort(ids)), read_split("cifar10", "test")
    sums = tuple(train.images.sum(axis=(0, 1, 2), dtype=np.int64).tolist())
    boundary = len(train) - len(train) // 10
    validation = Arrays(train.images[boundary:], train.labels[boundary:])
    return train.first(boundary), validation, test, COPIES.get(sums, "CIFAR-10 (altered pixels)")
