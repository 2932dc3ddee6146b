"""The report of operators that an exported model has in its metadata."""

from __future__ import annotations

import json
from typing import Any

from fobt._src.export.litert.graph import read_metadata
from fobt._src.export.report import KEY, LeafOperator, OperatorReport


def operator_report(model: Any) -> OperatorReport:
    """Which operators multiply by the weights of an exported model, and why: a choice that `form="fast"` makes.

    Args:
      model: an `onnx.ModelProto` of `to_onnx`, or the content of a file of `to_litert`, with `form="fast"`.

    Returns:
      The operators; printed they are a table. Leaves that the function does not use are left out.

    Raises:
      ValueError: the model has no report: its form is portable, or it is not of this library.

    Example:
      >>> import fobt
      >>> import jax.numpy as jnp
      >>> params = {"first": jnp.ones((784, 256)), "last": jnp.ones((256, 10))}
      >>> quantized = fobt.quantize(params, None, fobt.binary())
      >>> def function(w, x): return x @ w["first"] @ w["last"]
      >>> model = fobt.export.to_onnx(function, quantized, jnp.ones((1, 784)), form="fast")
      >>> print(fobt.export.operator_report(model))
      path   shape    stored as  operator             because
      first  784×256  1 bit      MatMulNBits, 4 bits  1 row at a time
      last   256×10   1 bit      float32              fewer than 131,072 weights or 64 outputs
    """
    if isinstance(model, bytes):
        content = read_metadata(model, KEY)
    else:
        content = next((entry.value for entry in model.metadata_props if entry.key == KEY), None)
    if content is None:
        raise ValueError("model must be one that was exported with form='fast', got one without a report.")
    return OperatorReport(
        tuple(
            LeafOperator(path, tuple(shape), stored_as, operator, reason)
            for path, shape, stored_as, operator, reason in json.loads(content)
        )
    )
