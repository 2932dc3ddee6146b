"""Convolution and pooling as ONNX operators, which have batch and channels in front of the axes they slide along."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fobt._onnx_graph import Graph, Value


def convolution(graph: Graph, eqn: Any, images: Value, kernel: Value) -> Value:
    """A convolution with any order of axes, stride, padding, dilation of the kernel and groups of channels."""
    params = eqn.params
    if params["batch_group_count"] != 1 or any(dilation != 1 for dilation in params["lhs_dilation"]):
        raise _unsupported(eqn, "groups in the batch, or dilated images")
    if any(size < 0 for pair in params["padding"] for size in pair):
        raise _unsupported(eqn, f"padding {params['padding']}, which is negative")
    numbers = params["dimension_numbers"]
    images = graph.expand(images, eqn.invars[0].aval.shape)
    inputs = [graph.transpose(images, numbers.lhs_spec), graph.transpose(kernel, numbers.rhs_spec)]
    shape = eqn.outvars[0].aval.shape
    output: Value = graph.add(
        "Conv",
        inputs,
        [shape[axis] for axis in numbers.out_spec],
        strides=params["window_strides"],
        pads=np.array(params["padding"]).T.ravel().tolist(),
        dilations=params["rhs_dilation"],
        group=params["feature_group_count"],
    )
    output = graph.transpose(output, np.argsort(numbers.out_spec).tolist())
    if eqn.outvars[0].aval.dtype == eqn.invars[0].aval.dtype:
        return output
    data_type = graph.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(eqn.outvars[0].aval.dtype))
    return graph.add("Cast", [output], shape, to=data_type)


def max_pooling(graph: Graph, eqn: Any, images: Value) -> Value:
    """Maxima over windows; padding never wins."""
    return _pooling(graph, eqn, images, "MaxPool")


def sum_pooling(graph: Graph, eqn: Any, images: Value) -> Value:
    """Sums over windows: averages that count the padding, times the size of the window."""
    averages = _pooling(graph, eqn, images, "AveragePool", count_include_pad=1)
    size = np.asarray(math.prod(eqn.params["window_dimensions"]), eqn.outvars[0].aval.dtype)
    return graph.add("Mul", [averages, size], averages.shape)


def _pooling(graph: Graph, eqn: Any, images: Value, op: str, **attributes: Any) -> Value:
    params = eqn.params
    names = ("window_dimensions", "window_strides", "window_dilation", "padding")
    windows = list(zip(*(params[name] for name in names), strict=True))
    if any(dilation != 1 for dilation in params["base_dilation"]):
        raise _unsupported(eqn, "dilated images")
    still = [axis for axis, window in enumerate(windows) if window == (1, 1, 1, (0, 0))]
    if len(still) < 2:
        raise _unsupported(eqn, f"window_dimensions {params['window_dimensions']}: two axes must have no windows")
    front = [still[0], still[-1]]
    sliding = [axis for axis in range(len(windows)) if axis not in front]
    order = front + sliding
    shape = eqn.outvars[0].aval.shape
    images = graph.transpose(graph.expand(images, eqn.invars[0].aval.shape), order)
    output: Value = graph.add(
        op,
        [images],
        [shape[axis] for axis in order],
        kernel_shape=[windows[axis][0] for axis in sliding],
        strides=[windows[axis][1] for axis in sliding],
        dilations=[windows[axis][2] for axis in sliding],
        pads=np.array([windows[axis][3] for axis in sliding]).T.ravel().tolist(),
        **attributes,
    )
    return graph.transpose(output, np.argsort(order).tolist())


def _unsupported(eqn: Any, what: str) -> ValueError:
    return ValueError(f"function has the primitive {eqn.primitive.name} with {what}, which to_onnx cannot convert.")
