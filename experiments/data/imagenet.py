"""ImageNet (ILSVRC 2012): 1.28 million photographs in 1,000 classes."""

import functools
import os
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow_datasets as tfds
from jax.typing import ArrayLike

from experiments.data.arrays import Dataset, MissingDataError
from experiments.data.crops import centre_crop, random_resized_crop
from experiments.data.streaming import Record, Stream
from experiments.data.tfds_arrays import open_split

# Mean and standard deviation of the channels of the training images, as fractions of 255.
MEAN = np.array([0.485, 0.456, 0.406], np.float32).reshape(1, 1, 1, 3)
DEVIATION = np.array([0.229, 0.224, 0.225], np.float32).reshape(1, 1, 1, 3)


def imagenet(size: int = 224, validation: int = 10_000, workers: int | None = None) -> Dataset:
    """ImageNet, 1,271,167/10,000/50,000: random resized crops in training, central crops in evaluation.

    The paper has no validation part and reads the 50,000 validation images of ImageNet after every epoch. Here they are
    the test part, read once, and the last training images, in the shuffled order of tensorflow-datasets, are the
    validation part. The training images have central crops where they are evaluated.

    Args:
        size: Side of the crops.
        validation: How many training images are held out.
        workers: Processes that decode images, by default one for each CPU; 0 decodes in the calling process.

    Raises:
        MissingDataError: When tensorflow-datasets has no ImageNet prepared as ArrayRecord.
    """
    views = functools.partial(random_resized_crop, size=size), functools.partial(centre_crop, size=size)
    if workers is None:
        workers = os.cpu_count() or 1
    train, test = _open("train"), _open("validation")
    boundary = len(train) - validation
    return Dataset(
        Stream(train, range(boundary), *views, workers),
        Stream(train, range(boundary, len(train)), *views, workers),
        Stream(test, range(len(test)), *views, workers),
        prepare=standardize,
    )


def standardize(images: ArrayLike) -> jax.Array:
    """Pixels 0 to 255, shape (n, height, width, 3), as float32 with mean 0 and deviation 1 in each channel of ImageNet.

    Example:
        >>> np.asarray(standardize(np.full((1, 1, 1, 3), 255, np.uint8))).ravel().round(2)
        array([2.25, 2.43, 2.64], dtype=float32)
    """
    return (jnp.asarray(images, jnp.float32) / 255 - MEAN) / DEVIATION


def _open(split: str) -> Sequence[Record]:
    try:
        return open_split("imagenet2012", split, decoders={"image": tfds.decode.SkipDecoding()})
    except MissingDataError as error:
        raise MissingDataError(
            f"{error}; before that, download ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar by hand from "
            "image-net.org into the folder that `tfds build` gets as --manual_dir"
        ) from error
