"""The fast form of LiteRT: integers come through exactly where activations need no rounding.

Activations are rounded to 8 bits with a scale for each row, that of its range. Rows of integers from 0 to 255, both
among them, have scale 1; then products are those of float64, to the rounding of float32.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from litert_cases import GRIDS, PER_TENSOR, TensorType, close, flatbuffer_utils, leaf, normal, run

import fobt

OUTPUTS = fobt.per_channel()


def whole_rows(*shape: int) -> np.ndarray:
    x = np.random.default_rng(1).integers(0, 256, shape).astype(np.float32)
    x.reshape(shape[0], -1)[:, :2] = 0, 255
    return x


def stored_types(model: bytes) -> list[int]:
    content = flatbuffer_utils.read_model_from_bytearray(bytearray(model))
    low_bits = (TensorType.INT2, TensorType.INT4, TensorType.INT8)
    return [tensor.type for tensor in content.subgraphs[0].tensors if tensor.type in low_bits]


def operators(model: bytes) -> list[str]:
    return [leaf.operator for leaf in fobt.export.operator_report(model).leaves]


@pytest.mark.parametrize("split", [PER_TENSOR, OUTPUTS], ids=["tensor", "outputs"])
@pytest.mark.parametrize("grid", ["binary", "linear 2", "linear 3", "linear 4", "linear 8", "logarithmic 3"])
def test_a_dense_layer(grid: str, split: Any):
    quantized = {"kernel": leaf((24, 9), GRIDS[grid], split), "bias": jnp.arange(9.0)[None]}

    def function(weights, x):
        return jax.nn.relu(x @ weights["kernel"] + weights["bias"])

    x = whole_rows(5, 24)
    model = fobt.export.to_litert(function, quantized, x, form="fast")
    assert operators(model) == ["FULLY_CONNECTED"]
    (stored,) = stored_types(model)
    wide = {"binary": 2, "linear 2": 2, "linear 3": 4, "linear 4": 4, "linear 8": 8, "logarithmic 3": 4}[grid]
    assert stored == {2: TensorType.INT2, 4: TensorType.INT4, 8: TensorType.INT8}[wide]
    close(run(model, x), function(fobt.dequantize(quantized), x))


@pytest.mark.parametrize(("inputs", "bits"), [(1, 8), (7, 8), (130, 4), (132, 2)])
def test_rows_fill_bytes(inputs: int, bits: int):
    quantized = {"kernel": leaf((inputs, 5), GRIDS["binary"])}
    x = whole_rows(3, inputs) if inputs > 1 else np.full((3, 1), 255, np.float32)
    model = fobt.export.to_litert(lambda w, x: x @ w["kernel"], quantized, x, form="fast")
    assert stored_types(model) == [{2: TensorType.INT2, 4: TensorType.INT4, 8: TensorType.INT8}[bits]]
    close(run(model, x), x @ np.asarray(quantized["kernel"].dequantize()))


@pytest.mark.parametrize("split", [PER_TENSOR, OUTPUTS], ids=["tensor", "outputs"])
@pytest.mark.parametrize("grid", ["binary", "linear 4"])
def test_a_convolution(grid: str, split: Any):
    quantized = {"kernel": leaf((3, 3, 4, 6), GRIDS[grid], split)}

    def function(weights, x):
        return jax.lax.conv_general_dilated(
            x, weights["kernel"], (2, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    x = whole_rows(2, 8, 7, 4)
    model = fobt.export.to_litert(function, quantized, x, form="fast")
    assert (stored_types(model), operators(model)) == ([TensorType.INT8], ["CONV_2D"])
    close(run(model, x), function(fobt.dequantize(quantized), x))


def test_activations_are_rounded_to_eight_bits():
    quantized = {"kernel": leaf((64, 32), GRIDS["linear 2"], OUTPUTS)}
    x = normal(5, 64)
    weights = np.asarray(quantized["kernel"].dequantize(), np.float64)
    model = fobt.export.to_litert(lambda w, x: x @ w["kernel"], quantized, x, form="fast")
    error = np.abs(run(model, x) - x.astype(np.float64) @ weights)
    step = (np.maximum(x.max(1), 0) - np.minimum(x.min(1), 0)) / 255
    # Half a step for each number, and half of one because the zero point is rounded, too.
    bound = step[:, None] * np.abs(weights).sum(0)[None]
    assert np.all(error <= bound)
    assert error.max() > 0.01 * bound.max()


def test_other_leaves_stay_in_float32():
    quantized = {
        "table": leaf((12, 8), GRIDS["linear 4"], fobt.per_channel(0)),
        "inputs": leaf((8, 6), GRIDS["linear 4"], fobt.per_channel(0)),
        "depthwise": leaf((3, 3, 1, 6), GRIDS["binary"]),
    }

    def function(w, words, image):
        convolved = jax.lax.conv_general_dilated(
            image, w["depthwise"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=1
        )
        return jnp.tanh(w["table"][words]) @ w["inputs"], convolved

    words, image = np.array([[0, 3, 11]], np.int32), whole_rows(1, 5, 5, 1)
    model = fobt.export.to_litert(function, quantized, words, image, form="fast")
    expected = function(fobt.dequantize(quantized), words, image)
    report = {entry.path: entry.operator for entry in fobt.export.operator_report(model).leaves}
    assert (report["table"], report["inputs"]) == ("float32", "float32")
    for got, leaf_expected in zip(run(model, words, image), expected, strict=True):
        close(got, leaf_expected)


def test_a_table_for_both_ends():
    quantized = {"table": leaf((12, 8), GRIDS["linear 4"])}

    def function(w, words, x):
        return w["table"][words], x @ w["table"].T

    words, x = np.array([[0, 3, 11]], np.int32), whole_rows(2, 8)
    model = fobt.export.to_litert(function, quantized, words, x, form="fast")
    assert sorted(operators(model)) == ["FULLY_CONNECTED", "float32"]
    for got, expected in zip(run(model, words, x), function(fobt.dequantize(quantized), words, x), strict=True):
        close(got, expected)


def test_the_form_is_checked():
    with pytest.raises(ValueError, match="form must be 'portable' or 'fast', got 'quick'"):
        fobt.export.to_litert(lambda w, x: x, {}, normal(1, 2), form="quick")  # type: ignore[arg-type]
    portable = fobt.export.to_litert(lambda w, x: x + 1, {}, normal(1, 2))
    with pytest.raises(ValueError, match="model must be one that was exported with form='fast'"):
        fobt.export.operator_report(portable)
