"""Functions of quantized weights as models for other runtimes, ONNX and LiteRT, and weights for llama.cpp, GGUF."""

from fobt._src.export.gguf.convert import to_gguf
from fobt._src.export.litert.convert import to_litert
from fobt._src.export.onnx.convert import to_onnx
from fobt._src.export.operator_report import operator_report
from fobt._src.export.report import LeafOperator, OperatorReport

__all__ = ["LeafOperator", "OperatorReport", "operator_report", "to_gguf", "to_litert", "to_onnx"]
