"""Activations of 8 bits in LiteRT: integers from the first rounding to the last one, by hand in int64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from activation_cases import HIDDEN, INPUTS, convolution
from activation_cases import network as unrounded_scores
from flax import linen as nn
from litert_cases import GRIDS, TensorType, flatbuffer_utils, leaf, normal, run

import fobt

SCORES = jnp.array([-9.0, 9.0])
FLOATS = {"QUANTIZE": 1, "DEQUANTIZE": 1}  # of inputs and of outputs


def network(w, images):
    """Of integers only: the scores are rounded, too; the first kernel is a depthwise one."""
    return fobt.fake_quantize(unrounded_scores(w, images), SCORES)


def weights_of(grid):
    kernels = {"first": (3, 3, 1, 8), "second": (3, 3, 8, 12), "third": (24, 16), "last": (16, 8)}
    size = {name: np.sqrt(np.prod(shape[:-1])) for name, shape in kernels.items()}
    weights = {
        name: fobt.Quantized(
            codes.codes, jnp.float32(1 / size[name]), codes.grid, codes.granularity, 1, jnp.dtype(jnp.float32)
        )
        for name, codes in ((name, leaf(shape, GRIDS[grid])) for name, shape in kernels.items())
    }
    return weights | {
        f"{name}_bias": jnp.asarray(0.3 * normal(n)) for name, n in zip(kernels, (8, 12, 16), strict=False)
    }


def operators(model):
    content = flatbuffer_utils.read_model_from_bytearray(bytearray(model))
    assert len(content.subgraphs) == 1
    graph = content.subgraphs[0]
    names = [flatbuffer_utils.opcode_to_name(content, operator.opcodeIndex) for operator in graph.operators]
    return names, [
        [graph.tensors[i].type for i in (operator.inputs[0], operator.outputs[0])] for operator in graph.operators
    ]


@pytest.mark.parametrize("grid", ["binary", "linear 2", "linear 4"])
def test_a_network_in_integers_is_that_of_jax_to_the_last_bit_of_activations(grid):
    quantized, x = weights_of(grid), normal(40, 8, 8, 1)
    model = fobt.export.to_litert(network, quantized, jax.ShapeDtypeStruct((40, 8, 8, 1), jnp.float32), form="fast")
    names, types = operators(model)
    assert names == [
        *("QUANTIZE", "DEPTHWISE_CONV_2D", "MAX_POOL_2D", "CONV_2D", "MAX_POOL_2D", "RESHAPE"),
        *("FULLY_CONNECTED", "FULLY_CONNECTED", "DEQUANTIZE"),
    ]
    assert types[1:-1] == [[TensorType.INT8] * 2] * 7
    expected = np.asarray(jax.jit(network)(fobt.dequantize(quantized), x))
    difference = np.abs(run(model, x) - expected)
    step = 18 / 255
    assert np.mean(difference < 0.01 * step) > 0.7
    assert np.mean(difference < 1.01 * step) > 0.97
    report = fobt.export.operator_report(model)
    assert {entry.operator for entry in report.leaves} == {"DEPTHWISE_CONV_2D", "CONV_2D", "FULLY_CONNECTED"}
    assert {entry.reason for entry in report.leaves} == {"activations and outputs in codes"}


def test_the_portable_form_rounds_and_computes_in_floats():
    quantized, x = weights_of("linear 2"), normal(40, 8, 8, 1)
    model = fobt.export.to_litert(network, quantized, jax.ShapeDtypeStruct((40, 8, 8, 1), jnp.float32))
    expected = np.asarray(network(fobt.dequantize(quantized), x))
    assert np.mean(np.abs(run(model, x) - expected) < 1e-4) > 0.97
    names, _ = operators(model)
    assert names.count("QUANTIZE") == 5


@pytest.mark.parametrize("grid", ["linear 2", "linear 4", "linear 8"])
def test_a_dense_layer_from_codes_to_codes(grid):
    kernel = leaf((24, 12), GRIDS[grid], fobt.per_channel())
    x, bias = normal(9, 24), np.linspace(-1, 1, 12).astype(np.float32)

    def function(w, x):
        return fobt.fake_quantize(fobt.fake_quantize(x, INPUTS) @ w["kernel"] + bias[None], SCORES)

    model = fobt.export.to_litert(function, {"kernel": kernel}, x, form="fast")
    assert operators(model)[0] == ["QUANTIZE", "FULLY_CONNECTED", "DEQUANTIZE"]
    scale = 5.1 / 255
    zero = round(2.0 / scale)
    codes = np.clip(np.round(x.astype(np.float64) / scale) + zero, 0, 255) - zero
    step = np.asarray(kernel.scale, np.float64) / kernel.grid.max_code
    sums = codes @ np.asarray(kernel.codes, np.float64)
    expected = np.clip((sums + np.round(bias / (scale * step))) * scale * step / (18 / 255), -127.5, 127.5)
    got = run(model, x) / (18 / 255)
    assert np.abs(got - expected).max() <= 0.51


def test_a_bias_of_a_small_kernel_is_hardly_rounded():
    """A product of scales is 0.02 here, a step of the output 0.016; the kernel is stored 64 times as large."""
    kernel = leaf((1, 1, 4, 8), GRIDS["linear 2"])
    kernel = fobt.Quantized(kernel.codes, jnp.float32(1), kernel.grid, kernel.granularity, 1, jnp.dtype(jnp.float32))
    x, bias = np.zeros((1, 4, 4, 4), np.float32), np.linspace(0, 1.9, 8).astype(np.float32)

    def function(w, x):
        return fobt.fake_quantize(
            convolution(fobt.fake_quantize(x, INPUTS), w["kernel"]) + bias[None, None, None], HIDDEN
        )

    model = fobt.export.to_litert(function, {"kernel": kernel}, x, form="fast")
    np.testing.assert_allclose(run(model, x), function(fobt.dequantize({"kernel": kernel}), x), atol=1e-6)


def test_what_else_reads_activations_reads_floats():
    quantized, x = {"kernel": leaf((8, 4), GRIDS["linear 4"])}, normal(3, 8)

    def function(w, x):
        y = fobt.fake_quantize(x, INPUTS)
        z = y @ w["kernel"]
        twice = y @ w["kernel"][::-1]
        return (
            jnp.tanh(y),
            z,
            fobt.fake_quantize(z, SCORES),
            y.reshape(4, 6),
            jnp.tanh(twice),
            fobt.fake_quantize(twice, SCORES),
        )

    model = fobt.export.to_litert(function, quantized, x, form="fast")
    for got, expected in zip(run(model, x), function(fobt.dequantize(quantized), x), strict=True):
        np.testing.assert_allclose(got, expected, atol=0.05 * np.abs(expected).max())


def test_relu_where_levels_are_below_zero():
    quantized, x = {"kernel": leaf((3, 3, 4, 8), GRIDS["linear 2"])}, normal(2, 6, 6, 4)

    def function(w, x):
        y = nn.max_pool(convolution(fobt.fake_quantize(x, INPUTS), w["kernel"]), (2, 2), (2, 2))
        return fobt.fake_quantize(nn.relu(y + 1.0), SCORES)

    model = fobt.export.to_litert(function, quantized, x, form="fast")
    assert operators(model)[0] == ["QUANTIZE", "CONV_2D", "MAX_POOL_2D", "DEQUANTIZE"]
    np.testing.assert_allclose(run(model, x), function(fobt.dequantize(quantized), x), atol=1.01 * 18 / 255)


def test_ranges_that_are_not_known_and_other_bits():
    x = 3 * normal(3, 8)

    def function(w, x, range):
        return fobt.fake_quantize(x, range), fobt.fake_quantize(x, INPUTS, bits=4), fobt.fake_quantize(x, INPUTS)

    model = fobt.export.to_litert(function, {}, x, INPUTS)
    for got, expected in zip(run(model, x, np.asarray(INPUTS)), function({}, x, INPUTS), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-6)
