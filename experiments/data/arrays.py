"""Data sets as arrays in memory, and what every data set offers to the training loop."""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike


class MissingDataError(Exception):
    """A data set is not on this machine; the message is one line that says how to get it."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """Some examples.

    Attributes:
        images: uint8 or float32, shape (n, height, width, channels).
        labels: int32, shape (n,).
    """

    images: np.ndarray | jax.Array
    labels: np.ndarray | jax.Array

    def __len__(self) -> int:
        return len(self.labels)


class Examples(Protocol):
    """One part of a data set, to be read in order."""

    def __len__(self) -> int:
        """The number of examples."""

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """All examples in order; the last batch may be smaller."""

    def first(self, count: int) -> "Examples":
        """The first `count` examples, or all of them where there are fewer."""


class TrainingExamples(Examples, Protocol):
    """One part of a data set, to be trained on."""

    def first(self, count: int) -> "TrainingExamples":
        """The first `count` examples, or all of them where there are fewer."""

    def shuffled_batches(self, batch_size: int, seed: int, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The minibatches of an epoch from number `start` on: a function of the arguments alone.

        What is left over at the end of an epoch is dropped.
        """


@dataclass(frozen=True)
class Arrays(Batch):
    """One part of a data set, in memory."""

    def first(self, count: int) -> "Arrays":
        """The first `count` examples, or all of them where there are fewer."""
        return Arrays(self.images[:count], self.labels[:count])

    def take(self, indices: np.ndarray) -> "Arrays":
        """The examples with these indices, in their order."""
        return Arrays(self.images[indices], self.labels[indices])

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """All examples in order; the last batch may be smaller."""
        for i in range(0, len(self), batch_size):
            yield Batch(self.images[i : i + batch_size], self.labels[i : i + batch_size])

    def shuffled_batches(self, batch_size: int, seed: int, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The minibatches of an epoch from number `start` on, in an order drawn from seed and epoch."""
        for indices in self.shuffled_indices(batch_size, seed, epoch, start):
            yield Batch(self.images[indices], self.labels[indices])

    def shuffled_indices(self, batch_size: int, seed: int, epoch: int, start: int = 0) -> Iterator[np.ndarray]:
        """Which examples `shuffled_batches` has."""
        order = np.random.default_rng((seed, epoch)).permutation(len(self))
        for number in range(start, len(self) // batch_size):
            yield order[number * batch_size : (number + 1) * batch_size]


def centre(images: ArrayLike) -> jax.Array:
    """Pixels 0 to 255 as float32 in [-1, 1]; float32 images as they are.

    Example:
        >>> centre(np.array([0, 255], np.uint8))
        Array([-1.,  1.], dtype=float32)
    """
    images = jnp.asarray(images)
    return images.astype(jnp.float32) / 127.5 - 1.0 if images.dtype == jnp.uint8 else images


@dataclass(frozen=True)
class Dataset:
    """The parts of a data set, and what happens to its images on the device.

    Attributes:
        train: To learn from.
        validation: To choose the epoch.
        test: To be read once.
        prepare: From stored images to the float32 images that a network sees.
        augment: From the prepared images of a minibatch and a random key to other images of the same shape; training
            only.
        name: What the data set is on this machine, where that is more than its key says.
    """

    train: TrainingExamples
    validation: Examples
    test: Examples
    prepare: Callable[[ArrayLike], jax.Array] = centre
    augment: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    name: str = ""

    def first(self, count: int) -> "Dataset":
        """The same data set with at most `count` examples in each part."""
        return dataclasses.replace(
            self, train=self.train.first(count), validation=self.validation.first(count), test=self.test.first(count)
        )
