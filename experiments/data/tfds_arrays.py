"""Splits that tensorflow-datasets has prepared as ArrayRecord, read without TensorFlow."""

import logging
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from experiments.data.arrays import Arrays, MissingDataError

CHUNK = 4096  # records decoded at a time


def open_split(name: str, split: str, **options: Any) -> Sequence[dict[str, Any]]:
    """A split as a random-access source of its examples.

    Raises:
        MissingDataError: When tensorflow-datasets has no such data set prepared as ArrayRecord.
    """
    logging.getLogger("absl").setLevel(logging.ERROR)  # a hint about OpenCV, once per process
    try:
        return tfds.data_source(name, split=split, download=False, **options)
    except (AssertionError, KeyError, NotImplementedError, OSError, ValueError) as error:  # depends on what is there
        folder = os.environ.get("TFDS_DATA_DIR", os.path.join("~", "tensorflow_datasets"))
        raise MissingDataError(
            f"{name} is not in {folder} as ArrayRecord: point TFDS_DATA_DIR at a folder that has it, or prepare it "
            f"with `pip install tensorflow` and `tfds build {name} --file_format=array_record`"
        ) from error


def read_split(name: str, split: str) -> Arrays:
    """A whole split, its pixels as they are stored.

    Raises:
        MissingDataError: When tensorflow-datasets has no such data set prepared as ArrayRecord.
    """
    records = open_split(name, split)
    images, labels = [], []
    for start in range(0, len(records), CHUNK):
        # In batches: three times as fast as record by record.
        examples = records.__getitems__(range(start, min(start + CHUNK, len(records))))  # type: ignore[attr-defined]
        images.append(np.stack([example["image"] for example in examples]))
        labels.append(np.array([example["label"] for example in examples], dtype=np.int32))
    return Arrays(np.concatenate(images), np.concatenate(labels))
