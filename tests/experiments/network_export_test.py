"""Whole networks in onnxruntime and in the interpreter of LiteRT, against JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
from flax import nnx

import fobt
from experiments.core.network import split_model
from experiments.deployment.folding import fold
from experiments.models import NETWORKS

QUANTIZERS = {"binary": fobt.binary(), "ternary": fobt.ternary(), "linear 4": fobt.linear(4)}


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def close(got, expected) -> None:
    """Sums over thousands of products, layer after layer, each in another order."""
    scale = np.abs(expected).max()
    np.testing.assert_allclose(np.asarray(got) / scale, np.asarray(expected) / scale, atol=1e-5)


def quantize(params, grid: str):
    """Quantized leaves with rounded parameters as codes, in NumPy; projections are tested elsewhere."""
    grid_of = QUANTIZERS[grid].grid
    largest = grid_of.max_code

    def leaf(weights):
        weights = np.asarray(weights)
        rounded = np.clip(np.round(weights / np.std(weights) * largest / 2), -largest, largest)
        codes = np.where(weights < 0, -1, 1) if grid_of.spacing == "binary" else rounded
        codes, scale = jnp.asarray(codes.astype(np.int8)), jnp.asarray(np.std(weights))
        return fobt.Quantized(codes, scale, grid_of, fobt.per_tensor(), 1, weights.dtype)

    return jax.tree.map(lambda weights: leaf(weights) if weights.ndim >= 2 else weights, params)


@pytest.mark.parametrize(
    ("name", "shape", "width", "grid"),
    [
        ("digits_cnn", (8, 8, 1), 0.5, "binary"),
        ("small_mlp", (28, 28, 1), 0.1, "ternary"),
        ("lenet5", (28, 28, 1), 0.2, "linear 4"),
        ("vgg", (32, 32, 3), 0.03, "ternary"),
        ("resnet18", (32, 32, 3), 0.03, "binary"),
    ],
)
def test_networks_in_onnxruntime(name: str, shape: tuple[int, int, int], width: float, grid: str):
    graph, params, batch_stats = split_model(NETWORKS[name](nnx.Rngs(0), width))
    quantized = quantize(params, grid)
    function = jax.jit(lambda weights, x: nnx.merge(graph, weights, batch_stats)(x, training=False))
    batch = jax.ShapeDtypeStruct(jax.export.symbolic_shape(f"batch, {', '.join(map(str, shape))}"), jnp.float32)
    session = onnxruntime.InferenceSession(fobt.export.to_onnx(function, quantized, batch).SerializeToString())
    x = normal(3, *shape)
    expected = function(fobt.dequantize(quantized), x)
    for count in (3, 1):
        close(session.run(None, {"input": x[:count]})[0], expected[:count])


@pytest.mark.parametrize(
    ("name", "grid"),
    [
        *((name, "binary") for name in ("digits_cnn", "lenet5", "mlp", "vgg", "resnet18")),
        *((name, "linear 4") for name in ("lenet5", "mlp")),
    ],
)
def test_networks_with_folded_normalisation_in_litert(name: str, grid: str):
    pytest.importorskip("litert_converter", reason="needs pip install --no-deps litert-converter")
    from ai_edge_litert.interpreter import Interpreter

    model = NETWORKS[name](nnx.Rngs(0), 1.0 if name in ("digits_cnn", "lenet5") else 1 / 32)
    shape = {"digits_cnn": (8, 8, 1), "lenet5": (28, 28, 1), "mlp": (28, 28, 1)}.get(name, (32, 32, 3))
    _, params, batch_stats = split_model(model)
    folded = fold(model, quantize(params, grid), batch_stats)
    x = normal(1, *shape)
    interpreter = Interpreter(model_content=fobt.export.to_litert(folded, folded.quantized, x))
    interpreter.allocate_tensors()
    close(interpreter.get_signature_runner()(input=x)["output"], jax.jit(folded)(fobt.dequantize(folded.quantized), x))
    # Every quantized leaf is stored in a few bits.
    leaves = jax.tree.leaves(folded.quantized, is_leaf=lambda leaf: isinstance(leaf, fobt.Quantized))
    stored = [tensor for tensor in interpreter.get_tensor_details() if tensor["quantization_parameters"]["scales"].size]
    assert len(stored) == sum(isinstance(leaf, fobt.Quantized) for leaf in leaves)
