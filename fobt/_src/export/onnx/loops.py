"""Loops of a known number of steps, unrolled: every layer of a scan has nodes and weights of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fobt._src.export.onnx.graph import Constant, Graph, Value
from fobt._src.export.onnx.types import Unsupported
from fobt._src.export.weights import Weights


def unrolled(graph: Graph, eqn: Any, inputs: list[Value], convert: Callable[..., list[Value]]) -> list[Value]:
    """The outputs of a scan; `convert` converts its jaxpr for the inputs of one step."""
    params, length = eqn.params, eqn.params["length"]
    if not isinstance(length, int):
        raise Unsupported(f"of {length} steps")
    begin, end = params["num_consts"], params["num_consts"] + params["num_carry"]
    constants, carry, stacked = inputs[:begin], inputs[begin:end], inputs[end:]
    steps: list[list[Value]] = [[] for _ in range(length)]
    for i in reversed(range(length)) if params["reverse"] else range(length):
        rows = [_row(graph, value, i) for value in stacked]
        outputs = convert(graph, params["jaxpr"], [*constants, *carry, *rows])
        carry, steps[i] = outputs[: len(carry)], outputs[len(carry) :]
    avals = [var.aval for var in eqn.outvars[len(carry) :]]
    return [*carry, *(_stack(graph, [step[i] for step in steps], aval) for i, aval in enumerate(avals))]


def _row(graph: Graph, value: Value, index: int) -> Value:
    """What is at an index of the first axis, along which a broadcast may have been left to the operators."""
    index = min(index, value.shape[0] - 1)
    if isinstance(value, Constant):
        return Constant(value.array[index])
    if isinstance(value, Weights) and (row := value.row(index)) is not None:
        return row
    return graph.add("Gather", [value, np.array(index)], value.shape[1:], axis=0)


def _stack(graph: Graph, rows: list[Value], aval: Any) -> Value:
    """What the steps return, each in the full shape, along a new first axis."""
    if not rows:
        return Constant(np.zeros(aval.shape, aval.dtype))
    if all(isinstance(row, Constant) for row in rows):
        return Constant(np.stack([row.array for row in rows if isinstance(row, Constant)]))
    return graph.compute("Concat", [graph.reshape(row, (1, *row.shape)) for row in rows], aval.shape, axis=0)
