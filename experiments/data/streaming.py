"""Data sets too large for memory: read, decoded and augmented by Grain while the device computes.

Worker processes hand their batches over in shared memory (/dev/shm), up to three batches each.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import grain
import grain.experimental
import numpy as np
from absl import flags

from experiments.data.arrays import Batch

Record: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Stream:
    """One part of a data set, made anew from its records whenever it is read.

    Attributes:
        records: Random access to the records of the data set, each with a "label".
        indices: Which of them are in this part.
        training_view: From a record and random numbers to an image to train on.
        evaluation_view: From a record to an image to evaluate on.
        workers: Processes that make images; with 0 the calling process makes them itself.
    """

    records: Sequence[Record]
    indices: range
    training_view: Callable[[Record, np.random.Generator], np.ndarray]
    evaluation_view: Callable[[Record], np.ndarray]
    workers: int

    def __len__(self) -> int:
        return len(self.indices)

    def first(self, count: int) -> "Stream":
        """The first `count` examples, or all of them where there are fewer."""
        return dataclasses.replace(self, indices=self.indices[:count])

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """The evaluation view of all examples in order, on the device; the last batch may be smaller."""
        return self._read(self._records().map(self._evaluation_example).batch(batch_size, batch_fn=make_batch))

    def shuffled_batches(self, batch_size: int, seed: int, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The minibatches of an epoch from number `start` on, training views, on the device.

        Order and views are drawn from seed, epoch and the place in the epoch.
        """
        (both,) = np.random.SeedSequence((seed, epoch)).generate_state(1)
        examples = self._records().seed(int(both)).shuffle().random_map(self._training_example)
        return self._read(examples.batch(batch_size, drop_remainder=True, batch_fn=make_batch)[start:])

    def _records(self) -> grain.MapDataset[Record]:
        return grain.MapDataset.source(self.records)[self.indices.start : self.indices.stop]

    def _training_example(self, record: Record, rng: np.random.Generator) -> tuple[np.ndarray, int]:
        return self.training_view(record, rng), record["label"]

    def _evaluation_example(self, record: Record) -> tuple[np.ndarray, int]:
        return self.evaluation_view(record), record["label"]

    def _read(self, batches: grain.MapDataset[Batch]) -> Iterator[Batch]:
        flags.FLAGS.mark_as_parsed()  # Grain reads an absl flag: https://github.com/google/grain/issues/1355
        # A thread and a buffer of one batch in each process, because the batches are large.
        dataset = batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=min(self.workers, len(batches))))
        iterator = iter(grain.experimental.device_put(dataset, None, cpu_buffer_size=1, device_buffer_size=2))
        try:
            yield from iterator
        finally:
            iterator.close()  # ends the workers, also where the caller stops early


def make_batch(examples: Sequence[tuple[np.ndarray, int]]) -> Batch:
    """Images and labels as arrays.

    Example:
        >>> make_batch([(np.zeros((2, 2, 3), np.uint8), 5)]).images.shape
        (1, 2, 2, 3)
    """
    images, labels = zip(*examples, strict=True)
    return Batch(np.stack(images), np.array(labels, dtype=np.int32))
