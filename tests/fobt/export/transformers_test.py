"""Small transformers of Flax with packed weights in other runtimes: the predictions of JAX, to rounding."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import onnx_cases
import pytest
from flax import nnx
from transformer_cases import LAYERS, LENGTH, LinenTransformer, NnxTransformer, linen_params, words

import fobt


def linen(scanned):
    model = LinenTransformer(scanned)
    return lambda weights, words: model.apply({"params": weights}, words), linen_params(scanned)


def of_nnx():
    graph, params, rest = nnx.split(NnxTransformer(nnx.Rngs(0)), nnx.Param, ...)
    return lambda weights, words: nnx.merge(graph, weights, rest)(words), nnx.as_pure(params)


NETWORKS = {"linen": lambda: linen(False), "linen, scanned": lambda: linen(True), "nnx": of_nnx}
SPLITS = {"tensor": fobt.per_tensor(), "channel": fobt.per_channel()}


def quantized_network(network, split):
    function, params = NETWORKS[network]()
    quantizer = fobt.linear_maps(
        fobt.ternary(granularity=SPLITS[split]),
        ("head/kernel", fobt.linear(4)),
        stacked="layers/.*" if network == "linen, scanned" else None,
    )
    quantized = fobt.quantize(params, None, quantizer)
    return function, quantized, jax.jit(function)(fobt.dequantize(quantized), words(2))


def packed_bytes(quantized):
    """The bytes of codes of two bits, and of four."""
    leaves = jax.tree.leaves(quantized, is_leaf=lambda leaf: isinstance(leaf, fobt.Quantized))
    return sum(leaf.codes.size * leaf.grid.bits // 8 for leaf in leaves if isinstance(leaf, fobt.Quantized))


@pytest.mark.slow
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("network", NETWORKS)
def test_onnx(network, split):
    function, quantized, expected = quantized_network(network, split)
    symbol = jax.export.symbolic_shape(f"batch, {LENGTH}")
    model = fobt.export.to_onnx(function, quantized, jax.ShapeDtypeStruct(symbol, jnp.int32))
    onnx_cases.assert_same(onnx_cases.run(model, np.asarray(words(2))), expected)
    onnx_cases.assert_same(onnx_cases.run(model, np.asarray(words(2)[:1])), expected[:1])
    low_bits = [tensor for tensor in model.graph.initializer if tensor.name.split("/")[-1] in ("kernel", *"012")]
    assert len(low_bits) >= 6 * LAYERS + 1
    assert sum(len(tensor.raw_data) for tensor in low_bits) <= packed_bytes(quantized) + len(low_bits)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("litert_converter") is None, reason="needs litert-converter")
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("network", NETWORKS)
def test_litert(network, split):
    import litert_cases

    function, quantized, expected = quantized_network(network, split)
    model = fobt.export.to_litert(function, quantized, words(2))
    litert_cases.close(litert_cases.run(model, np.asarray(words(2))), expected)
    stored = litert_cases.stored_weights(model)
    assert len(stored) == 6 * LAYERS + 1
