"""Quantized weights in a LiteRT model: inputs of float32 become constants of few bits, and their scales."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fobt._src.export.integers import Integers, why_no_integers
from fobt._src.export.litert.graph import Graph
from fobt._src.export.weights import Weights, integer_bytes


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
    unused = [leaf.name for name, leaf in leaves.items() if not _store(graph, inputs[name], Integers.of(leaf))]
    return graph.content(), unused


def check_leaf(leaf: Weights) -> None:
    """Raises a ValueError where LiteRT has no form for a leaf."""
    reason = why_no_integers(leaf)
    if reason is None and leaf.block_axis is not None:
        reason = "has a scale for each block, allowed is one for the tensor or for each index of one axis"
    if reason is not None:
        raise ValueError(f"quantized has the leaf {leaf.name!r}, which LiteRT cannot store: it {reason}.")


def _store(graph: Graph, tensor: int, integers: Integers) -> bool:
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
        if moved is not None and (moved.is_per_axis or not integers.is_per_axis):
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


def _add(graph: Graph, tensor: int, integers: Integers) -> None:
    if not integers.is_per_axis:
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
