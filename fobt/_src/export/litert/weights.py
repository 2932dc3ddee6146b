"""Quantized weights in a LiteRT model: inputs of float32 become constants of few bits, and their scales."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from fobt._src.export.litert.graph import Graph
from fobt._src.export.weights import Weights, integer_bytes

_STORED_BITS = {
    "binary": {1: 2},
    "linear": {2: 2, 3: 4, 4: 4, 5: 8, 6: 8, 7: 8, 8: 8},
    # Levels are multiples of the smallest one by powers of two, up to 1, 4 and 64.
    "logarithmic": {2: 2, 3: 4, 4: 8},
}


def store_weights(content: bytes, leaves: Mapping[str, Weights]) -> tuple[bytes, list[str]]:
    """The model in `content`, where every input that is a leaf becomes a constant of integers, dequantized.

    Args:
      content: a model whose signature has the leaves among its inputs.
      leaves: the leaves, by the names of their inputs.

    Returns:
      The content of the new model, and the paths of the leaves that it does not use.
    """
    graph = Graph(content)
    inputs = graph.take_inputs(leaves)
    unused = [leaf.name for name, leaf in leaves.items() if not _store(graph, inputs[name], _Integers.of(leaf))]
    return graph.content(), unused


def check_leaf(leaf: Weights) -> None:
    """Raises a ValueError where LiteRT has no form for a leaf."""
    reason = None
    if leaf.dtype != np.float32:
        reason = f"has dtype {leaf.dtype}, allowed is float32"
    elif len(leaf.scales) == 2:
        reason = "has two scales, allowed is one"
    elif leaf.block_axis is not None:
        reason = "has a scale for each block, allowed is one for the tensor or for each index of one axis"
    elif not np.all(np.isfinite(leaf.scales[0])):
        reason = "has a scale that is infinite or no number"
    elif leaf.grid.bits not in _STORED_BITS[leaf.grid.spacing]:
        reason = f"is on a logarithmic grid of {leaf.grid.bits} bits, allowed are 2 to 4"
    if reason is not None:
        raise ValueError(f"quantized has the leaf {leaf.name!r}, which LiteRT cannot store: it {reason}.")


@dataclasses.dataclass(frozen=True)
class _Integers:
    """A constant of integers.

    Attributes:
      name: the path of the leaf.
      codes: the integers, int8.
      step: the weight of integer 1, positive, float32; of the rank of the codes, with axes of full size, of which
        LiteRT takes one at most, and others of size 1.
      bits: 2, 4 or 8, of each integer.
    """

    name: str
    codes: np.ndarray
    step: np.ndarray
    bits: int

    @classmethod
    def of(cls, leaf: Weights) -> _Integers:
        codes, (step,) = leaf.codes, leaf.steps
        if leaf.grid.spacing == "logarithmic":
            codes = (np.sign(codes) * 2.0 ** (np.abs(codes) - 1.0)).astype(np.int8)
            step = step * np.float32(2.0 ** (1 - leaf.grid.max_code))
        # LiteRT wants positive scales; folding can make negative ones, and a scale is 0 if all its weights are.
        codes = codes * np.sign(step).astype(np.int8)
        step = np.where(step == 0, np.float32(1), np.abs(step))
        return cls(leaf.name, codes, step, _STORED_BITS[leaf.grid.spacing][leaf.grid.bits])

    @property
    def is_storable(self) -> bool:
        """Whether their steps vary along one axis at most."""
        return sum(size > 1 for size in self.step.shape) <= 1

    def rearranged(self, layout: Callable[[np.ndarray], np.ndarray]) -> _Integers:
        """The integers in another order or shape."""
        codes, step = layout(self.codes), layout(np.broadcast_to(self.step, self.codes.shape))
        for axis in range(step.ndim):
            first = step[(slice(None),) * axis + (slice(0, 1),)]
            step = first if np.all(step == first) else step
        return dataclasses.replace(self, codes=codes, step=step)


def _store(graph: Graph, tensor: int, integers: _Integers) -> bool:
    """Makes a tensor the dequantized integers; False if nothing uses it.

    What only rearranges them is done here, so that it costs nothing where the model runs, and so that scales for each
    head and dimension become those of one axis; not where it would make two axes of one. A product of a matrix with
    two axes becomes the operator for dense layers, which is faster and wants the matrix transposed.
    """
    if not integers.codes.size:
        return bool(graph.users(tensor))
    used, transposed = False, None
    kept = graph.is_output(tensor)
    for operator in graph.users(tensor):
        used = True
        layout = graph.layout(operator)
        moved = integers.rearranged(layout) if layout is not None and operator.inputs[0] == tensor else None
        if moved is not None and (moved.is_storable or not integers.is_storable):
            graph.remove(operator)
            _store(graph, operator.outputs[0], moved)
        elif graph.is_product_with_matrix(operator, tensor):
            if transposed is None:
                transposed = graph.new_tensor(integers.codes.shape[::-1])
                _add(graph, transposed, integers.rearranged(np.transpose))
            graph.make_dense(operator, transposed)
        else:
            kept = True
    if kept:
        _add(graph, tensor, integers)
    return used or kept


def _add(graph: Graph, tensor: int, integers: _Integers) -> None:
    if not integers.is_storable:
        raise ValueError(
            f"quantized has the leaf {integers.name!r}, which LiteRT cannot store: where it is used it has scales of "
            f"shape {integers.step.shape}, allowed is one axis with more than one."
        )
    graph.add_dequantized(
        tensor,
        integers.name,
        integer_bytes(integers.codes, integers.bits),
        integers.bits,
        integers.step.ravel(),
        int(np.argmax(integers.step.shape)) if integers.step.ndim else 0,
    )
