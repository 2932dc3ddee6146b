"""For the tests of the LiteRT export: quantized leaves, its interpreter, and the stored bytes decoded by hand."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fobt
from fobt._src.quantizers.grid import Grid

REASON = "needs the converter: pip install --no-deps litert-converter"
pytest.importorskip("litert_converter", reason=REASON)
Interpreter = pytest.importorskip("ai_edge_litert.interpreter", reason=REASON).Interpreter
TensorType = pytest.importorskip("ai_edge_litert.schema_py_generated").TensorType
flatbuffer_utils = pytest.importorskip("ai_edge_litert.tools.flatbuffer_utils")

GRIDS = {
    "binary": Grid("binary", 1),
    **{f"linear {bits}": Grid("linear", bits) for bits in range(2, 9)},
    **{f"logarithmic {bits}": Grid("logarithmic", bits) for bits in (2, 3, 4)},
}
STORED_BITS = {TensorType.INT2: 2, TensorType.INT4: 4, TensorType.INT8: 8}
PER_TENSOR = fobt.per_tensor()


def leaf(shape: tuple[int, ...], grid: Grid, split=PER_TENSOR, scales: int = 1) -> fobt.Quantized:
    """Random codes and scales, the largest code and negative scales (of folded gains) among them."""
    rng = np.random.default_rng(len(shape))
    codes = rng.integers(-grid.max_code, grid.max_code + 1, shape)
    codes = 2 * rng.integers(0, 2, shape) - 1 if grid.spacing == "binary" else codes
    kept = {axis % len(shape) for axis in getattr(split, "kept", ())}
    scale_shape = tuple(size if axis in kept else 1 for axis, size in enumerate(shape)) if kept else ()
    scale = rng.normal(size=(2, *scale_shape) if scales == 2 else scale_shape)
    return fobt.Quantized(
        jnp.asarray(codes, jnp.int8), jnp.asarray(scale, jnp.float32), grid, split, scales, jnp.dtype(jnp.float32)
    )


def run(model: bytes, *inputs: np.ndarray) -> Any:
    """The output of a model, or the list of them."""
    interpreter = Interpreter(model_content=model)
    for details, value in zip(interpreter.get_input_details(), inputs, strict=True):
        interpreter.resize_tensor_input(details["index"], np.shape(value))
    names = ["input"] if len(inputs) == 1 else [f"input_{i}" for i in range(len(inputs))]
    interpreter.allocate_tensors()
    outputs = interpreter.get_signature_runner()(**dict(zip(names, inputs, strict=True)))
    return outputs["output"] if len(outputs) == 1 else [outputs[f"output_{i}"] for i in range(len(outputs))]


def stored_weights(model: bytes) -> list[np.ndarray]:
    """The integer tensors of a model, decoded from their bytes, times their scales."""
    content = flatbuffer_utils.read_model_from_bytearray(bytearray(model))
    found = []
    for tensor in content.subgraphs[0].tensors:
        if (bits := STORED_BITS.get(tensor.type)) is None:
            continue
        size = int(np.prod(tensor.shape))
        numbers = []
        for byte in bytes(content.buffers[tensor.buffer].data):
            for begin in range(0, 8, bits):
                field = byte >> begin & 2**bits - 1
                numbers.append(field - 2**bits if field >= 2 ** (bits - 1) else field)
        assert len(numbers) - size < 8 // bits
        scale = np.array(tensor.quantization.scale)
        assert np.all(scale > 0)
        shape = [1] * len(tensor.shape)
        if scale.size > 1:
            shape[tensor.quantization.quantizedDimension] = scale.size
        found.append(np.array(numbers[:size]).reshape(tensor.shape) * scale.reshape(shape))
    return found


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(7).normal(size=shape).astype(np.float32)


def close(got: np.ndarray, expected: jax.Array, tolerance: float = 1e-6) -> None:
    scale = np.abs(expected).max()
    np.testing.assert_allclose(got / scale, np.asarray(expected) / scale, atol=tolerance)
