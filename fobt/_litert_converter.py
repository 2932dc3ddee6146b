"""From StableHLO to a LiteRT model of float32, with errors that name what cannot be converted."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import jax

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
        converter.run_convert_to_tfl_passes(module, passes, config)
        try:
            passes.run(module.operation)
            return converter.export_flatbuffer_to_bytes(module.operation)
        except (ValueError, ir.MLIRError) as error:
            raise ValueError(f"function has no LiteRT model: {_reasons(str(error), module, ir)}.") from error


def check_runs(model: bytes, exported: jax.export.Exported) -> None:
    """Raises a ValueError where LiteRT cannot run a model: some operations have a form in files, but no kernel."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise ImportError("to_litert needs the package ai-edge-litert: pip install 'fobt[litert]'.") from error
    try:
        interpreter = Interpreter(model_content=model)
        # Symbolic sizes are 1 until inputs are resized, which need not suit the function.
        if not any(isinstance(size, int) is False for aval in exported.in_avals for size in aval.shape):
            interpreter.allocate_tensors()
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"function has a model that LiteRT cannot run: {_one_line(str(error))}.") from error


def _reasons(message: str, module: Any, ir: Any) -> str:
    """What the converter says, or, where it says nothing, the operations that are left."""
    said = re.findall(r"error: (.*?)(?: that was explicitly marked illegal.*)?$", message, re.MULTILINE)
    said += re.findall(r"TF Select ops: .*", message)
    if said:
        return "; ".join(dict.fromkeys(said))
    left: list[str] = []

    def visit(operation: Any) -> Any:
        if not operation.name.startswith(_WRITABLE):
            left.append(operation.name)
        return ir.WalkResult.ADVANCE

    module.operation.walk(visit)
    return f"it has no counterpart of {', '.join(dict.fromkeys(left))}" if left else _one_line(message)


def _one_line(message: str) -> str:
    return " ".join(message.split()).rstrip(".")
