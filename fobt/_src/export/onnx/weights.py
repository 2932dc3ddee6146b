"""Quantized weights in an ONNX graph: initializers of few bits, and the nodes that make float weights of them."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from fobt._src.export.onnx.functions import DOMAIN, unpack_function
from fobt._src.export.onnx.graph import Graph, Tensor
from fobt._src.export.weights import Weights, integer_bytes
from fobt._src.packed.layout import pack_codes
from fobt._src.packed.packing import encoding_of

INT2_OPSET = 25  # the first one that casts 2-bit tensors


def emit(weights: Weights, graph: Graph, *, base3: bool) -> Tensor:
    """Stores weights in the graph, and makes float weights of them by nodes that a runtime computes as it loads them.

    Linear grids of 2, 4 and 8 bits are INT2, INT4 and INT8 tensors of codes for `Cast`. For all others, and for ternary
    weights in base 3, uint8 tensors of packed fields go through a function of standard operators. `DequantizeLinear` is
    not among them: by default onnxruntime computes it in every run, or rounds activations where it precedes a product.
    """
    is_ternary = weights.grid.bits == 2
    has_integers = weights.grid.spacing == "linear" and weights.grid.bits in (2, 4, 8)
    if has_integers and not (is_ternary and base3):
        codes = store_integers(graph, weights.codes, weights.grid.bits, weights.name, np.float32)
    else:
        codes = _unpacked(weights, graph, base3=base3 and is_ternary)
    tensor = _scaled(weights, graph, codes)
    if weights.dtype != np.float32:
        data_type = graph.data_type(weights.dtype)
        tensor = graph.add("Cast", [tensor], weights.shape, weights.dtype, to=data_type)
    return tensor


def store_integers(graph: Graph, integers: np.ndarray, bits: int, name: str, dtype: Any) -> Tensor:
    """Stores integers, int8, in 2, 4 or 8 bits, and casts them to another dtype."""
    types = graph.onnx.TensorProto
    if bits == 2:
        graph.opset = INT2_OPSET
    data_type = {2: types.INT2, 4: types.INT4, 8: types.INT8}[bits]
    stored = graph.store(data_type, integers.shape, integer_bytes(integers, bits).tobytes(), name)
    if bits == 8 and dtype == np.int8:
        return stored
    return graph.add("Cast", [stored], integers.shape, dtype, to=graph.data_type(dtype))


def _unpacked(weights: Weights, graph: Graph, *, base3: bool) -> Tensor:
    """The levels of the weights, for scale 1."""
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
    return graph.add(function, [stored, levels, shape], weights.shape, np.float32, domain=DOMAIN)


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
