"""Quantized weights in a LiteRT model: constants of float32 become integers of few bits, and their scales."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from fobt._exported import Weights, integer_bytes

_STORED_BITS = {
    "binary": {1: 2},
    "linear": {2: 2, 3: 4, 4: 4, 5: 8, 6: 8, 7: 8, 8: 8},
    # Levels are multiples of the smallest one by powers of two, up to 1, 4 and 64.
    "logarithmic": {2: 2, 3: 4, 4: 8},
}


def store_weights(content: bytes, leaves: Sequence[Weights], arrays: Sequence[np.ndarray]) -> bytes:
    """The model in `content`, where every constant that is a leaf becomes its integers, dequantized.

    Args:
      content: a model with constants of float32.
      leaves: the leaves.
      arrays: their dequantized weights. A constant is a leaf if it is this array, whatever the order of its axes.

    Returns:
      The content of the new model.
    """
    flatbuffer, schema = import_litert()
    model = flatbuffer.read_model_from_bytearray(bytearray(content))
    # Equal leaves are one constant of the model.
    named = {
        (array.shape, array.tobytes()): (leaf, array) for leaf, array in zip(leaves, arrays, strict=True) if array.size
    }
    found = set()
    for graph in model.subgraphs:
        for index, tensor in enumerate(list(graph.tensors)):
            data = model.buffers[tensor.buffer].data
            if tensor.type != schema.TensorType.FLOAT32 or data is None or not len(data):
                continue
            constant = np.frombuffer(bytes(data), np.float32).reshape(tensor.shape)
            for key, (leaf, array) in named.items():
                if (permutation := _order(array, constant)) is not None:
                    found.add(key)
                    _store(leaf.transpose(permutation), tensor, model, schema)
                    _dequantize(index, graph, model, schema)
                    break
    for key, (leaf, array) in named.items():
        if key not in found:
            raise ValueError(
                f"quantized has the leaf {leaf.name!r} of shape {array.shape}, which is no constant of the converted "
                "model: function must hand it to a layer as it is (fold batch normalisation first)."
            )
    used = {tensor.buffer for graph in model.subgraphs for tensor in graph.tensors}
    for index, buffer in enumerate(model.buffers):
        if index not in used:
            buffer.data = None
    return bytes(flatbuffer.convert_object_to_bytearray(model))


def import_litert() -> tuple[Any, Any]:
    """The modules of ai-edge-litert for reading and writing models, imported only where one is written."""
    try:
        from ai_edge_litert import schema_py_generated
        from ai_edge_litert.tools import flatbuffer_utils
    except ImportError as error:
        raise ImportError("to_litert needs the package ai-edge-litert: pip install 'fobt[litert]'.") from error
    return flatbuffer_utils, schema_py_generated


def check_leaf(leaf: Weights) -> None:
    """Raises a ValueError where LiteRT has no form for a leaf."""
    reason = None
    if leaf.dtype != np.float32:
        reason = f"has dtype {leaf.dtype}, allowed is float32"
    elif len(leaf.scales) == 2:
        reason = "has two scales, allowed is one"
    elif leaf.block_axis is not None:
        reason = "has a scale for each block, allowed is one for the tensor or for each index of one axis"
    elif sum(size > 1 for size in leaf.scales[0].shape) > 1:
        reason = f"has scales of shape {leaf.scales[0].shape}, allowed is one axis with more than one"
    elif leaf.grid.bits not in _STORED_BITS[leaf.grid.spacing]:
        reason = f"is on a logarithmic grid of {leaf.grid.bits} bits, allowed are 2 to 4"
    if reason is not None:
        raise ValueError(f"quantized has the leaf {leaf.name!r}, which LiteRT cannot store: it {reason}.")


def _order(array: np.ndarray, constant: np.ndarray) -> tuple[int, ...] | None:
    """The order of axes in which the array is the constant, or None."""
    if array.size != constant.size or array.ndim != constant.ndim:
        return None
    for permutation in itertools.permutations(range(array.ndim)):
        permuted = array.transpose(permutation)
        if permuted.shape == constant.shape and np.array_equal(permuted, constant):
            return permutation
    return None


def _store(leaf: Weights, tensor: Any, model: Any, schema: Any) -> None:
    """Makes a constant the integers of a leaf."""
    codes, (step,) = leaf.codes, leaf.steps
    if leaf.grid.spacing == "logarithmic":
        n = leaf.grid.max_code
        codes = (np.sign(codes) * 2.0 ** (np.abs(codes) - 1.0)).astype(np.int8)
        step = step * np.float32(2.0 ** (1 - n))
    # LiteRT wants positive scales; folding can make negative ones, and a scale is 0 if all its weights are.
    codes, step = codes * np.sign(step).astype(np.int8), np.where(step == 0, np.float32(1), np.abs(step))
    bits = _STORED_BITS[leaf.grid.spacing][leaf.grid.bits]
    tensor.type = {2: schema.TensorType.INT2, 4: schema.TensorType.INT4, 8: schema.TensorType.INT8}[bits]
    tensor.buffer = len(model.buffers)
    buffer = schema.BufferT()
    buffer.data = integer_bytes(codes, bits)
    model.buffers.append(buffer)
    tensor.quantization = schema.QuantizationParametersT()
    tensor.quantization.scale = step.ravel()
    tensor.quantization.zeroPoint = np.zeros(step.size, np.int64)
    tensor.quantization.quantizedDimension = int(np.argmax(step.shape))


def _dequantize(index: int, graph: Any, model: Any, schema: Any) -> None:
    """Lets everything that uses a tensor use its dequantized weights."""
    weights = schema.TensorT()
    weights.shape, weights.type, weights.buffer = graph.tensors[index].shape, schema.TensorType.FLOAT32, 0
    new = len(graph.tensors)
    graph.tensors.append(weights)
    for operator in graph.operators:
        operator.inputs = [new if used == index else used for used in operator.inputs]
    graph.outputs = [new if used == index else used for used in graph.outputs]
    dequantize = schema.OperatorT()
    dequantize.opcodeIndex = _operator_code(model, schema)
    dequantize.inputs, dequantize.outputs = [index], [new]
    graph.operators.insert(0, dequantize)


def _operator_code(model: Any, schema: Any) -> int:
    """Where the model lists DEQUANTIZE among the operators that it uses."""
    kind = schema.BuiltinOperator.DEQUANTIZE
    for index, code in enumerate(model.operatorCodes):
        if code.builtinCode == kind:
            return index
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = kind
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1
