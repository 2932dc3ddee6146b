"""Activations of 8 bits in a LiteRT model: from codes to codes, wherever layers and roundings follow each other.

`in_known_primitives` leaves a composite for each `fobt.fake_quantize`, with scale and zero point in its name. Here it
becomes QUANTIZE and DEQUANTIZE. What only moves codes, or takes the largest, then works on codes; and a dense layer or
a convolution between DEQUANTIZE and QUANTIZE becomes one of integers, with its bias, ReLU and pooling.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fobt._src.export.litert.graph import Graph

PREFIX = "fobt.fake_quantize"
_LAYERS = {"FULLY_CONNECTED": 0, "CONV_2D": 0, "DEPTHWISE_CONV_2D": 3}  # and the axis of outputs of their weights
_MOVING = ("MAX_POOL_2D", "RESHAPE", "TRANSPOSE", "SLICE", "STRIDED_SLICE", "SQUEEZE", "EXPAND_DIMS")


def composite_name(scale: float, zero: int) -> str:
    """The name of a composite: the bits of the scale, float32, and the zero point among unsigned codes."""
    return f"{PREFIX}.{np.float32(scale).view(np.uint32)}.{zero}"


def _named(name: str) -> tuple[np.float32, int]:
    """The scale in a name, and the zero point among LiteRT's codes, which begin at -128."""
    bits, zero = name.removeprefix(f"{PREFIX}.").split(".")
    return np.uint32(bits).view(np.float32), int(zero) - 128


def quantize_activations(graph: Graph, *, layers: bool) -> dict[int, str]:
    """Puts integers in the place of composites and of what is between them.

    Args:
      graph: the model.
      layers: whether dense layers and convolutions compute in integers, too.

    Returns:
      The kinds of those layers, by the tensors of their weights.
    """
    codes = _codes(graph)
    if not codes:
        return {}
    _move(graph, codes)
    changed = {}
    for operator in graph.operators if layers else ():
        if (weights := _in_integers(graph, operator, codes)) is not None:
            changed[weights] = graph.name_of(operator)
    graph.operators = [operator for operator in graph.operators if not _is_idle(graph, operator)]
    graph.drop_composites()
    return changed


def _is_idle(graph: Graph, operator: Any) -> bool:
    """Whether floats of an operator that makes them of codes are not read any more."""
    (target, *_) = operator.outputs
    return graph.name_of(operator) == "DEQUANTIZE" and not graph.users(target) and not graph.is_output(target)


def _codes(graph: Graph) -> dict[int, int]:
    """QUANTIZE and DEQUANTIZE for each composite; the codes of tensors of float32."""
    operators, codes = [], {}
    for operator in graph.operators:
        name = graph.composite(operator)
        if name is None or not name.startswith(PREFIX):
            operators.append(operator)
            continue
        (source, *_), (target,) = operator.inputs, operator.outputs
        codes[target] = graph.new_codes(target, *_named(name))
        operators.append(graph.new_operator("QUANTIZE", source, codes[target]))
        operators.append(graph.new_operator("DEQUANTIZE", codes[target], target))
    graph.operators = operators
    return codes


def _move(graph: Graph, codes: dict[int, int]) -> None:
    """What only moves codes moves them, and not floats."""
    operators = []
    for operator in graph.operators:
        operators.append(operator)
        if graph.name_of(operator) in _MOVING and operator.inputs[0] in codes:
            source, (target,) = codes[operator.inputs[0]], operator.outputs
            (scale,), zero = graph.scales(source), graph.zero(source)
            codes[target] = graph.new_codes(target, scale, zero)
            operator.inputs[0], operator.outputs = source, [codes[target]]
            operators.append(graph.new_operator("DEQUANTIZE", codes[target], target))
    graph.operators = operators


def _in_integers(graph: Graph, layer: Any, codes: dict[int, int]) -> int | None:
    """Makes a layer one of integers, if it is between codes and QUANTIZE; its weights, then."""
    name = graph.name_of(layer)
    if name not in _LAYERS or layer.inputs[0] not in codes:
        return None
    images, weights = codes[layer.inputs[0]], graph.codes_of(layer.inputs[1])
    if weights is None or not (graph.has_no_activation(layer) or graph.has_relu(layer)):
        return None
    given = [tensor for tensor in layer.inputs[2:] if tensor >= 0]
    outputs = graph.shape(weights)[_LAYERS[name]]
    bias = graph.floats(given[0]) if given else np.zeros(outputs, np.float32)
    followers: list[Any] = []  # from the layer to QUANTIZE
    has_relu, tensor = graph.has_relu(layer), layer.outputs[0]
    while not followers or graph.name_of(followers[-1]) != "QUANTIZE":
        users = graph.users(tensor)
        if bias is None or len(users) != 1 or graph.is_output(tensor):
            return None
        (user,) = users
        name = graph.name_of(user)
        if name == "ADD" and not has_relu:
            added = next((graph.floats(other) for other in user.inputs if other != tensor), None)
            is_plain = graph.has_no_activation(user)
            if added is None or added.size not in (1, bias.size) or not (is_plain or graph.has_relu(user)):
                return None
            bias, has_relu = bias + added.reshape(-1), not is_plain
        elif name == "RELU":
            has_relu = True
        elif name not in ("QUANTIZE", "MAX_POOL_2D"):
            return None
        followers.append(user)
        tensor = user.outputs[0]
    if np.any(bias):
        graph.enlarge(weights)  # a bias is rounded to products of their scales
    unit = graph.scales(images).astype(np.float64) * graph.scales(weights)
    rounded = np.round(bias / unit)
    if np.any(np.abs(rounded) >= 2**31):
        return None
    # Maxima change places with all others; what follows the layer is done by it, the last one of all gives the codes.
    layer.inputs = [images, weights, graph.new_bias(rounded.astype(np.int32), unit.astype(np.float32))]
    if has_relu:
        graph.set_relu(layer)
    (scale,), zero = graph.scales(tensor), graph.zero(tensor)
    last = layer
    for user in followers:
        if graph.name_of(user) == "MAX_POOL_2D":
            between = graph.new_codes(user.inputs[0], scale, zero)
            last.outputs, user.inputs = [between], [between]
            last = user
        else:
            graph.remove(user)
    last.outputs = [tensor]
    return weights
