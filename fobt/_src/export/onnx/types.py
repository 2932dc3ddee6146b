"""In which dtype an ONNX operator computes: that of its inputs, or a wider one that holds all their values.

ONNX defines many operators for fewer dtypes than JAX has, and onnxruntime has kernels for fewer still. Inputs of
another dtype are cast to a carrier, and the result is cast back: rounding and wrapping around give what JAX computes.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

# Every value of a dtype is one of its carrier, and sums and products agree modulo the range of the dtype.
_CARRIERS = {
    **dict.fromkeys(("bool", "int8", "int16", "uint8", "uint16"), "int32"),
    "uint32": "int64",
    "bfloat16": "float32",
}
_FLOATS = {"float16", "float32", "float64"}
_NUMBERS = {"int32", "int64", *_FLOATS}
_NO_DOUBLE = _FLOATS - {"float64"}
_ALL = {*_CARRIERS, *_NUMBERS, "uint64"}

_TAKEN_BY_GROUP = [
    (_NO_DOUBLE, "Acos Acosh Asin Asinh Atan Atanh AveragePool Conv ConvTranspose Cosh Erf Sinh Tan"),
    (_FLOATS, "Ceil Cos Exp Floor Log Pow Reciprocal Round Sigmoid Sin Sqrt Tanh expm1 log1p"),
    ({*_NUMBERS, "uint64"}, "Add Div Equal Greater GreaterOrEqual Less LessOrEqual MatMul Max Min Mod Mul Sub"),
    ({"bool"}, "And Not Or Xor"),
    ({"int32", "int64", "uint64"}, "BitwiseAnd BitwiseNot BitwiseOr BitwiseXor"),
    ({"uint8", "uint16", "uint32", "uint64"}, "BitShift"),
    ({"int8", "uint8", *_FLOATS}, "MaxPool"),
    (_ALL - {"bfloat16"}, "Expand Tile"),
    (_ALL - {"int16", "uint16"}, "Pad"),
]
# What onnxruntime 1.32 runs on CPU, where that is not exactly `_NUMBERS`.
_TAKEN = {op: dtypes for dtypes, ops in _TAKEN_BY_GROUP for op in ops.split()}


class Unsupported(Exception):  # noqa: N818 - it becomes a ValueError, with the name of the primitive
    """What of a primitive has no counterpart in ONNX or no kernel in onnxruntime."""


def carrier(op: str, dtype: Any) -> np.dtype:
    """The dtype in which the operator computes for inputs of `dtype`."""
    name, taken = jnp.dtype(dtype).name, _TAKEN.get(op, _NUMBERS)
    for candidate in (name, _CARRIERS.get(name)):
        if candidate in taken:
            return np.dtype(jnp.dtype(candidate))
    raise Unsupported(f"of {name}, for which onnxruntime has no operator {op}")
