"""What onnxruntime makes of a model when it loads it: float32 weights, none of them computed in each run."""

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx_cases import free_batch, normal

import fobt

QUANTIZERS = {
    "binary": fobt.binary(),
    "ternary": fobt.ternary(),
    "two scales": fobt.ternary(scale_per_sign=True),
    "linear 3": fobt.linear(3),
    "linear 4": fobt.linear(4, granularity=fobt.per_channel()),
    "blocks": fobt.linear(8, granularity=fobt.per_block(8)),
}


def optimized_operators(model, path):
    """The operators of the graph that onnxruntime runs by default."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(path).graph.node]


@pytest.mark.parametrize("base3", [False, True])
@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_weights_are_computed_once(quantizer, base3, tmp_path):
    params = {"kernel": jnp.asarray(normal(64, 33)), "table": jnp.asarray(normal(9, 64, seed=1))}
    quantized = fobt.quantize(params, None, QUANTIZERS[quantizer])

    def layer(weights, words):
        return weights["table"][words] @ weights["kernel"]

    words = jax.ShapeDtypeStruct(jax.export.symbolic_shape("batch"), jnp.int32)
    model = fobt.export.to_onnx(layer, quantized, words, base3=base3)
    optimized_operators(model, tmp_path / "optimized.onnx")
    arrays = [onnx.numpy_helper.to_array(put) for put in onnx.load(tmp_path / "optimized.onnx").graph.initializer]
    expected = fobt.dequantize(quantized)
    assert sorted(array.shape for array in arrays if array.size > 100) == [(9, 64), (64, 33)]
    for name, shape in (("table", (9, 64)), ("kernel", (64, 33))):
        (array,) = [array for array in arrays if array.shape == shape]
        np.testing.assert_allclose(array, expected[name], rtol=1e-6)


@pytest.mark.parametrize("batch", ["3", "free"])
def test_a_dense_layer_with_bias_is_one_product_of_float32(batch, tmp_path):
    params = {"kernel": jnp.asarray(normal(64, 32)), "bias": jnp.asarray(normal(32, seed=1))}
    quantized = fobt.quantize(params, None, fobt.linear(4))

    def layer(weights, x):
        return jax.nn.relu(x @ weights["kernel"] + weights["bias"][None])

    model = fobt.export.to_onnx(layer, quantized, free_batch(64) if batch == "free" else normal(3, 64))
    assert len(optimized_operators(model, tmp_path / "optimized.onnx")) <= 3


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
