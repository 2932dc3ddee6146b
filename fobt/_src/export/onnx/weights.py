"""Quantized weights in an ONNX graph: low-bit initializers, and the nodes that make weights of them."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from fobt._src.export.onnx.functions import DOMAIN, unpack_function
from fobt._src.export.onnx.graph import Graph, Tensor
from fobt._src.export.weights import Weights, integer_bytes
from fobt._src.packed.layout import pack_codes
from fobt._src.packed.packing import encoding_of

INT2_OPSET = 25  # the first one whose DequantizeLinear takes 2-bit tensors


def emit(weights: Weights, graph: Graph, *, base3: bool) -> Tensor:
    """Stores weights in the graph.

    Linear grids of 2, 4 and 8 bits are INT2, INT4 and INT8 tensors of codes for `DequantizeLinear`. For all others, for
    ternary weights in base 3, and for ternary matrices whose rows do not fill bytes, uint8 tensors of packed fields go
    through a function of standard operators.
    """
    is_ternary = weights.grid.bits == 2
    # onnxruntime 1.32 fuses DequantizeLinear and MatMul into a kernel that misreads such 2-bit matrices.
    is_misread = is_ternary and weights.codes.ndim == 2 and weights.shape[-1] % 4 != 0
    # DequantizeLinear has an axis, even where that does not matter.
    has_integers = weights.grid.spacing == "linear" and weights.grid.bits in (2, 4, 8) and weights.codes.ndim > 0
    if has_integers and not is_misread and not (is_ternary and base3):
        tensor = _emit_integers(weights, graph)
    else:
        tensor = _emit_packed(weights, graph, base3=base3 and is_ternary)
    if weights.dtype != np.float32:
        data_type = graph.data_type(weights.dtype)
        tensor = graph.add("Cast", [tensor], weights.shape, weights.dtype, to=data_type)
    return tensor


def _emit_integers(weights: Weights, graph: Graph) -> Tensor:
    bits, types, steps = weights.grid.bits, graph.onnx.TensorProto, weights.steps
    if bits == 2:
        graph.opset = INT2_OPSET
    data_type = {2: types.INT2, 4: types.INT4, 8: types.INT8}[bits]
    content = integer_bytes(weights.codes, bits)
    codes = graph.store(data_type, weights.shape, content.tobytes(), weights.name)
    kept = [axis for axis, size in enumerate(steps[0].shape) if size > 1]
    blocked = weights.block_axis is not None and weights.block_axis in kept
    if len(steps) == 1 and blocked:
        return graph.add(
            "DequantizeLinear",
            [codes, steps[0]],
            weights.shape,
            np.float32,
            axis=weights.block_axis,
            block_size=weights.block_size,
        )
    if len(steps) == 1 and len(kept) <= 1:
        scale = steps[0].reshape(-1 if kept else ())
        # One scale for all weights makes the axis irrelevant, but it must exist.
        axis = kept[0] if kept else 0
        return graph.add("DequantizeLinear", [codes, scale], weights.shape, np.float32, axis=axis)
    one = np.ones((), np.float32)
    return _scaled(weights, graph, graph.add("DequantizeLinear", [codes, one], weights.shape, np.float32))


def _emit_packed(weights: Weights, graph: Graph, *, base3: bool) -> Tensor:
    n, bits, spacing = weights.grid.max_code, weights.grid.bits, weights.grid.spacing
    content = pack_codes(weights.codes, spacing, bits, encoding_of(bits, base3))
    # The levels of all fields, of which the last one is not used where zero is a level.
    every_code = np.array([-1, 1]) if spacing == "binary" else np.append(np.arange(-n, n + 1), 0)
    # For all grids but logarithmic ones the level is the code, because the step is divided by n.
    levels = every_code.astype(np.float32)
    if spacing == "logarithmic":
        levels = np.asarray(weights.grid.levels(jnp.asarray(levels)))
    shape = np.array(weights.shape, np.int64)
    function = unpack_function(graph, bits, base3=base3)
    stored = graph.store(graph.onnx.TensorProto.UINT8, content.shape, content.tobytes(), weights.name)
    unpacked = graph.add(function, [stored, levels, shape], weights.shape, np.float32, domain=DOMAIN)
    return _scaled(weights, graph, unpacked)


def _scaled(weights: Weights, graph: Graph, codes: Tensor) -> Tensor:
    scales: list[Any] = [_expanded(weights, graph, step) for step in weights.steps]
    if len(scales) == 1:
        return graph.add("Mul", [codes, scales[0]], weights.shape)
    negative = graph.add("Less", [codes, np.zeros((), np.float32)], weights.shape, bool)
    scale = graph.add("Where", [negative, scales[1], scales[0]], weights.shape, np.float32)
    return graph.add("Mul", [codes, scale], weights.shape)


def _expanded(weights: Weights, graph: Graph, scale: np.ndarray) -> Any:
    """The scale of every weight along the axis of the blocks."""
    axis = weights.block_axis
    if axis is None or scale.shape[axis] == 1:
        return scale
    size = weights.shape[axis]
    indices = graph.add("Range", [np.array(number, np.int64) for number in (0, size, 1)], (size,))
    blocks = graph.add("Div", [indices, np.array(weights.block_size)], (size,))
    return graph.add("Gather", [scale, blocks], [*scale.shape[:axis], size, *scale.shape[axis + 1 :]], axis=axis)
