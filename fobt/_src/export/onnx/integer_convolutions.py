"""Convolutions with kernels of few bits: windows of 8-bit images side by side, times a matrix of integers.

onnxruntime's ConvInteger is several times slower than its Conv of float32; this is faster where there are enough output
channels to pay for the copies of the windows.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from fobt._src.export.onnx.graph import Graph, Tensor
from fobt._src.export.onnx.shapes import window


def windows(graph: Graph, images: list[Tensor], params: Mapping[str, Any], sizes: tuple[int, ...]) -> list[Tensor]:
    """For each place of a kernel of some size the numbers it meets there, side by side in the last axis.

    Args:
      graph: where they are computed.
      images: [batch, ..., channels], uint8, its scale and its zero point.
      params: those of the convolution, with no negative padding, no groups and no dilated images.
      sizes: the size of the kernel along each axis in the middle.
    """
    values, scale, zero = images
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
