"""ONNX functions of standard operators that take the fields of `fobt._layout` out of bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from fobt._onnx_graph import Graph


DOMAIN = "fobt"  # of the functions


def unpack_function(graph: Graph, bits: int, *, base3: bool) -> str:
    """The name of the function (bytes, levels, shape) -> levels[fields], in shape; it is put into the graph."""
    name = "unpack_base3" if base3 else f"unpack_{bits}_bits"
    if name not in graph.functions:
        nodes = _base3_fields(graph.onnx) if base3 else _bit_fields(graph.onnx, bits)
        nodes += [
            _node(graph.onnx, "Gather", "levels fields", "flat"),
            _node(graph.onnx, "Reshape", "flat shape", "weights"),
        ]
        graph.functions[name] = nodes
    return name


def _bit_fields(onnx: Any, bits: int) -> list[Any]:
    """From bytes to bits, shape (8 m,), and with the weights 1, 2, 4, ... to fields."""
    return [
        _constant(onnx, "last", np.array([-1], np.int64)),
        _constant(onnx, "start", np.array([0], np.int64)),
        _constant(onnx, "shifts", np.arange(8, dtype=np.uint8)),
        _constant(onnx, "one", np.uint8(1)),
        _constant(onnx, "bits", np.int64(bits)),
        _constant(onnx, "rows", np.array([-1, bits], np.int64)),
        _constant(onnx, "powers", 2.0 ** np.arange(bits, dtype=np.float32)),
        _node(onnx, "Unsqueeze", "bytes last", "column"),
        _node(onnx, "BitShift", "column shifts", "shifted", direction="RIGHT"),
        _node(onnx, "BitwiseAnd", "shifted one", "bit_rows"),
        _node(onnx, "Reshape", "bit_rows last", "stream"),
        _node(onnx, "ReduceProd", "shape", "size", keepdims=1),
        _node(onnx, "Mul", "size bits", "end"),
        _node(onnx, "Slice", "stream start end", "used"),
        _node(onnx, "Reshape", "used rows", "field_bits"),
        _node(onnx, "Cast", "field_bits", "digits", to=onnx.TensorProto.FLOAT),
        _node(onnx, "MatMul", "digits powers", "numbers"),
        _node(onnx, "Cast", "numbers", "fields", to=onnx.TensorProto.INT32),
    ]


def _base3_fields(onnx: Any) -> list[Any]:
    """From bytes to base-3 digits, which are the fields."""
    return [
        _constant(onnx, "last", np.array([-1], np.int64)),
        _constant(onnx, "start", np.array([0], np.int64)),
        _constant(onnx, "powers", 3 ** np.arange(5, dtype=np.int32)),
        _constant(onnx, "three", np.int32(3)),
        _node(onnx, "Unsqueeze", "bytes last", "column"),
        _node(onnx, "Cast", "column", "numbers", to=onnx.TensorProto.INT32),
        _node(onnx, "Div", "numbers powers", "quotients"),
        _node(onnx, "Mod", "quotients three", "digits"),
        _node(onnx, "Reshape", "digits last", "stream"),
        _node(onnx, "ReduceProd", "shape", "size", keepdims=1),
        _node(onnx, "Slice", "stream start size", "fields"),
    ]


def _node(onnx: Any, op: str, inputs: str, output: str, **attributes: Any) -> Any:
    return onnx.helper.make_node(op, inputs.split(), [output], **attributes)


def _constant(onnx: Any, name: str, array: Any) -> Any:
    array = np.asarray(array)
    data_type = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    value = onnx.TensorProto(data_type=data_type, dims=array.shape, raw_data=array.tobytes())
    return onnx.helper.make_node("Constant", [], [name], value=value)
