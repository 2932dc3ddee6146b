"""What lies where: rows of every batch on their process, and the state of a training replicated or sharded."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.data import Arrays, Batch, Dataset

AXIS = "data"


def make_mesh(devices: Sequence[jax.Device]) -> Mesh:
    """Devices in a row, of one process or of several; XLA decides what the compiled programs send."""
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def shardings(tree: Any, mesh: Mesh, *, sharded: bool) -> Any:
    """Where the leaves of a tree lie.

    Args:
        tree: Arrays, or their shapes.
        mesh: The devices.
        sharded: Whether a leaf is cut along its first axis that can be cut evenly (FSDP); one without such an axis is
            replicated. Otherwise every leaf is.
    """

    def sharding(leaf: Any) -> NamedSharding:
        axis = next((i for i, size in enumerate(leaf.shape) if size % mesh.size == 0), None) if sharded else None
        return NamedSharding(mesh, P() if axis is None else P(*[None] * axis, AXIS))

    return jax.tree.map(sharding, tree)


@dataclass(frozen=True)
class ShardedArrays:
    """One part of a data set whose batches are sharded by rows; each process reads its rows only.

    Attributes:
        arrays: The images and labels.
        mesh: The devices.
        reverse: Whether every shuffled batch has its rows in reverse order.
    """

    arrays: Arrays
    mesh: Mesh
    reverse: bool = False

    def __len__(self) -> int:
        return len(self.arrays)

    def first(self, count: int) -> "ShardedArrays":
        """The first `count` examples, or all of them where there are fewer."""
        return ShardedArrays(self.arrays.first(count), self.mesh)

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """All examples in order; the last batch may be smaller."""
        for start in range(0, len(self), batch_size):
            yield self._batch(np.arange(start, min(start + batch_size, len(self))))

    def shuffled_batches(self, batch_size: int, seed: int, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The minibatches of an epoch from number `start` on: those that `Arrays` has."""
        for indices in self.arrays.shuffled_indices(batch_size, seed, epoch, start):
            yield self._batch(indices[::-1] if self.reverse else indices)

    def _batch(self, indices: np.ndarray) -> Batch:
        # What cannot be cut evenly, the last batch of an evaluation, every process reads whole.
        sharding = NamedSharding(self.mesh, P(AXIS) if len(indices) % self.mesh.size == 0 else P())

        def place(array: Any) -> jax.Array:
            shape = (len(indices), *array.shape[1:])

            def read(place: tuple[slice, ...] | None) -> np.ndarray:
                assert place is not None
                return array[indices[place[0]]]

            return jax.make_array_from_callback(shape, sharding, read)

        return Batch(place(self.arrays.images), place(self.arrays.labels))


def shard_batches(dataset: Dataset, mesh: Mesh, *, reverse: bool = False) -> Dataset:
    """The same data set with sharded batches.

    Args:
        dataset: Of arrays in memory.
        mesh: The devices.
        reverse: Whether every shuffled batch has its rows in reverse order.

    Raises:
        ValueError: Its images are not in memory.
    """
    parts = {}
    for name in ("train", "validation", "test"):
        part = getattr(dataset, name)
        if not isinstance(part, Arrays):
            raise ValueError(f"dataset must be in memory, its part {name!r} is a {type(part).__name__}")
        parts[name] = ShardedArrays(part, mesh, reverse)
    return Dataset(**parts, prepare=dataset.prepare, augment=dataset.augment, name=dataset.name)
