"""From StableHLO to a LiteRT model of float32, with errors that name what cannot be converted."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import jax

from fobt._src.export.litert.primitives import refusal

_SIGNATURE = "serving_default"
# Dialects that a file can hold, and the structure around them.
_WRITABLE = ("tfl.", "arith.constant", "func.", "builtin.", "quantfork.")


def convert(exported: jax.export.Exported, inputs: Sequence[str], outputs: Sequence[str]) -> bytes:
    """A LiteRT model of a function.

    Args:
      exported: the function.
      inputs: a name for every input.
      outputs: a name for every output.

    Returns:
      The content of a .tflite file, whose only signature is serving_default.

    Raises:
      ValueError: the converter has no model of an operation, which the message names.
      ImportError: the converter is not installed.
    """
    try:
        from litert_converter import converter_api_ext as converter
        from litert_converter.mlir import ir, passmanager
    except ImportError as error:
        raise ImportError("to_litert needs litert-converter: pip install --no-deps litert-converter.") from error
    config = converter.ConvertToTFLConfig()
    config.canonicalizing_inf_as_min_max_float = False
    context = ir.Context()
    converter.prepare_mlir_context(context)
    with context:
        module = ir.Module.parse(exported.mlir_module())
        converter.set_signature(module.operation, _SIGNATURE, list(inputs), list(outputs))
        passes = passmanager.PassManager()
        try:
            converter.run_convert_to_tfl_passes(module, passes, config)
            passes.run(module.operation)
            return converter.export_flatbuffer_to_bytes(module.operation)
        except (ValueError, ir.MLIRError) as error:
            raise refusal(*_failed(str(error), module, ir.WalkResult.ADVANCE)) from error


def check_runs(model: bytes, exported: jax.export.Exported) -> None:
    """Raises a ValueError where LiteRT cannot run a model: some operations have a form in files, but no kernel."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise ImportError("to_litert needs the package ai-edge-litert: pip install 'fobt[litert]'.") from error
    try:
        interpreter = Interpreter(model_content=model)
        # Symbolic sizes are 1 until inputs are resized, which need not suit the function.
        if all(isinstance(size, int) for aval in exported.in_avals for size in aval.shape):
            interpreter.allocate_tensors()
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"function has a model that LiteRT cannot run: {_one_line(str(error))}.") from error


def _failed(message: str, module: Any, advance: Any) -> tuple[str, str]:
    """The primitives of the operations that a message is about, and what it says of them.

    The converter names an operation, or says nothing; then those are meant that a file cannot hold. The location of
    an operation ends with the name of its primitive.
    """
    named, left = [], []

    def visit(operation: Any) -> Any:
        primitive = re.search(r'"jit\([^"]*/([^"/]+)"', str(operation.location))
        if f"'{operation.name}'" in message:
            named.append(primitive[1] if primitive else operation.name)
        elif not operation.name.startswith(_WRITABLE):
            left.append(primitive[1] if primitive else operation.name)
        return advance

    module.operation.walk(visit)
    said = re.search(r"error: (.*)", message) or re.search(r"(TF Select ops: .*)", message)
    reason = f"its converter says: {said[1]}" if said else "it has no counterpart"
    return ", ".join(dict.fromkeys(named or left)) or "an operation", reason


def _one_line(message: str) -> str:
    return " ".join(message.split()).rstrip(".")
