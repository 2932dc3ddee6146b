"""Which weights share a scale: all of a tensor, those of a channel, or a block of consecutive ones."""

from __future__ import annotations

import abc
import dataclasses
import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp


class Granularity(abc.ABC):
    """Splits a tensor into groups of weights that share a scale.

    A *grouped* array holds the same numbers in a shape where each group is spread over the axes `axes` and nothing else
    is, so that a reduction over these axes with `keepdims` gives one number per group, which broadcasts back.
    """

    @abc.abstractmethod
    def axes(self, ndim: int) -> tuple[int, ...]:
        """The axes of the grouped form of a rank-`ndim` tensor over which a group extends."""

    def group(self, x: jax.Array) -> jax.Array:
        """The grouped form of x; places that x does not fill hold zeros."""
        return x

    def ungroup(self, x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """The inverse of `group` for a tensor of shape `shape`."""
        del shape
        return x

    def members(self, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        """1 where the grouped form of a tensor of shape `shape` holds a weight, 0 where it is filled up; broadcasts."""
        return jnp.ones((1,) * len(shape), dtype)

    @abc.abstractmethod
    def stacked(self, count: int) -> Granularity:
        """The same groups in each of the tensors that are stacked along `count` leading axes."""

    @abc.abstractmethod
    def squeeze(self, scale: jax.Array) -> jax.Array:
        """From one number per group in grouped form (`keepdims`) to the shape in which scales are stored."""

    @abc.abstractmethod
    def unsqueeze(self, scale: jax.Array, ndim: int) -> jax.Array:
        """The inverse of `squeeze` for a rank-`ndim` tensor."""


@dataclasses.dataclass(frozen=True)
class PerTensor(Granularity):
    """One scale, of shape (), for the whole tensor."""

    def axes(self, ndim: int) -> tuple[int, ...]:
        return tuple(range(ndim))

    def stacked(self, count: int) -> Granularity:
        return PerChannel(tuple(range(count))) if count else self

    def squeeze(self, scale: jax.Array) -> jax.Array:
        return scale.reshape(())

    def unsqueeze(self, scale: jax.Array, ndim: int) -> jax.Array:
        return scale.reshape((1,) * ndim)


@dataclasses.dataclass(frozen=True)
class PerChannel(Granularity):
    """One scale per index of the kept axes; the scales have the tensor's rank, with size 1 on the other axes."""

    kept: tuple[int, ...]

    def axes(self, ndim: int) -> tuple[int, ...]:
        kept = {_canonical(axis, ndim) for axis in self.kept}
        return tuple(axis for axis in range(ndim) if axis not in kept)

    def stacked(self, count: int) -> Granularity:
        return PerChannel((*range(count), *(axis + count if axis >= 0 else axis for axis in self.kept)))

    def squeeze(self, scale: jax.Array) -> jax.Array:
        return scale

    def unsqueeze(self, scale: jax.Array, ndim: int) -> jax.Array:
        del ndim
        return scale


@dataclasses.dataclass(frozen=True)
class PerBlock(Granularity):
    """One scale per `size` consecutive weights along `axis`, the last block being shorter where `size` does not divide.

    The scales have the tensor's shape with the axis divided by `size`, rounded up: the layout of ONNX's blocked
    `DequantizeLinear`.
    """

    size: int
    axis: int

    def axes(self, ndim: int) -> tuple[int, ...]:
        return (_canonical(self.axis, ndim) + 1,)

    def stacked(self, count: int) -> Granularity:
        return PerBlock(self.size, self.axis + count if self.axis >= 0 else self.axis)

    def group(self, x: jax.Array) -> jax.Array:
        axis = _canonical(self.axis, x.ndim)
        blocks, size = self._blocks(x.shape[axis])
        padding = [(0, 0)] * x.ndim
        padding[axis] = (0, blocks * size - x.shape[axis])
        return jnp.pad(x, padding).reshape(*x.shape[:axis], blocks, size, *x.shape[axis + 1 :])

    def ungroup(self, x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        axis = _canonical(self.axis, len(shape))
        merged = x.reshape(*x.shape[:axis], x.shape[axis] * x.shape[axis + 1], *x.shape[axis + 2 :])
        return jax.lax.slice_in_dim(merged, 0, shape[axis], axis=axis)

    def members(self, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        axis = _canonical(self.axis, len(shape))
        return self.group(jnp.ones([length if i == axis else 1 for i, length in enumerate(shape)], dtype))

    def squeeze(self, scale: jax.Array) -> jax.Array:
        return scale.squeeze(self.axes(scale.ndim - 1))

    def unsqueeze(self, scale: jax.Array, ndim: int) -> jax.Array:
        return jnp.expand_dims(scale, self.axes(ndim))

    def _blocks(self, length: int) -> tuple[int, int]:
        """How many blocks an axis has, and how long they are in grouped form: not longer than the axis."""
        size = min(self.size, max(1, length))
        return -(-length // size), size


def per_tensor() -> Granularity:
    """One scale for each tensor, as in the papers.

    Example:
      >>> import fobt
      >>> fobt.binary(granularity=fobt.per_tensor())([[1.0, -2.0], [3.0, 6.0]]).scale
      Array(3., dtype=float32)
    """
    return PerTensor()


def per_channel(axes: int | Sequence[int] = -1) -> Granularity:
    """One scale for each index of the kept axes, by default the last one: the output channels of a Flax kernel.

    Args:
      axes: the kept axis or axes; negative ones count from the end.

    Raises:
      ValueError: `axes` is empty or is not made of integers; when a tensor is quantized, an axis that it does not have.

    Example:
      >>> import fobt
      >>> fobt.binary(granularity=fobt.per_channel())([[1.0, -2.0], [3.0, 6.0]]).scale
      Array([[2., 4.]], dtype=float32)
    """
    try:
        kept = (operator.index(axes),) if not isinstance(axes, Sequence) else tuple(map(operator.index, axes))
    except TypeError:
        kept = ()
    if not kept:
        raise ValueError(f"per_channel: axes must be an integer or a non-empty sequence of integers, got {axes!r}.")
    return PerChannel(kept)


def per_block(size: int, axis: int = 0) -> Granularity:
    """One scale for each block of `size` consecutive weights along `axis`.

    Args:
      size: weights in a block, at least 1; the last block is shorter where `size` does not divide the axis.
      axis: the axis along which weights are consecutive, by default the first: the inputs of a Flax dense kernel.

    Raises:
      ValueError: `size` is not a positive integer or `axis` not an integer; when a tensor is quantized, an axis that it
        does not have.

    Example:
      >>> import fobt
      >>> fobt.binary(granularity=fobt.per_block(2))([1.0, -2.0, 6.0]).scale
      Array([1.5, 6. ], dtype=float32)
    """
    if not _is_index(size) or size < 1:
        raise ValueError(f"per_block: size must be an integer of at least 1, got {size!r}.")
    if not _is_index(axis):
        raise ValueError(f"per_block: axis must be an integer, got {axis!r}.")
    return PerBlock(operator.index(size), operator.index(axis))


def _is_index(value: object) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, bool)


def _canonical(axis: int, ndim: int) -> int:
    if not -ndim <= axis < ndim:
        raise ValueError(f"granularity: axis {axis} is out of range for weights of rank {ndim}.")
    return axis % ndim
