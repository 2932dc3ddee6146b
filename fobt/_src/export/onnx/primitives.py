"""The primitives of JAX that have a counterpart in ONNX.

A converter takes the graph, the equation and the values of its inputs, and returns the value of its output, or a list
where the primitive has several. It raises `Unsupported` where parameters or dtypes have no counterpart.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from fobt._src.export.onnx.elementwise import ELEMENTWISE, Converter
from fobt._src.export.onnx.reductions import REDUCTIONS
from fobt._src.export.onnx.shapes import SHAPES
from fobt._src.export.onnx.windows import WINDOWS

CONVERTERS: Mapping[str, Converter] = MappingProxyType(
    dict(sorted({**ELEMENTWISE, **REDUCTIONS, **SHAPES, **WINDOWS}.items()))
)
