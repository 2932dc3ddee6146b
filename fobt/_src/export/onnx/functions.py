"""ONNX functions of standard operators, for what no single operator does: they are in a model where it uses them."""

from __future__ import annotations

from typing import Any

import numpy as np

from fobt._src.export.onnx.graph import Graph

DOMAIN = "fobt"  # of the functions


def numeric_function(graph: Graph, name: str) -> str:
    """The name of the function x -> y, log1p or expm1, of any floating dtype; it is put into the graph.

    Both are a quotient of two rounded numbers whose errors cancel (Kahan): with u = 1 + x rounded, log(u) / (u - 1) is
    log1p(x) / x to rounding, and with u = exp(x) rounded, (u - 1) / log(u) is expm1(x) / x.
    """
    if name not in graph.functions:
        onnx = graph.onnx
        nodes = [_constant(onnx, "wide_one", np.float32(1)), _node(onnx, "CastLike", "wide_one x", "one")]
        if name == "log1p":
            nodes += [
                _node(onnx, "Add", "x one", "u"),
                _node(onnx, "Sub", "u one", "d"),
                _node(onnx, "Log", "u", "log"),
                _node(onnx, "Div", "x d", "ratio"),
                _node(onnx, "Mul", "log ratio", "product"),
                # d = x where nothing was lost, and for infinities; d = 0 where x is small.
                _node(onnx, "Equal", "d x", "is_exact"),
                _node(onnx, "Where", "is_exact log product", "large"),
                _node(onnx, "Sub", "d d", "nothing"),
                _node(onnx, "Equal", "d nothing", "is_small"),
                _node(onnx, "Where", "is_small x large", "y"),
            ]
        else:
            nodes += [
                _node(onnx, "Exp", "x", "u"),
                _node(onnx, "Sub", "u one", "d"),
                _node(onnx, "Log", "u", "log"),
                _node(onnx, "Div", "x log", "ratio"),
                _node(onnx, "Mul", "d ratio", "product"),
                # d = u where exp(x) is huge, d = -1 where it is tiny, u = 1 where x is small.
                _node(onnx, "Equal", "d u", "is_huge"),
                _node(onnx, "Neg", "one", "minus_one"),
                _node(onnx, "Equal", "d minus_one", "is_tiny"),
                _node(onnx, "Or", "is_huge is_tiny", "is_exact"),
                _node(onnx, "Where", "is_exact d product", "large"),
                _node(onnx, "Equal", "u one", "is_small"),
                _node(onnx, "Where", "is_small x large", "y"),
            ]
        graph.functions[name] = ["x"], ["y"], nodes
    return name


def unpack_function(graph: Graph, bits: int, *, base3: bool) -> str:
    """The name of the function (bytes, levels, shape) -> levels[fields], in shape; it is put into the graph.

    The fields are those of the packed layout. Numbers of some bits, which hold whole fields, look up the levels of
    these in a table, so that loading a model costs little more than writing its weights: a byte is one such number
    where fields fill bytes, as they do in base 3; otherwise numbers of up to 12 bits are put together from two bytes.
    """
    name = "unpack_base3" if base3 else f"unpack_{bits}_bits"
    if name not in graph.functions:
        onnx = graph.onnx
        fields = 5 if base3 else {1: 8, 2: 4, 3: 4, 4: 2, 5: 2, 6: 2, 7: 1, 8: 1}[bits]
        rows = 256 if 8 % bits == 0 else 2 ** (fields * bits)
        base = 3 if base3 else 2**bits
        nodes = [
            _constant(onnx, "first", np.int32(0)),
            _constant(onnx, "rows", np.int32(rows)),
            _constant(onnx, "one", np.int32(1)),
            _constant(onnx, "last", np.array([-1], np.int64)),
            _constant(onnx, "start", np.array([0], np.int64)),
            _constant(onnx, "powers", base ** np.arange(fields, dtype=np.int32)),
            _constant(onnx, "base", np.int32(base)),
            # The table: the levels of all fields in each number.
            _node(onnx, "Range", "first rows one", "numbers"),
            _node(onnx, "Unsqueeze", "numbers last", "column"),
            _node(onnx, "Div", "column powers", "quotients"),
            _node(onnx, "Mod", "quotients base", "digits"),
            _node(onnx, "Gather", "levels digits", "table"),
            _node(onnx, "Cast", "bytes", "words", to=onnx.TensorProto.INT32),
            *([_node(onnx, "Identity", "words", "indices")] if rows == 256 else _across_bytes(onnx, bits, fields)),
            _node(onnx, "Gather", "table indices", "values"),
            _node(onnx, "Reshape", "values last", "stream"),
            _node(onnx, "ReduceProd", "shape", "size", keepdims=1),
            _node(onnx, "Slice", "stream start size", "used"),
            _node(onnx, "Reshape", "used shape", "weights"),
        ]
        graph.functions[name] = ["bytes", "levels", "shape"], ["weights"], nodes
    return name


def _across_bytes(onnx: Any, bits: int, fields: int) -> list[Any]:
    """From bytes, int32, to numbers of `fields` fields, which reach over two bytes, for groups of `bits` bytes."""
    starts = np.arange(0, 8 * bits, fields * bits)
    lower = starts // 8
    upper = np.minimum(lower + 1, bits - 1)  # where a number ends with the group, its upper byte is cut off again
    return [
        _constant(onnx, "group", np.array([-1, bits], np.int64)),
        _constant(onnx, "byte", np.int32(256)),
        _constant(onnx, "lower", lower),
        _constant(onnx, "upper", upper),
        _constant(onnx, "shifts", 2 ** (starts % 8).astype(np.int32)),
        _constant(onnx, "group_size", np.array([bits], np.int64)),
        # Whole groups: as many zeros behind the bytes as are missing, 0 to bits - 1.
        _node(onnx, "Shape", "words", "count"),
        _node(onnx, "Neg", "count", "minus_count"),
        _node(onnx, "Mod", "minus_count group_size", "missing"),
        _node(onnx, "Concat", "start missing", "pads", axis=0),
        _node(onnx, "Pad", "words pads", "padded"),
        _node(onnx, "Reshape", "padded group", "groups"),
        _node(onnx, "Gather", "groups lower", "low", axis=1),
        _node(onnx, "Gather", "groups upper", "high", axis=1),
        _node(onnx, "Mul", "high byte", "raised"),
        _node(onnx, "Add", "low raised", "pairs"),
        _node(onnx, "Div", "pairs shifts", "shifted"),
        _node(onnx, "Mod", "shifted rows", "indices"),
    ]


def _node(onnx: Any, op: str, inputs: str, output: str, **attributes: Any) -> Any:
    return onnx.helper.make_node(op, inputs.split(), [output], **attributes)


def _constant(onnx: Any, name: str, array: Any) -> Any:
    array = np.asarray(array)
    data_type = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    value = onnx.TensorProto(data_type=data_type, dims=array.shape, raw_data=array.tobytes())
    return onnx.helper.make_node("Constant", [], [name], value=value)
