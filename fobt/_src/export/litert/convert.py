"""Export of a function of quantized weights to LiteRT: StableHLO, converted, and its weights put back as integers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax

from fobt._src.base.tree_paths import leaf_paths
from fobt._src.export.litert.converter import check_runs, convert
from fobt._src.export.litert.primitives import in_known_primitives
from fobt._src.export.litert.weights import check_leaf, store_weights
from fobt._src.export.weights import Weights, numbered, warn_of_unused
from fobt._src.packed.packing import unpack
from fobt._src.quantizers.quantized import Quantized
from fobt._src.trees.params import dequantize, leaves_of_quantized


def to_litert(
    function: Callable[..., Any], quantized: Any, *inputs: Any, form: Literal["portable", "fast"] = "portable"
) -> bytes:
    """A LiteRT model (.tflite) of a function whose quantized weights are integers of few bits.

    JAX lowers the function to StableHLO, with the quantized leaves as inputs, and `litert-converter` makes a model of
    it. Then each of these inputs becomes a constant, the leaf's codes and scales: INT2 for one and two bits, which
    LiteRT stores alike, INT4 for three and four, INT8 up to eight. Levels of logarithmic grids are multiples of the
    smallest one, so that three bits take INT4 and four INT8.

    - In the form "portable" the operator DEQUANTIZE makes float32 weights of them, in every run, and activations stay
      in float32: the model computes what JAX computes. It is slower than one in float32 for several rows or images at a
      time, because XNNPACK computes DEQUANTIZE from INT8 only.
    - In the form "fast" dense layers and convolutions read the integers, and LiteRT rounds the activations of each row
      or image to 8 bits (its dynamic range quantization). Codes and scales stay exactly what they are. The kernels of
      convolutions are INT8, for which alone XNNPACK is faster than float32; so is what other operators read, such as
      tables of embeddings and depthwise kernels, which stay in float32. `operator_report` says for each leaf which
      operator reads it.

    What `fobt.fake_quantize` rounds to 8 bits, with a range that is known, becomes int8: QUANTIZE, and DEQUANTIZE where
    floats are needed. In the form "fast" a dense layer or convolution that reads codes, and whose output is rounded as
    well, computes in integers, with its bias (in int32), ReLU and pooling; so a model whose input, hidden activations
    and outputs are rounded is one of integers only. Codes differ from JAX's by one where a sum falls between two of
    them to rounding. Kernels of 8 bits may be stored larger by a power of two, with a smaller scale.

    Transposing, reshaping, reversing and slicing of a leaf is done beforehand; whatever else a function computes of a
    leaf, it computes in each run (fold batch normalisation first). A leaf that is used in two orders of its axes is
    stored twice.

    Loops of a known number of steps (`lax.scan`, scanned layers) are unrolled. A transposed convolution becomes one
    of an image with zeros between its pixels. Infinities and NaN among activations are treated as LiteRT's kernels do.

    The packages are `pip install 'fobt[litert]'` and, because it pins an old version of `typing-extensions` for a part
    that is not used here, `pip install --no-deps litert-converter`.

    Args:
      function: from a tree of weights, and the inputs, to an array or a tree of arrays.
      quantized: the tree of weights as `quantize` or `pack` returns it; leaves that are not quantized stay in float32.
      *inputs: one example, array or `jax.ShapeDtypeStruct`, for every further argument. A dimension that is symbolic
        (`jax.export.symbolic_shape`) is free in the model, which is larger then.
      form: "portable" or "fast".

    Returns:
      The content of a .tflite file. Its signature, serving_default, has the inputs input, or input_0, input_1, ...;
      outputs likewise.

    Warns:
      UserWarning: the function does not use a quantized leaf, which is left out of the model.

    Raises:
      ValueError: a leaf cannot be stored: it has two scales, blocks, scales along two axes where it is used, or ones
        that are not finite, 5 bits on a logarithmic grid, or weights that are not float32. Or the function uses
        something that LiteRT or its converter does not have, which the message names: while loops, sorting, random
        numbers, integers of few bits. Or `form` is none of the two.
      ImportError: one of the two packages is not installed.

    Example:
      >>> import fobt, jax
      >>> import jax.numpy as jnp
      >>> quantized = fobt.quantize({"kernel": jnp.array([[1.0, -3.0], [2.0, 7.0]])}, None, fobt.linear(4))
      >>> x = jnp.ones((1, 2))
      >>> model = fobt.export.to_litert(lambda weights, x: x @ weights["kernel"], quantized, x)
      >>> from ai_edge_litert.interpreter import Interpreter
      >>> run = Interpreter(model_content=model).get_signature_runner()
      >>> run(input=x)["output"]
      array([[3., 4.]], dtype=float32)
    """
    if form not in ("portable", "fast"):
        raise ValueError(f"form must be 'portable' or 'fast', got {form!r}.")
    quantized = unpack(quantized)
    weights = dequantize(quantized)
    arrays, structure = jax.tree.flatten(weights)
    # The leaves are inputs of what is converted, so that no arithmetic is done with their values beforehand.
    leaves = {
        i: Weights.of(path, leaf)
        for i, (path, leaf) in enumerate(zip(leaf_paths(weights), leaves_of_quantized(quantized), strict=True))
        if isinstance(leaf, Quantized)
    }
    for leaf in leaves.values():
        check_leaf(leaf)
    leaves = {i: leaf for i, leaf in leaves.items() if leaf.codes.size}

    def of_leaves(values: list[jax.Array], *inputs: Any) -> Any:
        given = dict(zip(leaves, values, strict=True))
        return function(jax.tree.unflatten(structure, [given.get(i, array) for i, array in enumerate(arrays)]), *inputs)

    types = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves.values()]
    exported = jax.export.export(jax.jit(in_known_primitives(of_leaves), keep_unused=True), platforms=["cpu"])(
        types, *inputs
    )
    names = [f"leaf_{i}" for i in leaves]
    count = len(exported.in_avals) - len(leaves)
    content = convert(exported, [*names, *numbered("input", count)], numbered("output", len(exported.out_avals)))
    model, unused = store_weights(content, dict(zip(names, leaves.values(), strict=True)), fast=form == "fast")
    warn_of_unused(unused)
    check_runs(model, exported)
    return model
