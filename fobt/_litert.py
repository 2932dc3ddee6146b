"""Export of a function of quantized weights to LiteRT: StableHLO, converted, and its weights put back as integers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from fobt._exported import Weights
from fobt._leaves import leaf_paths
from fobt._litert_weights import check_leaf, store_weights
from fobt._params import dequantize, leaves_of_quantized
from fobt._quantized import Quantized

_SIGNATURE = "serving_default"


def to_litert(function: Callable[..., Any], quantized: Any, *inputs: Any) -> bytes:
    """A LiteRT model (.tflite) of a function whose quantized weights are integers of few bits.

    JAX lowers the function at the dequantized weights to StableHLO, `litert-converter` makes a model of it, and every
    constant in it that is a quantized leaf is replaced by the leaf's codes and scales, from which the operator
    DEQUANTIZE makes float32 weights: INT2 for one and two bits, which LiteRT stores alike, INT4 for three and four,
    INT8 up to eight. Levels of logarithmic grids are multiples of the smallest one, so that three bits take INT4 and
    four INT8. Activations stay in float32.

    The packages are `pip install 'fobt[litert]'` and, because it pins an old version of `typing-extensions` for a part
    that is not used here, `pip install --no-deps litert-converter`.

    Args:
      function: from a tree of weights, and the inputs, to an array or a tree of arrays.
      quantized: the tree of weights as `quantize` returns it; leaves that are not quantized stay in float32.
      *inputs: one example, array or `jax.ShapeDtypeStruct`, for every further argument. A dimension that is symbolic
        (`jax.export.symbolic_shape`) is free in the model, which is larger then.

    Returns:
      The content of a .tflite file. Its signature, serving_default, has the inputs input, or input_0, input_1, ...;
      outputs likewise.

    Raises:
      ValueError: a leaf cannot be stored: it is no constant of the converted model, because the function computes with
        it before a layer uses it; has two scales, blocks, scales along two axes, 5 bits on a logarithmic grid, or
        weights that are not float32.
      ImportError: one of the two packages is not installed.

    Example:
      >>> import fobt, jax
      >>> import jax.numpy as jnp
      >>> quantized = fobt.quantize({"kernel": jnp.array([[1.0, -3.0], [2.0, 7.0]])}, None, fobt.linear(4))
      >>> x = jnp.ones((1, 2))
      >>> model = fobt.to_litert(lambda weights, x: x @ weights["kernel"], quantized, x)
      >>> from ai_edge_litert.interpreter import Interpreter
      >>> run = Interpreter(model_content=model).get_signature_runner()
      >>> run(input=x)["output"]
      array([[3., 4.]], dtype=float32)
    """
    weights = dequantize(quantized)
    paired = zip(leaf_paths(weights), leaves_of_quantized(quantized), jax.tree.leaves(weights), strict=True)
    found = [(Weights.of(path, leaf), np.asarray(array)) for path, leaf, array in paired if isinstance(leaf, Quantized)]
    for leaf, _ in found:
        check_leaf(leaf)
    exported = jax.export.export(jax.jit(lambda *arguments: function(weights, *arguments)))(*inputs)
    return store_weights(_convert(exported), [leaf for leaf, _ in found], [array for _, array in found])


def _convert(exported: jax.export.Exported) -> bytes:
    """A LiteRT model with float32 constants."""
    try:
        from litert_converter import converter_api_ext as converter
        from litert_converter.mlir import ir, passmanager
    except ImportError as error:
        raise ImportError("to_litert needs litert-converter: pip install --no-deps litert-converter.") from error
    names = [_names("input", len(exported.in_avals)), _names("output", len(exported.out_avals))]
    context = ir.Context()
    converter.prepare_mlir_context(context)
    with context:
        module = ir.Module.parse(exported.mlir_module())
        converter.set_signature(module.operation, _SIGNATURE, *names)
        passes = passmanager.PassManager()
        converter.run_convert_to_tfl_passes(module, passes, converter.ConvertToTFLConfig())
        passes.run(module.operation)
        return converter.export_flatbuffer_to_bytes(module.operation)


def _names(stem: str, count: int) -> list[str]:
    return [stem] if count == 1 else [f"{stem}_{i}" for i in range(count)]
