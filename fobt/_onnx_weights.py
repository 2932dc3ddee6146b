"""Quantized weights in an ONNX graph: low-bit initializers, and the nodes that make weights of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from fobt._granularity import PerBlock, PerTensor
from fobt._grid import Grid
from fobt._layout import pack_codes, pack_fields
from fobt._onnx_unpack import DOMAIN, unpack_function
from fobt._packing import encoding_of
from fobt._quantized import Quantized

if TYPE_CHECKING:
    from fobt._onnx_graph import Graph, Tensor

INT2_OPSET = 25  # the first one whose DequantizeLinear takes 2-bit tensors


@dataclasses.dataclass(frozen=True)
class Weights:
    """A quantized leaf whose axes can still be put into another order.

    Attributes:
      name: its path in the tree.
      codes: the codes, int8.
      scales: α, or those of positive and of negative codes; of the rank of the codes, each axis of size 1, of full
        size, or, along `block_axis`, one for `block_size` weights.
      grid: the grid.
      dtype: that of the weights.
      block_axis: the axis of the blocks, if there are any.
      block_size: the weights in a block.
    """

    name: str
    codes: np.ndarray
    scales: tuple[np.ndarray, ...]
    grid: Grid
    dtype: np.dtype
    block_axis: int | None = None
    block_size: int = 0

    @classmethod
    def of(cls, name: str, quantized: Quantized) -> Weights:
        """A quantized leaf."""
        if quantized.dtype == jnp.float64:
            raise ValueError(f"quantized must not hold float64 weights, which ONNX cannot dequantize, got {name!r}.")
        codes, scale, split = np.asarray(quantized.codes), np.asarray(quantized.scale), quantized.granularity
        scales = (scale,) if quantized.scales == 1 else tuple(scale)
        if isinstance(split, PerTensor):
            scales = tuple(scale.reshape((1,) * codes.ndim) for scale in scales)
        blocks = {}
        if isinstance(split, PerBlock):
            blocks = {"block_axis": split.axis % codes.ndim, "block_size": split.size}
        return cls(name, codes, scales, quantized.grid, np.dtype(quantized.dtype), **blocks)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weights."""
        return self.codes.shape

    def transpose(self, permutation: Sequence[int]) -> Weights:
        """The weights with their axes in another order."""
        return dataclasses.replace(
            self,
            codes=self.codes.transpose(permutation),
            scales=tuple(scale.transpose(permutation) for scale in self.scales),
            block_axis=None if self.block_axis is None else list(permutation).index(self.block_axis),
        )

    def emit(self, graph: Graph, *, base3: bool) -> Tensor:
        """Stores the weights in the graph.

        Linear grids of 2, 4 and 8 bits are INT2, INT4 and INT8 tensors of codes for `DequantizeLinear`. For all others,
        for ternary weights in base 3, and for ternary matrices whose rows do not fill bytes, uint8 tensors of packed
        fields go through a function of standard operators.
        """
        is_ternary = self.grid.bits == 2
        # onnxruntime 1.32 fuses DequantizeLinear and MatMul into a kernel that misreads such 2-bit matrices.
        is_misread = is_ternary and self.codes.ndim == 2 and self.shape[-1] % 4 != 0
        has_integers = self.grid.spacing == "linear" and self.grid.bits in (2, 4, 8)
        if has_integers and not is_misread and not (is_ternary and base3):
            weights = self._emit_integers(graph)
        else:
            weights = self._emit_packed(graph, base3=base3 and is_ternary)
        if self.dtype != np.float32:
            data_type = graph.onnx.helper.np_dtype_to_tensor_dtype(self.dtype)
            weights = graph.add("Cast", [weights], self.shape, to=data_type)
        return weights

    @property
    def _steps(self) -> tuple[np.ndarray, ...]:
        """The weight of code 1 on linear grids, α/n, rounded as `Quantized.dequantize` does; α on logarithmic ones."""
        divisor = np.float32(1 if self.grid.spacing == "logarithmic" else self.grid.max_code)
        return tuple((scale / divisor).astype(np.float32) for scale in self.scales)

    def _emit_integers(self, graph: Graph) -> Tensor:
        bits, types = self.grid.bits, graph.onnx.TensorProto
        if bits == 2:
            graph.opset = INT2_OPSET
        data_type = {2: types.INT2, 4: types.INT4, 8: types.INT8}[bits]
        # The lowest bits of a number in two's complement.
        content = pack_fields(self.codes.ravel().view(np.uint8) & np.uint8(2**bits - 1), bits, "bits")
        codes = graph.store(data_type, self.shape, content.tobytes(), self.name)
        kept = [axis for axis, size in enumerate(self._steps[0].shape) if size > 1]
        blocked = self.block_axis is not None and self.block_axis in kept
        if len(self.scales) == 1 and blocked:
            return graph.add(
                "DequantizeLinear",
                [codes, self._steps[0]],
                self.shape,
                axis=self.block_axis,
                block_size=self.block_size,
            )
        if len(self.scales) == 1 and len(kept) <= 1:
            scale = self._steps[0].reshape(-1 if kept else ())
            # One scale for all weights makes the axis irrelevant, but it must exist.
            axis = kept[0] if kept else 0
            return graph.add("DequantizeLinear", [codes, scale], self.shape, axis=axis)
        return self._scaled(graph, graph.add("DequantizeLinear", [codes, np.ones((), np.float32)], self.shape))

    def _emit_packed(self, graph: Graph, *, base3: bool) -> Tensor:
        n, bits = self.grid.max_code, self.grid.bits
        content = pack_codes(self.codes, self.grid.spacing, bits, encoding_of(bits, base3))
        every_code = np.array([-1, 1]) if self.grid.spacing == "binary" else np.arange(-n, n + 1)
        # For all grids but logarithmic ones the level is the code, because the step is divided by n.
        levels = every_code.astype(np.float32)
        if self.grid.spacing == "logarithmic":
            levels = np.asarray(self.grid.levels(jnp.asarray(levels)))
        shape = np.array(self.shape, np.int64)
        function = unpack_function(graph, bits, base3=base3)
        stored = graph.store(graph.onnx.TensorProto.UINT8, content.shape, content.tobytes(), self.name)
        return self._scaled(graph, graph.add(function, [stored, levels, shape], self.shape, domain=DOMAIN))

    def _scaled(self, graph: Graph, codes: Tensor) -> Tensor:
        scales: list[Any] = [self._expanded(graph, scale) for scale in self._steps]
        if len(scales) == 1:
            return graph.add("Mul", [codes, scales[0]], self.shape)
        negative = graph.add("Less", [codes, np.zeros((), np.float32)], self.shape)
        return graph.add("Mul", [codes, graph.add("Where", [negative, scales[1], scales[0]], self.shape)], self.shape)

    def _expanded(self, graph: Graph, scale: np.ndarray) -> Any:
        """The scale of every weight along the axis of the blocks."""
        if self.block_axis is None or scale.shape[self.block_axis] == 1:
            return scale
        size = self.shape[self.block_axis]
        indices = graph.add("Range", [np.array(number, np.int64) for number in (0, size, 1)], (size,))
        blocks = graph.add("Div", [indices, np.array(self.block_size)], (size,))
        shape = [*scale.shape[: self.block_axis], size, *scale.shape[self.block_axis + 1 :]]
        return graph.add("Gather", [scale, blocks], shape, axis=self.block_axis)
