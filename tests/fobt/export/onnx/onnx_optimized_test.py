"""What onnxruntime makes of a model when it loads it: kernels of few bits, and no matrix dequantized in each run."""

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx_cases import free_batch, normal

import fobt

QUANTIZERS = {
    "INT2": fobt.ternary(),
    "INT4": fobt.linear(4),
    "INT4, channels": fobt.linear(4, granularity=fobt.per_channel()),
}


def optimized_operators(model, path):
    """The operators of the graph that onnxruntime runs."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(path).graph.node]


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("batch", ["3", "free"])
def test_a_dense_layer_with_bias_multiplies_by_few_bits(quantizer, batch, tmp_path):
    params = {"kernel": jnp.asarray(normal(64, 32)), "bias": jnp.asarray(normal(32, seed=1))}
    quantized = fobt.quantize(params, None, QUANTIZERS[quantizer])

    def layer(weights, x):
        return jax.nn.relu(x @ weights["kernel"] + weights["bias"][None])

    model = fobt.export.to_onnx(layer, quantized, free_batch(64) if batch == "free" else normal(3, 64))
    operators = optimized_operators(model, tmp_path / "optimized.onnx")
    assert operators.count("MatMulNBits") == 1
    assert not {"Gemm", "FusedGemm", "MatMul", "DequantizeLinear"} & set(operators)


def test_constants_have_no_leading_axes_of_one():
    bias = normal(5)
    model = fobt.export.to_onnx(
        lambda _, x: jnp.where(x > bias[None, None], x * bias[None, None], x), {}, normal(2, 3, 5)
    )
    assert {tuple(tensor.dims) for tensor in model.graph.initializer} == {(5,)}


def test_constants_of_more_axes_keep_them():
    ones = np.ones((1, 1, 1, 5), np.float32)
    model = fobt.export.to_onnx(lambda _, x: x[:, None, None] * ones, {}, normal(2, 5))
    (output,) = model.graph.output
    assert [dimension.dim_value for dimension in output.type.tensor_type.shape.dim] == [2, 1, 1, 5]
