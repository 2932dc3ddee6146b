"""Convolution and pooling as ONNX operators, which have batch and channels in front of the axes they slide along."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from fobt._src.export.onnx.elementwise import Converter, elementwise, number_like
from fobt._src.export.onnx.graph import Codes, Graph, Pending, Value
from fobt._src.export.onnx.shapes import exact, window
from fobt._src.export.onnx.types import Unsupported
from fobt._src.export.weights import Weights

_MOST_SLIDING_AXES = 3  # of pooling and convolution in onnxruntime


def convolution(graph: Graph, eqn: Any, images: Value, kernel: Value) -> Value:
    """A convolution with any order of axes, stride, padding, dilation of the kernel and groups of channels.

    One of images with zeros between their pixels (`lhs_dilation`) is what ONNX calls a transposed convolution.
    """
    params, out = eqn.params, eqn.outvars[0].aval
    if params["batch_group_count"] != 1:
        raise Unsupported(f"with batch_group_count {params['batch_group_count']}")
    if len(out.shape) - 2 > _MOST_SLIDING_AXES:
        raise Unsupported(f"along {len(out.shape) - 2} axes, of which onnxruntime takes {_MOST_SLIDING_AXES}")
    if isinstance(images, Codes) and isinstance(kernel, Weights) and out.dtype == np.float32:
        pending = _pending(graph, eqn, images, kernel)
        if pending is not None:
            return pending
    return _computed(graph, eqn, images, kernel)


def _pending(graph: Graph, eqn: Any, images: Codes, kernel: Weights) -> Pending | None:
    """The convolution of codes as one that waits for what becomes of its output, if it can be one of integers."""
    numbers, out = eqn.params["dimension_numbers"], eqn.outvars[0].aval
    (batch, channels, *places), kernel_axes = numbers.lhs_spec, kernel.transpose(numbers.rhs_spec)
    is_last = tuple(numbers.out_spec) == (0, len(out.shape) - 1, *range(1, len(out.shape) - 1))
    if not is_last or not graph.form.takes_codes(eqn.params, kernel_axes):
        return None
    codes = graph.transpose(images, [batch, *places, channels])
    assert isinstance(codes, Codes)
    return Pending(tuple(out.shape), codes, kernel_axes, eqn.params, lambda: _computed(graph, eqn, images, kernel))


def _computed(graph: Graph, eqn: Any, images: Value, kernel: Value) -> Value:
    """The convolution as an array of floats."""
    params, numbers, out = eqn.params, eqn.params["dimension_numbers"], eqn.outvars[0].aval
    dtype = np.dtype(out.dtype)
    if isinstance(kernel, Weights) and dtype == images.dtype:
        product = _in_integers(graph, eqn, images, kernel)
        if product is not None:
            return product
    images = graph.transpose(graph.cast(exact(graph, eqn, images), dtype), numbers.lhs_spec)
    kernel = graph.transpose(graph.cast(exact(graph, eqn, kernel, 1), dtype), numbers.rhs_spec)
    shape = [out.shape[axis] for axis in numbers.out_spec]
    is_transposed = any(dilation != 1 for dilation in params["lhs_dilation"])
    convolve = _transposed if is_transposed else _ordinary
    output = convolve(graph, params, images, kernel, shape)
    return graph.transpose(output, np.argsort(numbers.out_spec).tolist())


def _in_integers(graph: Graph, eqn: Any, images: Value, kernel: Weights) -> Value | None:
    """The convolution as the form of the model computes it, if it does: with channels in the last axis."""
    numbers = eqn.params["dimension_numbers"]
    (batch, channels, *places), (outputs, inputs, *window_axes) = numbers.lhs_spec, numbers.rhs_spec
    images = graph.transpose(exact(graph, eqn, images), [batch, *places, channels])
    product = graph.form.convolution(graph, eqn.params, images, kernel.transpose([*window_axes, inputs, outputs]))
    if product is None:
        return None
    batch, channels, *places = numbers.out_spec
    return graph.transpose(product, np.argsort([batch, *places, channels]).tolist())


def _ordinary(graph: Graph, params: Mapping[str, Any], images: Value, kernel: Value, shape: Sequence[Any]) -> Value:
    images, padding = _cut(graph, images, params["padding"])
    return graph.compute(
        "Conv",
        [images, kernel],
        shape,
        strides=params["window_strides"],
        pads=np.array(padding, int).T.ravel().tolist(),
        dilations=params["rhs_dilation"],
        group=params["feature_group_count"],
    )


def _cut(graph: Graph, images: Value, padding: Sequence[Sequence[int]]) -> tuple[Value, list[tuple[int, int]]]:
    """The images without the pixels that a negative padding takes away, and the padding that is left."""
    cuts = [(0, 0), (0, 0), *((max(-low, 0), max(-high, 0)) for low, high in padding)]
    if any(size for pair in cuts for size in pair):
        ends = [size - high for size, (_, high) in zip(images.shape, cuts, strict=True)]
        starts = [low for low, _ in cuts]
        shape = [end - start for start, end in zip(starts, ends, strict=True)]
        images = window(graph, images, starts, ends, shape)
    return images, [(max(low, 0), max(high, 0)) for low, high in padding]


def _transposed(graph: Graph, params: Mapping[str, Any], images: Value, kernel: Value, shape: Sequence[Any]) -> Value:
    """With strides s, windows of k pixels that are d apart and padding (p, q): pads d (k - 1) - p and d (k - 1) - q."""
    if any(stride != 1 for stride in params["window_strides"]):
        raise Unsupported(f"with window_strides {params['window_strides']} of dilated images")
    groups, dilations = params["feature_group_count"], params["rhs_dilation"]
    reach = [dilation * (size - 1) for dilation, size in zip(dilations, kernel.shape[2:], strict=True)]
    pads = [(whole - low, whole - high) for whole, (low, high) in zip(reach, params["padding"], strict=True)]
    # A kernel that is turned round, with inputs in front; each group of channels has its own.
    kernel = graph.reverse(kernel, range(2, len(kernel.shape)))
    outputs, inputs, *window_shape = kernel.shape
    if groups > 1:
        kernel = graph.reshape(kernel, [groups, outputs // groups, inputs, *window_shape])
        kernel = graph.transpose(kernel, [0, 2, 1, *range(3, len(kernel.shape))])
        kernel = graph.reshape(kernel, [groups * inputs, outputs // groups, *window_shape])
    else:
        kernel = graph.transpose(kernel, [1, 0, *range(2, len(kernel.shape))])
    cut = [(max(low, 0), max(high, 0)) for low, high in pads]
    grown = [(max(-low, 0), max(-high, 0)) for low, high in pads]
    inner = [size - low - high for size, (low, high) in zip(shape[2:], grown, strict=True)]
    output = graph.compute(
        "ConvTranspose",
        [images, kernel],
        [*shape[:2], *inner],
        strides=params["lhs_dilation"],
        pads=np.array(cut, int).T.ravel().tolist(),
        dilations=dilations,
        group=groups,
    )
    if not any(size for pair in grown for size in pair):
        return output
    # Beyond the reach of the kernel there are zeros.
    around = np.array([(0, 0), (0, 0), *grown], np.int64).T.ravel()
    return graph.compute("Pad", [output], shape, [around])


def max_pooling(graph: Graph, eqn: Any, images: Value) -> Value:
    """Maxima over windows; padding never wins."""
    if isinstance(images, Codes):
        return images.moved(_pooling(graph, eqn, images.codes, "MaxPool"))
    return _pooling(graph, eqn, images, "MaxPool")


def min_pooling(graph: Graph, eqn: Any, images: Value) -> Value:
    """Minima over windows; padding never wins."""
    negate = elementwise("Neg")
    return negate(graph, eqn, _pooling(graph, eqn, negate(graph, eqn, images), "MaxPool"))


def sum_pooling(graph: Graph, eqn: Any, images: Value) -> Value:
    """Sums over windows: averages that count the padding, times the size of the window."""
    averages = _pooling(graph, eqn, images, "AveragePool", count_include_pad=1)
    size = number_like(averages, math.prod(eqn.params["window_dimensions"]))
    return elementwise("Mul")(graph, eqn, averages, size)


def _pooling(graph: Graph, eqn: Any, images: Value, op: str, **attributes: Any) -> Value:
    params, shape = eqn.params, eqn.outvars[0].aval.shape
    names = ("window_dimensions", "window_strides", "window_dilation", "padding")
    windows = list(zip(*(params[name] for name in names), strict=True))
    if any(dilation != 1 for dilation in params["base_dilation"]):
        raise Unsupported("of dilated images")
    if any(size < 0 for pair in params["padding"] for size in pair):
        raise Unsupported(f"with padding {params['padding']}, which is negative")
    if any(
        max(pair) >= size
        for size, pair in zip(params["window_dimensions"], params["padding"], strict=True)
        if any(pair)
    ):
        raise Unsupported(f"with padding {params['padding']}, as wide as the window")
    still = [axis for axis, window in enumerate(windows) if window == (1, 1, 1, (0, 0))]
    front = [still[0], still[-1]] if len(still) > 1 else []
    sliding = [axis for axis in range(len(windows)) if axis not in front]
    if len(sliding) > _MOST_SLIDING_AXES:
        raise Unsupported(f"along {len(sliding)} axes, of which onnxruntime takes {_MOST_SLIDING_AXES}")
    order = front + sliding
    missing = [1, 1] if not front else []  # axes that ONNX wants
    images = graph.transpose(exact(graph, eqn, images), order)
    images = graph.reshape(images, [*missing, *images.shape])
    output = graph.compute(
        op,
        [images],
        [*missing, *(shape[axis] for axis in order)],
        kernel_shape=[windows[axis][0] for axis in sliding],
        strides=[windows[axis][1] for axis in sliding],
        dilations=[windows[axis][2] for axis in sliding],
        pads=np.array([windows[axis][3] for axis in sliding], int).T.ravel().tolist(),
        **attributes,
    )
    return graph.transpose(graph.reshape(output, [shape[axis] for axis in order]), np.argsort(order).tolist())


WINDOWS: Mapping[str, Converter] = MappingProxyType(
    {
        "conv_general_dilated": convolution,
        "reduce_window_max": max_pooling,
        "reduce_window_min": min_pooling,
        "reduce_window_sum": sum_pooling,
    }
)
