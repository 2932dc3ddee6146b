"""A quantized leaf as integers of 2, 4 or 8 bits and a step: weight = integer · step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from fobt._src.export.weights import Weights

_STORED_BITS = {
    "binary": {1: 2},
    "linear": {2: 2, 3: 4, 4: 4, 5: 8, 6: 8, 7: 8, 8: 8},
    # Levels are multiples of the smallest one by powers of two, up to 1, 4 and 64.
    "logarithmic": {2: 2, 3: 4, 4: 8},
}


def why_no_integers(leaf: Weights) -> str | None:
    """What keeps a leaf from being integers with one step for each weight, or None."""
    if leaf.dtype != np.float32:
        return f"has dtype {leaf.dtype}, allowed is float32"
    if len(leaf.scales) == 2:
        return "has two scales, allowed is one"
    if leaf.grid.bits not in _STORED_BITS[leaf.grid.spacing]:
        return f"is on a logarithmic grid of {leaf.grid.bits} bits, allowed are 2 to 4"
    if not np.all(np.isfinite(leaf.scales[0])):
        return "has a scale that is infinite or no number"
    return None


@dataclasses.dataclass(frozen=True)
class Integers:
    """A constant of integers.

    Attributes:
      name: the path of the leaf.
      codes: the integers, int8.
      step: the weight of integer 1, positive, float32; of the rank of the codes, with axes of full size and others of
        size 1.
      bits: 2, 4 or 8, of each integer.
    """

    name: str
    codes: np.ndarray
    step: np.ndarray
    bits: int

    @classmethod
    def of(cls, leaf: Weights) -> Integers:
        """A leaf for which `why_no_integers` has no reason."""
        codes, (step,) = leaf.codes, leaf.steps
        if leaf.block_axis is not None and step.shape[leaf.block_axis] > 1:
            blocks = np.arange(leaf.shape[leaf.block_axis]) // leaf.block_size
            step = np.take(step, blocks, axis=leaf.block_axis)
        if leaf.grid.spacing == "logarithmic":
            codes = (np.sign(codes) * 2.0 ** (np.abs(codes) - 1.0)).astype(np.int8)
            step = step * np.float32(2.0 ** (1 - leaf.grid.max_code))
        # Runtimes want positive scales; folding can make negative ones, and a scale is 0 if all its weights are.
        codes = codes * np.sign(step).astype(np.int8)
        step = np.where(step == 0, np.float32(1), np.abs(step))
        return cls(leaf.name, codes, step, _STORED_BITS[leaf.grid.spacing][leaf.grid.bits])

    @property
    def is_per_axis(self) -> bool:
        """Whether their steps vary along one axis at most."""
        return sum(size > 1 for size in self.step.shape) <= 1

    def rearranged(self, layout: Callable[[np.ndarray], np.ndarray]) -> Integers:
        """The integers in another order or shape."""
        codes, step = layout(self.codes), layout(np.broadcast_to(self.step, self.codes.shape))
        for axis in range(step.ndim):
            first = step[(slice(None),) * axis + (slice(0, 1),)]
            step = first if np.all(step == first) else step
        return dataclasses.replace(self, codes=codes, step=step)

    def matrix(self, rows: Sequence[int], columns: Sequence[int]) -> Integers:
        """The integers as a matrix of two axes, each of which is several of theirs, one after the other."""
        size = int(np.prod([self.codes.shape[axis] for axis in rows], dtype=int))
        return self.rearranged(lambda array: array.transpose([*rows, *columns]).reshape(size, -1))
