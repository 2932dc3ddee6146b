"""Quantized weights in a LiteRT model: inputs of float32 become constants of few bits, and their scales."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from fobt._src.export.integers import Integers, why_no_integers
from fobt._src.export.litert.activations import quantize_activations
from fobt._src.export.litert.graph import Graph
from fobt._src.export.report import KEY, LeafOperator, described
from fobt._src.export.weights import Weights, integer_bytes


def store_weights(content: bytes, leaves: Mapping[str, Weights], *, fast: bool) -> tuple[bytes, list[str]]:
    """The model in `content`, where every input that is a leaf becomes a constant of integers.

    Args:
      content: a model whose signature has the leaves among its inputs.
      leaves: the leaves, by the names of their inputs.
      fast: whether dense layers and convolutions read the integers, and round their activations to 8 bits; otherwise
        all read what DEQUANTIZE makes of the integers.

    Returns:
      The content of the new model, and the paths of the leaves that it does not use.
    """
    graph = Graph(content)
    inputs = graph.take_inputs(leaves)
    storage = _FastStorage(graph) if fast else _Storage(graph)
    unused = [leaf.name for name, leaf in leaves.items() if not storage.store(inputs[name], Integers.of(leaf))]
    layers = quantize_activations(graph, layers=fast)
    if isinstance(storage, _FastStorage):
        storage.mark(layers)
        graph.add_metadata(KEY, described(storage.leaves))
    return graph.content(), unused


def check_leaf(leaf: Weights) -> None:
    """Raises a ValueError where LiteRT has no form for a leaf."""
    reason = why_no_integers(leaf)
    if reason is None and leaf.block_axis is not None:
        reason = "has a scale for each block, allowed is one for the tensor or for each index of one axis"
    if reason is not None:
        raise ValueError(f"quantized has the leaf {leaf.name!r}, which LiteRT cannot store: it {reason}.")


class _Storage:
    """Puts leaves into a model, all of them dequantized."""

    def __init__(self, graph: Graph):
        self._graph = graph

    def store(self, tensor: int, integers: Integers) -> bool:
        """Makes a tensor the dequantized integers; False if nothing uses it.

        What only rearranges them is done here, so that it costs nothing where the model runs, and so that scales for
        each head and dimension become those of one axis; not where it would make two axes of one. A product of a matrix
        with two axes becomes the operator for dense layers, which is faster and wants the matrix transposed.
        """
        graph = self._graph
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
                self.store(operator.outputs[0], moved)
            elif graph.is_product_with_matrix(operator, tensor):
                if transposed is None:
                    transposed = graph.new_tensor(integers.codes.shape[::-1])
                graph.make_dense(operator, transposed)
            elif not self.is_read(operator, tensor, integers):
                kept = True
        if transposed is not None:
            self.store(transposed, integers.rearranged(np.transpose))
        if kept:
            self._add_dequantized(tensor, integers)
        return used or kept

    def is_read(self, operator: Any, tensor: int, integers: Integers) -> bool:
        """Whether the operator now reads the integers themselves."""
        return False

    def _add_dequantized(self, tensor: int, integers: Integers) -> None:
        self._graph.add_dequantize(self._constant(integers, integers.bits), tensor)

    def _constant(self, integers: Integers, bits: int) -> int:
        if not integers.is_per_axis:
            raise ValueError(
                f"quantized has the leaf {integers.name!r}, which LiteRT cannot store: where it is used it has scales "
                f"of shape {integers.step.shape}, allowed is one axis with more than one."
            )
        axis = int(np.argmax(integers.step.shape)) if integers.step.ndim else 0
        content, steps = integer_bytes(integers.codes, bits), integers.step.ravel()
        return self._graph.add_integers(integers.codes.shape, integers.name, content, bits, steps, axis)


class _FastStorage(_Storage):
    """Lets dense layers and convolutions read integers, which XNNPACK multiplies by activations of 8 bits.

    XNNPACK wants one scale for each output. It computes DEQUANTIZE only from 8 bits, so other leaves take these.

    Attributes:
      leaves: what it chose.
    """

    def __init__(self, graph: Graph):
        super().__init__(graph)
        self.leaves: list[LeafOperator] = []
        self._read: dict[int, int] = {}  # from tensors of float32 to those of integers
        self._readers: dict[int, list[int]] = {}  # from those to the places of their operators in `leaves`

    def is_read(self, operator: Any, tensor: int, integers: Integers) -> bool:
        """Whether the operator now reads the integers themselves."""
        kind = self._graph.reader(operator, tensor)
        if kind is None or any(size > 1 for size in integers.step.shape[1:]):
            return False
        # The rows of a matrix have to fill bytes. Convolutions are fast in 8 bits only, and wrong in 2.
        widths = [bits for bits in (2, 4, 8) if bits >= integers.bits and integers.codes.shape[-1] * bits % 8 == 0]
        bits = widths[0] if kind == "FULLY_CONNECTED" else 8
        if tensor not in self._read:
            outputs = integers.codes.shape[0]
            step = np.broadcast_to(integers.step, (outputs, *(1 for _ in integers.codes.shape[1:])))
            content = integer_bytes(integers.codes, bits)
            self._read[tensor] = self._graph.add_integers(
                integers.codes.shape, integers.name, content, bits, step.ravel(), 0
            )
        operator.inputs[1] = self._read[tensor]
        self._readers.setdefault(self._read[tensor], []).append(len(self.leaves))
        self._chosen(integers, bits, kind, "it has a scale for each output, or one for all")
        return True

    def mark(self, layers: Mapping[int, str]) -> None:
        """Says of the weights of some layers that these compute in integers from codes to codes."""
        for tensor, kind in layers.items():
            for place in self._readers[tensor]:
                reason = "activations and outputs in codes"
                self.leaves[place] = dataclasses.replace(self.leaves[place], operator=kind, reason=reason)

    def _add_dequantized(self, tensor: int, integers: Integers) -> None:
        constant = self._constant(integers, 8)
        self._graph.add_dequantize(constant, tensor)
        self._readers[constant] = [len(self.leaves)]
        self._chosen(integers, 8, "float32", "it is not the matrix of a dense layer or the kernel of a convolution")

    def _chosen(self, integers: Integers, bits: int, operator: str, reason: str) -> None:
        self.leaves.append(LeafOperator(integers.name, integers.codes.shape, f"{bits} bits", operator, reason))
