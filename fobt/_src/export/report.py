"""Which operators multiply by the weights of an exported model, and why."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

KEY = "fobt.operators"  # of the report in the metadata of a model


@dataclasses.dataclass(frozen=True)
class LeafOperator:
    """What becomes of one leaf in one place.

    Attributes:
      path: where the leaf is in its tree.
      shape: its shape where it is used; of a matrix inputs × outputs.
      stored_as: what the file holds.
      operator: what the runtime multiplies by it with.
      reason: why it is this operator.

    Example:
      See `operator_report`.
    """

    path: str
    shape: tuple[int, ...]
    stored_as: str
    operator: str
    reason: str


@dataclasses.dataclass(frozen=True)
class OperatorReport:
    """The operators of all leaves; `str` gives a table.

    Attributes:
      leaves: an entry for each leaf and place.

    Example:
      See `operator_report`.
    """

    leaves: tuple[LeafOperator, ...]

    def __str__(self) -> str:
        rows = [("path", "shape", "stored as", "operator", "because")]
        rows += [
            (leaf.path, "×".join(map(str, leaf.shape)), leaf.stored_as, leaf.operator, leaf.reason)
            for leaf in self.leaves
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
        )


def described(leaves: Sequence[LeafOperator]) -> str:
    """The entries as the metadata of a model hold them, each one once."""
    return json.dumps([dataclasses.astuple(leaf) for leaf in dict.fromkeys(leaves)], ensure_ascii=False)


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
        from fobt._src.export.litert.graph import read_metadata

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
