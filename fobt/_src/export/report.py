"""Which operators multiply by the weights of an exported model, and why."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

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
