"""Activations of 8 bits in an ONNX graph: what `fobt.fake_quantize` rounds, and convolutions between two roundings."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fobt._src.export.onnx.graph import Codes, Constant, Graph, Pending, Value


def quantized_activations(graph: Graph, inputs: Sequence[Value]) -> Codes | None:
    """The codes of activations; None where they have no 8 bits or a range that is not known: then they are floats.

    Args:
      graph: where they are computed.
      inputs: the activations, float32, their scale, zero point and largest code.
    """
    x, *numbers = inputs
    known = [number.array for number in numbers if isinstance(number, Constant) and number.shape == ()]
    if len(known) < len(numbers) or x.dtype != np.float32 or known[2] != 255:
        return None
    scale, zero = known[0].astype(np.float32), known[1].astype(np.uint8)
    if isinstance(x, Pending) and (codes := graph.form.rounded(graph, x, scale, zero)) is not None:
        return codes
    return Codes(graph.add("QuantizeLinear", [x, scale, zero], x.shape, np.uint8), scale, zero)


def followed(graph: Graph, eqn: Any, inputs: Sequence[Value], convert: Callable[..., Any]) -> Pending | None:
    """What is still pending after an equation: a bias, ReLU, or maxima over windows; None for all others.

    Maxima of each channel change places with a bias, with ReLU and with rounding.
    """
    name, pending = eqn.primitive.name, next((value for value in inputs if isinstance(value, Pending)), None)
    if pending is None:
        return None
    others = [value for value in inputs if value is not pending]
    changes: dict[str, Any]
    if name == "reduce_window_max" and eqn.params["window_dimensions"][-1] == 1:
        changes = {"poolings": (*pending.poolings, lambda codes: convert(graph, eqn, codes))}
    elif len(others) != 1 or not isinstance(others[0], Constant):
        return None
    elif name == "max" and not np.any(others[0].array):
        changes = {"is_positive": True}
    elif name == "add" and not pending.is_positive and math.prod(others[0].shape[:-1]) == 1:
        bias = np.broadcast_to(others[0].array.reshape(-1), pending.shape[-1:])
        changes = {"bias": bias if pending.bias is None else pending.bias + bias}
    else:
        return None
    shape = tuple(eqn.outvars[0].aval.shape)
    if not changes.get("poolings") and shape != pending.shape:
        return None

    def make() -> Value:
        return convert(graph, eqn, *(pending.value if value is pending else value for value in inputs))

    return dataclasses.replace(pending, shape=shape, make=make, **changes)
