"""Leaves in an ONNX model: stored once however often they are used, under names that nothing else has."""

import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from onnx_cases import assert_exported, normal, run

import fobt

GRIDS = {
    "binary": fobt.binary(),
    "ternary": fobt.ternary(),
    "ternary, two scales": fobt.ternary(scale_per_sign=True),
    "linear(4)": fobt.linear(4),
    "linear(4) per row": fobt.linear(4, granularity=fobt.per_channel(0)),
    "linear(4) in blocks": fobt.linear(4, granularity=fobt.per_block(3)),
    "logarithmic(3)": fobt.logarithmic(3),
}


def stored_codes(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    codes = {onnx.TensorProto.INT2, onnx.TensorProto.INT4, onnx.TensorProto.INT8, onnx.TensorProto.UINT8}
    return [tensor for tensor in model.graph.initializer if tensor.data_type in codes]


def names(model: onnx.ModelProto) -> list[str]:
    graph = model.graph
    return [
        *(tensor.name for tensor in graph.initializer),
        *(put.name for put in graph.input),
        *(made for node in graph.node for made in node.output),
    ]


@pytest.mark.parametrize("grid", GRIDS)
def test_a_tied_embedding_is_stored_once(grid: str):
    quantized = {"embedding": GRIDS[grid](normal(8, 11))}
    ids = np.array([[1, 3, 5]], np.int32)

    def function(weights, ids):
        hidden = jnp.tanh(jnp.take(weights["embedding"], ids, axis=0))
        return hidden @ weights["embedding"].T

    model = fobt.export.to_onnx(function, quantized, ids)
    table = np.asarray(quantized["embedding"].dequantize())
    np.testing.assert_allclose(run(model, ids)[0], np.tanh(table[ids]) @ table.T, rtol=1e-5, atol=1e-5)
    (tensor,) = stored_codes(model)
    assert tensor.name == "embedding"


@pytest.mark.parametrize("grid", GRIDS)
def test_an_autoencoder_with_tied_weights(grid: str):
    for rows, columns in ((8, 8), (7, 10)):
        quantized = {"w": GRIDS[grid](normal(rows, columns))}
        x, w = normal(2, rows, seed=1), np.asarray(quantized["w"].dequantize())
        model = fobt.export.to_onnx(lambda weights, x: jnp.tanh(x @ weights["w"]) @ weights["w"].T, quantized, x)
        np.testing.assert_allclose(run(model, x)[0], np.tanh(x @ w) @ w.T, rtol=1e-5, atol=1e-5)
        assert len(stored_codes(model)) == 1


@pytest.mark.slow
def test_a_layer_that_is_used_three_times_in_three_orders():
    quantized = {"w": fobt.linear(4, granularity=fobt.per_channel((0, 2)))(normal(2, 3, 2))}

    def function(weights, x):
        w = weights["w"]
        return x + w, x + w.transpose(2, 1, 0), x + w[::-1, :, ::-1]

    model = assert_exported(function, quantized, normal(2, 3, 2, seed=1))
    assert len(stored_codes(model)) == 1


@pytest.mark.slow
def test_equal_leaves_and_leaves_that_are_transposes_of_each_other():
    w = normal(8, 4)
    quantized = fobt.quantize({"a": w, "b": w.T, "c": w, "z": 0 * w}, None, fobt.linear(4))
    assert_exported(lambda p, x: (jnp.tanh(x @ p["a"]) @ p["b"]) @ p["c"] + x @ p["z"], quantized, normal(3, 8, seed=1))


NAMES = [
    *("input", "input_0", "output", "output_1", "v1", "v2", "v3", "v10", "weights", "bytes", "levels", "shape", "x"),
    *("", " ", "a b", "a/b", "a~b", "~1", "\0", "é", "日本", "\ud800", "fobt", "unpack_1_bits", "v1_2", "batch"),
]


@pytest.mark.parametrize("quantizer", [fobt.linear(4), fobt.binary()], ids=["linear(4)", "binary"])
def test_leaves_may_have_any_name(quantizer):
    x = normal(3, 8, seed=1)
    for name in NAMES:
        quantized = {name: quantizer(normal(8, 4))}
        right = np.tanh(x @ np.asarray(quantized[name].dequantize()))
        model = fobt.export.to_onnx(lambda p, x, name=name: (jnp.tanh(x @ p[name]), x), quantized, x)
        np.testing.assert_allclose(run(model, x)[0], right, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_many_leaves_whose_names_want_to_be_those_of_the_graph():
    quantized = {name: fobt.binary()(normal(4, 4, seed=i)) for i, name in enumerate(NAMES)}

    def function(weights, x):
        for name in NAMES:
            x = jnp.tanh(x @ weights[name])
        return x, x + 1

    model = assert_exported(function, quantized, normal(3, 4))
    assert len(set(names(model))) == len(names(model))
    assert [put.name for put in model.graph.input] == ["input"]
    assert [put.name for put in model.graph.output] == ["output_0", "output_1"]


@pytest.mark.parametrize("quantizer", [fobt.linear(4), fobt.binary()], ids=["linear(4)", "binary"])
def test_keys_with_slashes_are_told_from_paths(quantizer):
    quantized = {"a/b": quantizer(normal(8, 8)), "a": {"b": quantizer(normal(8, 4))}}
    model = assert_exported(lambda p, x: jnp.tanh(x @ p["a/b"]) @ p["a"]["b"], quantized, normal(3, 8, seed=1))
    assert {tensor.name for tensor in stored_codes(model)} == {"a~1b", "a/b"}


def test_a_leaf_that_is_not_used_is_not_stored():
    quantized = {"w": fobt.binary()(normal(8, 4)), "aux": fobt.binary()(normal(4, 5)), "b": normal(1, 3)}
    with pytest.warns(
        UserWarning, match=r"function does not use the leaves \['aux'\], which are left out of the model"
    ):
        model = assert_exported(lambda p, x: x @ p["w"], quantized, normal(3, 8, seed=1))
    assert [tensor.name for tensor in stored_codes(model)] == ["w"]


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (8, 1), (0, 3), (3, 0), ()])
def test_leaves_of_any_shape(shape: tuple[int, ...]):
    for quantizer in (fobt.linear(4), fobt.binary(), fobt.ternary(scale_per_sign=True)):
        assert_exported(lambda w, x: (w * x, w, w + w), quantizer(normal(*shape)), np.float32(2))
    for weights in (np.zeros(shape, np.float32), np.full(shape, 0.5, np.float32)):
        assert_exported(lambda w, x: w * x, fobt.binary()(weights), np.float32(2))
