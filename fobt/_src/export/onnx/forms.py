"""The two forms of a model: of standard operators and in float32, or in what onnxruntime runs fastest."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fobt._src.export.integers import Integers, why_no_integers
from fobt._src.export.onnx import integer_products as products
from fobt._src.export.onnx.graph import Codes, Graph, Pending, Tensor, Value
from fobt._src.export.onnx.integer_convolutions import bias_in_steps, quantized_convolution, windows
from fobt._src.export.onnx.weights import emit
from fobt._src.export.report import LeafOperator
from fobt._src.export.weights import Weights

_FEW_ROWS = 4  # for more, MatMulNBits is slower than int8
_FEWEST_WEIGHTS, _FEWEST_OUTPUTS = 2**17, 64  # for fewer, float32 is as fast
_FEWEST_WINDOW, _FEWEST_CHANNELS = 128, 128  # for fewer, windows cost more than they gain


class Portable:
    """Weights become float32 when the model is loaded, and products are those of float32.

    Args:
      base3: whether ternary weights are stored five to a byte.
    """

    def __init__(self, *, base3: bool):
        self._base3 = base3

    def weights(self, graph: Graph, weights: Weights) -> Tensor:
        """The weights as an array of floats."""
        return emit(weights, graph, base3=self._base3)

    def product(
        self, graph: Graph, rows: Value, weights: Weights, axes: tuple[Sequence[int], Sequence[int]]
    ) -> Tensor | None:
        """None: the product is one of floats."""
        return None

    def convolution(self, graph: Graph, params: Mapping[str, Any], images: Value, weights: Weights) -> Tensor | None:
        """None: the convolution is one of floats."""
        return None

    def takes_codes(self, params: Mapping[str, Any], kernel: Weights) -> bool:
        """No: convolutions are those of floats."""
        return False

    def rounded(self, graph: Graph, pending: Pending, scale: np.ndarray, zero: np.ndarray) -> Codes | None:
        """None: nothing is pending."""
        return None


class _InFloats(Exception):  # noqa: N818 - it is no error
    """Why a product is one of floats."""


class Fast(Portable):
    """Products with matrices of few bits in integers, where that is faster; everything else as in the portable form.

    Attributes:
      leaves: what it chose.
    """

    def __init__(self) -> None:
        super().__init__(base3=False)
        self.leaves: list[LeafOperator] = []
        self._reasons: dict[str, str] = {}  # why a leaf is not multiplied by in integers
        self._weights: dict[Any, list[Tensor | np.ndarray]] = {}
        self._rows: dict[str, list[Tensor]] = {}

    def weights(self, graph: Graph, weights: Weights) -> Tensor:
        """The weights as an array of floats."""
        bits = weights.grid.bits
        reason = self._reasons.get(weights.name, "it is not the matrix of a product")
        self._chosen(weights.name, weights.shape, bits, "float32", reason)
        return super().weights(graph, weights)

    def product(
        self, graph: Graph, rows: Value, weights: Weights, axes: tuple[Sequence[int], Sequence[int]]
    ) -> Tensor | None:
        """The product of the last axis of `rows` and a matrix, whose rows and columns are `axes` of the weights."""
        try:
            return self._product(graph, rows, weights, axes)
        except _InFloats as reason:
            self._reasons[weights.name] = str(reason)
            return None

    def _product(
        self, graph: Graph, rows: Value, weights: Weights, axes: tuple[Sequence[int], Sequence[int]]
    ) -> Tensor:
        inputs, outputs = (math.prod(weights.shape[axis] for axis in some) for some in axes)
        if isinstance(rows, Codes):
            matrix = self._matrix(rows, weights, axes)
            if len(matrix.step) > 1:
                raise _InFloats("scales vary among the inputs of an output")
            return self._int8_product(graph, matrix, weights, self._quantized(graph, rows), "activations in codes")
        if inputs * outputs < _FEWEST_WEIGHTS or outputs < _FEWEST_OUTPUTS:
            raise _InFloats(f"fewer than {_FEWEST_WEIGHTS:,} weights or {_FEWEST_OUTPUTS} outputs")
        matrix = self._matrix(rows, weights, axes)
        sizes = rows.shape[:-1]
        count = math.prod(sizes) if all(isinstance(size, int) for size in sizes) else None
        if count is None or count > _FEW_ROWS:
            if len(matrix.step) > 1:
                raise _InFloats("scales vary among the inputs of an output")
            reason = "any number of rows" if count is None else f"{count} rows at a time"
            return self._int8_product(graph, matrix, weights, self._quantized(graph, rows), reason)
        if (block := products.nbits_blocks(matrix)) is None:
            raise _InFloats(f"scales vary within {products.BLOCKS[-1]} inputs")
        stored = self._once(graph, "nbits", weights, matrix)
        operator = f"MatMulNBits, {products.nbits_width(matrix)} bits"
        reason = f"{count} row{'s' if count != 1 else ''} at a time"
        reason += "" if block == products.BLOCKS[0] else f", scales of {block} inputs"
        self._chosen(weights.name, matrix.codes.shape, products.stored_bits(matrix), operator, reason)
        return products.nbits_product(graph, rows, matrix, stored)

    def convolution(self, graph: Graph, params: Mapping[str, Any], images: Value, weights: Weights) -> Tensor | None:
        """A convolution of images, [batch, ..., channels], and a kernel, [..., inputs, outputs]."""
        try:
            return self._convolution(graph, params, images, weights)
        except _InFloats as reason:
            self._reasons[weights.name] = str(reason)
            return None

    def _convolution(self, graph: Graph, params: Mapping[str, Any], images: Value, weights: Weights) -> Tensor:
        *sizes, inputs, outputs = weights.shape
        axes = range(len(sizes) + 1), [len(sizes) + 1]
        if math.prod(sizes) * inputs < _FEWEST_WINDOW or outputs < _FEWEST_CHANNELS:
            reason = f"windows of fewer than {_FEWEST_WINDOW} numbers or fewer than {_FEWEST_CHANNELS} channels"
            raise _InFloats(reason)
        is_plain = (
            params["feature_group_count"] == 1
            and all(dilation == 1 for dilation in params["lhs_dilation"])
            and all(size >= 0 for pair in params["padding"] for size in pair)
            and all(isinstance(size, int) for size in images.shape[1:])
        )
        if not is_plain:
            raise _InFloats("groups, dilated or cut images, or images of any size")
        matrix = self._matrix(images, weights, axes)
        if len(matrix.step) > 1:
            raise _InFloats("scales vary among the inputs of an output")
        places = windows(graph, self._quantized(graph, images), params, tuple(sizes))
        return self._int8_product(graph, matrix, weights, places, "a convolution of many channels")

    def takes_codes(self, params: Mapping[str, Any], kernel: Weights) -> bool:
        """Whether the kernel has a scale for each output, and the images are whole."""
        return (
            why_no_integers(kernel) is None
            and all(size == 1 for size in Integers.of(kernel).step.shape[1:])
            and all(dilation == 1 for dilation in params["lhs_dilation"])
            and all(size >= 0 for pair in params["padding"] for size in pair)
        )

    def rounded(self, graph: Graph, pending: Pending, scale: np.ndarray, zero: np.ndarray) -> Codes | None:
        """The codes of a convolution; None where its bias is too large for int32."""
        kernel = Integers.of(pending.kernel)
        bias = bias_in_steps(pending, kernel)
        if bias is not None and np.any(np.abs(bias) >= 2**31):
            return None
        bits = products.stored_bits(kernel)
        self._chosen(kernel.name, kernel.codes.shape, bits, "QLinearConv", "activations and outputs in codes")
        return quantized_convolution(graph, pending, kernel, scale, zero)

    def _matrix(self, rows: Value, weights: Weights, axes: tuple[Sequence[int], Sequence[int]]) -> Integers:
        """The matrix of integers."""
        if (reason := why_no_integers(weights)) is not None:
            raise _InFloats(f"it {reason}")
        if rows.dtype != np.float32:
            raise _InFloats(f"activations of {rows.dtype}")
        return Integers.of(weights).matrix(*axes)

    def _int8_product(
        self, graph: Graph, matrix: Integers, weights: Weights, rows: Sequence[Tensor | np.ndarray], reason: str
    ) -> Tensor:
        stored = self._once(graph, "int8", weights, matrix)
        self._chosen(weights.name, matrix.codes.shape, products.stored_bits(matrix), "MatMulIntegerToFloat", reason)
        return products.int8_product(graph, rows, stored)

    def _once(self, graph: Graph, form: str, weights: Weights, matrix: Integers) -> list[Tensor | np.ndarray]:
        """The weights and steps in one of the forms, stored once for all products with the same matrix."""
        key = form, weights.name, weights.order, weights.reversed_axes, matrix.codes.shape
        if key not in self._weights:
            store = {"nbits": products.nbits_weights, "int8": products.int8_weights}[form]
            self._weights[key] = store(graph, matrix)
        return self._weights[key]

    def _quantized(self, graph: Graph, rows: Value) -> Sequence[Tensor | np.ndarray]:
        """Activations in 8 bits, once for all products with them."""
        if isinstance(rows, Codes):
            return [rows.codes, rows.scale, rows.zero]
        name = graph.name(rows)
        if name not in self._rows:
            self._rows[name] = products.quantized_rows(graph, rows)
        return self._rows[name]

    def _chosen(self, path: str, shape: Sequence[int], bits: int, operator: str, reason: str) -> None:
        stored_as = f"{bits} bit" + "s" * (bits > 1)
        self.leaves.append(LeafOperator(path, tuple(shape), stored_as, operator, reason))
