"""Models run by onnxruntime, and inputs for them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime

import fobt


def run(model: onnx.ModelProto, *inputs: Any, path: Path | None = None) -> list[np.ndarray]:
    """The outputs of a model that the checker has passed, in a session with default options.

    `path` is where the optimised graph is written, if anywhere.
    """
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if path is not None:
        options.optimized_model_filepath = str(path)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {put.name: np.asarray(x) for put, x in zip(session.get_inputs(), inputs, strict=True)})


def output(model: onnx.ModelProto, *inputs: Any, path: Path | None = None) -> np.ndarray:
    """The only output of a model, as `run` gives it."""
    (result,) = run(model, *inputs, path=path)
    return result


def free_batch(*shape: int, dtype=jnp.float32) -> jax.ShapeDtypeStruct:
    symbols = jax.export.symbolic_shape(", ".join(["batch", *map(str, shape)]))
    return jax.ShapeDtypeStruct(symbols, dtype)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def assert_same(results: list[np.ndarray], expected: Any, tolerance: float = 1e-5):
    """Equal dtypes, shapes, and numbers to rounding; tolerance relative to the largest number of each output."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(expected)]
    assert [(x.dtype, x.shape) for x in results] == [(x.dtype, x.shape) for x in leaves]
    for result, leaf in zip(results, leaves, strict=True):
        exact = np.asarray(leaf, np.float64)
        size = np.max(np.abs(exact), initial=0, where=np.isfinite(exact))
        np.testing.assert_allclose(
            result.astype(np.float64), exact, rtol=tolerance, atol=tolerance * (size or 1), equal_nan=True
        )


def assert_exported(function: Callable[..., Any], quantized: Any, *inputs: Any, tolerance: float = 1e-5, **options):
    """The model of the function gives what the function gives."""
    expected = function(fobt.dequantize(quantized), *map(jnp.asarray, inputs))
    model = fobt.export.to_onnx(function, quantized, *inputs, **options)
    assert_same(run(model, *inputs), expected, tolerance)
    return model
