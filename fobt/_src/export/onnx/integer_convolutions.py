"""Convolutions with kernels of few bits.

Where images come in codes and the output is rounded to codes, that is onnxruntime's QLinearConv with channels last.
Otherwise it is windows of 8-bit images side by side, times a matrix of integers: onnxruntime's ConvInteger is several
times slower than its Conv of float32; this is faster where there are enough output channels to pay for the copies.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fobt._src.export.integers import Integers
from fobt._src.export.onnx.graph import Codes, Graph, Pending, Tensor
from fobt._src.export.onnx.integer_products import DOMAIN, int8_weights
from fobt._src.export.onnx.shapes import window

_LARGEST = 64


def windows(
    graph: Graph, images: Sequence[Tensor | np.ndarray], params: Mapping[str, Any], sizes: tuple[int, ...]
) -> Sequence[Tensor | np.ndarray]:
    """For each place of a kernel of some size the numbers it meets there, side by side in the last axis.

    Args:
      graph: where they are computed.
      images: [batch, ..., channels], uint8, its scale and its zero point.
      params: those of the convolution, with no negative padding, no groups and no dilated images.
      sizes: the size of the kernel along each axis in the middle.
    """
    values, scale, zero = images
    assert isinstance(values, Tensor)
    padding, strides, dilations = (params[name] for name in ("padding", "window_strides", "rhs_dilation"))
    pads = np.array([(0, 0), *padding, (0, 0)], np.int64)
    shape = [size + low + high for size, (low, high) in zip(values.shape, pads.tolist(), strict=True)]
    if pads.any():
        values = graph.add("Pad", [values, pads.T.ravel(), zero], shape)
    reaches = [dilation * (size - 1) + 1 for dilation, size in zip(dilations, sizes, strict=True)]
    counts = [(size - reach) // stride + 1 for size, reach, stride in zip(shape[1:-1], reaches, strides, strict=True)]
    parts = []
    out = [shape[0], *counts, shape[-1]]
    for place in itertools.product(*map(range, sizes)):
        starts = [0, *(i * dilation for i, dilation in zip(place, dilations, strict=True)), 0]
        ends = [
            start + (count - 1) * stride + 1 for start, count, stride in zip(starts[1:-1], counts, strides, strict=True)
        ]
        parts.append(window(graph, values, starts, [shape[0], *ends, shape[-1]], out, [1, *strides, 1]))
    if len(parts) == 1:
        joined = parts[0]
    else:
        joined = graph.add("Concat", parts, [*out[:-1], len(parts) * out[-1]], axis=len(out) - 1)
    assert isinstance(joined, Tensor)
    return [joined, scale, zero]


def bias_in_steps(pending: Pending, kernel: Integers) -> np.ndarray | None:
    """The bias in units of the products of codes and integers, float64, or None without one."""
    if pending.bias is None:
        return None
    unit = pending.images.scale.astype(np.float64) * kernel.step.ravel() / _factor(kernel)
    return np.round(pending.bias / unit)


def _factor(kernel: Integers) -> int:
    """A power of two by which integers can be larger, so that a bias, which is rounded to their units, is finer.

    Up to 64: without VNNI two products of 8 bits are added up in 16.
    """
    return 2 ** int(np.log2(_LARGEST / max(1, np.abs(kernel.codes).max())))


def quantized_convolution(
    graph: Graph, pending: Pending, kernel: Integers, scale: np.ndarray, zero: np.ndarray
) -> Codes:
    """A convolution from codes to codes of a scale and zero point, with its bias, ReLU and maxima over windows."""
    bias = bias_in_steps(pending, kernel)
    weights, step = int8_weights(graph, kernel, 1 if bias is None else _factor(kernel))
    params, images = pending.params, pending.images
    inputs: list[Tensor | np.ndarray] = [images.codes, images.scale, images.zero]
    inputs += [weights, step, np.zeros(np.shape(step), np.int8), scale, zero]
    inputs += [] if bias is None else [bias.astype(np.int32)]
    sizes = kernel.codes.shape[2:]
    counts = [
        (size + low + high - dilation * (reach - 1) - 1) // stride + 1
        for size, (low, high), dilation, reach, stride in zip(
            images.shape[1:-1], params["padding"], params["rhs_dilation"], sizes, params["window_strides"], strict=True
        )
    ]
    output = graph.add(
        "QLinearConv",
        inputs,
        (images.shape[0], *counts, kernel.codes.shape[0]),
        np.uint8,
        domain=DOMAIN,
        channels_last=1,
        strides=params["window_strides"],
        pads=np.array(params["padding"], int).T.ravel().tolist(),
        dilations=params["rhs_dilation"],
        group=params["feature_group_count"],
    )
    if pending.is_positive and zero > 0:
        output = graph.add("Clip", [output, zero], output.shape)
    codes = Codes(output, scale, zero)
    for pooling in pending.poolings:
        pooled = pooling(codes)
        assert isinstance(pooled, Codes)
        codes = pooled
    return codes
