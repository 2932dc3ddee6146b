"""Activations of 8 bits in both forms: integers in integers, by hand in int64, and what onnxruntime runs."""

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from activation_cases import HIDDEN, INPUTS, convolution, network
from flax import linen as nn
from onnx_cases import free_batch, normal, output

import fobt
from fobt._src.quantizers.grid import Grid

SPREAD = jnp.array([-1.0, 4.0])  # with levels below zero
GRIDS = {"binary": Grid("binary", 1), "ternary": Grid("linear", 2), "linear 4": Grid("linear", 4)}


def leaf(shape, grid, per_output=False):
    rng = np.random.default_rng(sum(shape))
    codes = rng.integers(-grid.max_code, grid.max_code + 1, shape)
    codes = 2 * rng.integers(0, 2, shape) - 1 if grid.spacing == "binary" else codes
    scales = (*(1 for _ in shape[:-1]), shape[-1]) if per_output else ()
    scale = jnp.asarray(rng.uniform(0.5, 1, scales) * rng.choice([-1, 1], scales) / np.sqrt(np.prod(shape[:-1])))
    split = fobt.per_channel() if per_output else fobt.per_tensor()
    return fobt.Quantized(
        jnp.asarray(codes, jnp.int8), scale.astype(jnp.float32), grid, split, 1, jnp.dtype(jnp.float32)
    )


def parameters(range):
    """Scale and zero point of an affine range around zero, in float64."""
    scale = (np.float64(range[1]) - np.float64(range[0])) / 255
    return scale, round(-float(range[0]) / scale)


def codes_of(x, range):
    scale, zero = parameters(range)
    return np.clip(np.round(np.asarray(x, np.float64) / scale) + zero, 0, 255).astype(np.int64)


def optimized(model, x, path):
    """The operators that onnxruntime runs, in order."""
    output(model, x, path=path / "optimized.onnx")
    return [node.op_type for node in onnx.load(path / "optimized.onnx").graph.node]


def operators(model):
    return {entry.path: entry.operator for entry in fobt.export.operator_report(model).leaves}


def weights_of(grid, per_output=False):
    kernels = {"first": (3, 3, 2, 8), "second": (3, 3, 8, 12), "third": (24, 16), "last": (16, 5)}
    biases = {"first_bias": 8, "second_bias": 12, "third_bias": 16}
    return {
        **{name: leaf(shape, GRIDS[grid], per_output) for name, shape in kernels.items()},
        **{name: jnp.asarray(0.3 * normal(size)) for name, size in biases.items()},
    }


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("per_output", [False, True])
def test_a_network_in_integers_is_that_of_jax_to_the_last_bit_of_activations(grid, per_output, tmp_path):
    quantized, x = weights_of(grid, per_output), normal(20, 8, 8, 2)
    expected = np.asarray(jax.jit(network)(fobt.dequantize(quantized), x))
    model = fobt.export.to_onnx(network, quantized, free_batch(8, 8, 2), form="fast")
    got = output(model, x)
    # A code of the last layer's input that is rounded the other way moves the scores by one step of a weight.
    step = parameters(HIDDEN)[0] * float(np.abs(fobt.dequantize(quantized)["last"]).max())
    assert np.mean(np.abs(got - expected) <= 2.001 * step) > 0.95
    assert np.mean(np.abs(got - expected) <= 0.1 * step) > 0.4
    assert optimized(model, x, tmp_path) == [
        *("QuantizeLinear", "QLinearConv", "NhwcMaxPool", "QLinearConv", "NhwcMaxPool", "Reshape"),
        *("MatMulIntegerToFloat", "Add", "Max", "QuantizeLinear", "MatMulIntegerToFloat"),
    ]
    expected_operators = {"first": "QLinearConv", "second": "QLinearConv"}
    assert operators(model) == expected_operators | dict.fromkeys(["third", "last"], "MatMulIntegerToFloat")


@pytest.mark.parametrize("grid", ["binary", "ternary"])
def test_the_portable_form_rounds_by_standard_operators(grid):
    quantized, x = weights_of(grid), normal(20, 8, 8, 2)
    model = fobt.export.to_onnx(network, quantized, free_batch(8, 8, 2))
    assert {node.domain for node in model.graph.node} <= {"", "fobt"}
    expected = np.asarray(network(fobt.dequantize(quantized), x))
    step = parameters(HIDDEN)[0] * float(np.abs(fobt.dequantize(quantized)["last"]).max())
    assert np.mean(np.abs(output(model, x) - expected) <= 0.01 * step) > 0.95


@pytest.mark.parametrize(("grid", "per_output"), [("binary", False), ("ternary", True), ("linear 4", True)])
def test_a_dense_layer_is_one_of_integers(grid, per_output):
    quantized, x = {"kernel": leaf((37, 9), GRIDS[grid], per_output)}, normal(4, 37)
    model = fobt.export.to_onnx(lambda w, x: fobt.fake_quantize(x, INPUTS) @ w["kernel"], quantized, x, form="fast")
    scale, zero = parameters(INPUTS)
    sums = (codes_of(x, INPUTS) - zero) @ np.asarray(quantized["kernel"].codes, np.int64)
    n = quantized["kernel"].grid.max_code
    np.testing.assert_allclose(output(model, x), sums * scale * np.asarray(quantized["kernel"].scale) / n, rtol=1e-5)


CONVOLUTIONS = {
    "same": {},
    "strides and padding": {"window_strides": (2, 1), "padding": ((0, 2), (1, 0))},
    "dilated": {"rhs_dilation": (2, 1)},
    "groups": {"feature_group_count": 4},
    "axes in another order": {"dimension_numbers": ("NCHW", "OIHW", "NHWC")},
}


@pytest.mark.parametrize("case", CONVOLUTIONS)
@pytest.mark.parametrize("range", [HIDDEN, SPREAD], ids=["from zero", "with levels below zero"])
def test_a_convolution_from_codes_to_codes(case, range):
    """All codes by hand, from sums of int64; the bias in float64."""
    options = CONVOLUTIONS[case]
    groups = options.get("feature_group_count", 1)
    quantized, x = {"kernel": leaf((3, 2, 4 // groups, 8), GRIDS["ternary"], True)}, normal(2, 9, 10, 4)
    bias = np.linspace(-1, 1, 8).astype(np.float32)
    first, kernel_axes, _ = options.get("dimension_numbers", ("NHWC", "HWIO", "NHWC"))
    moved = ["NHWC".index(axis) for axis in first]
    kernel_order = ["HWIO".index(axis) for axis in kernel_axes]

    def function(w, x):
        images = fobt.fake_quantize(x, INPUTS).transpose(moved)
        features = convolution(images, w["kernel"].transpose(kernel_order), **options)
        return fobt.fake_quantize(nn.relu(features + bias[None, None, None]), range)

    model = fobt.export.to_onnx(function, quantized, x, form="fast")
    assert operators(model) == {"kernel": "QLinearConv"}
    (scale, zero), (out_scale, out_zero) = parameters(INPUTS), parameters(range)
    with jax.enable_x64(True):
        images = jnp.asarray(codes_of(x, INPUTS) - zero, jnp.float64).transpose(moved)
        codes = jnp.asarray(quantized["kernel"].codes, jnp.float64).transpose(kernel_order)
        sums = np.asarray(convolution(images, codes, **options))
    features = np.maximum(sums * scale * np.asarray(quantized["kernel"].scale).ravel() + bias, 0)
    expected = codes_of(features, range)
    got = np.round(output(model, x) / out_scale) + out_zero
    assert np.abs(got - expected).max() <= 1
    assert np.mean(got == expected) > 0.99  # the bias is rounded to 1/64 of a code times a weight


def test_an_output_that_is_not_rounded_is_one_of_floats():
    quantized, x = {"kernel": leaf((3, 3, 4, 8), GRIDS["ternary"])}, normal(2, 6, 6, 4)

    def function(w, x):
        features = convolution(fobt.fake_quantize(x, INPUTS), w["kernel"])
        later = fobt.fake_quantize(nn.relu(features) + 0.7, SPREAD)  # a bias that is none of the convolution
        return features, fobt.fake_quantize(features, SPREAD), jnp.tanh(features + 1), later

    model = fobt.export.to_onnx(function, quantized, x, form="fast")
    session = onnxruntime.InferenceSession(model.SerializeToString())
    for got, expected in zip(
        session.run(None, {"input": x}), function(fobt.dequantize(quantized), jnp.asarray(x)), strict=True
    ):
        np.testing.assert_allclose(got, expected, atol=1.01 * parameters(SPREAD)[0])
    assert {entry.operator for entry in fobt.export.operator_report(model).leaves} == {"QLinearConv", "float32"}


@pytest.mark.parametrize("options", [{"bits": 4}, {"symmetric": True}, {}])
def test_other_ranges_and_bits_are_those_of_jax(options):
    quantized, x = {"kernel": leaf((8, 6), GRIDS["ternary"])}, normal(5, 8)

    def function(w, x, range):
        known = fobt.fake_quantize(x, INPUTS, **options)
        return known @ w["kernel"], fobt.fake_quantize(x, range, **options), jnp.max(known, axis=1)

    model = fobt.export.to_onnx(function, quantized, x, INPUTS, form="fast")
    session = onnxruntime.InferenceSession(model.SerializeToString())
    got = session.run(None, {"input_0": x, "input_1": np.asarray(INPUTS)})
    for result, expected in zip(got, function(fobt.dequantize(quantized), x, INPUTS), strict=True):
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


def test_a_bias_that_is_too_large_for_integers():
    quantized, x = {"kernel": leaf((3, 3, 4, 8), GRIDS["ternary"])}, normal(2, 6, 6, 4)

    def function(w, x):
        return fobt.fake_quantize(convolution(fobt.fake_quantize(x, INPUTS), w["kernel"]) + 1e8, jnp.array([0, 2e8]))

    model = fobt.export.to_onnx(function, quantized, x, form="fast")
    assert operators(model) == {"kernel": "float32"}
    np.testing.assert_allclose(output(model, x), function(fobt.dequantize(quantized), x), rtol=1e-5)
