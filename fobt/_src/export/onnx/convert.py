"""Export of a function of quantized weights to ONNX: its jaxpr, one primitive after the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from fobt._src.base.tree_paths import leaf_paths
from fobt._src.export.calls import called_jaxpr, is_fake_quantize
from fobt._src.export.onnx.activations import followed, quantized_activations
from fobt._src.export.onnx.forms import Fast, Portable
from fobt._src.export.onnx.functions import DOMAIN
from fobt._src.export.onnx.graph import Constant, Graph, Tensor, Value
from fobt._src.export.onnx.loops import unrolled
from fobt._src.export.onnx.primitives import CONVERTERS
from fobt._src.export.onnx.types import Unsupported
from fobt._src.export.report import KEY, described
from fobt._src.export.weights import Weights, numbered, warn_of_unused
from fobt._src.packed.packing import unpack
from fobt._src.quantizers.quantized import Quantized
from fobt._src.trees.params import dequantize, leaves_of_quantized


def to_onnx(
    function: Callable[..., Any],
    quantized: Any,
    *inputs: Any,
    form: Literal["portable", "fast"] = "portable",
    base3: bool = False,
) -> Any:
    """An ONNX model of a function whose quantized weights stay packed.

    The file holds every quantized leaf as codes of the promised number of bits, and its scale:

    - linear grids of 2, 4 and 8 bits as INT2, INT4 and INT8;
    - all others as bytes, one function of standard operators for each number of bits. Code c is the field c + n, or
      (c + 1)/2 on the binary grid; the stream of fields of the leaf, in C order and the least significant bit first, is
      cut into bytes. In base 3 a byte holds five fields, Σ uᵢ 3ⁱ.

    The form is what becomes of them:

    - "portable": standard operators, from which float32 weights are computed once, when a runtime loads the model. It
      computes what JAX computes, to rounding, at the speed of a model in float32, and takes as much memory.
    - "fast": operators of onnxruntime (domain com.microsoft) that multiply by integers, where they are faster than
      float32 on a CPU. For 1 to 4 rows at a time that is `MatMulNBits`, which keeps 2, 4 or 8 bits in memory; for more,
      or any number (a symbolic one), `DynamicQuantizeLinear` and `MatMulIntegerToFloat`, which keep int8. So a model
      that runs on one row is best exported with an example of one row. Convolutions with 128 or more output channels
      become products of the latter kind. Codes and scales stay exactly what they are; activations are rounded to 8
      bits, in blocks of a row in the first case, with one scale for a whole array in the second. What is no faster in
      integers, small matrices and kernels of few channels, stays in float32, and so do grids that the operators do not
      have (two scales, logarithmic ones of 5 bits): `operator_report` says for each leaf which operator multiplies by
      it, and why. Logarithmic grids of 3 and 4 bits are stored in 4 and 8 bits, linear ones of 3 in 4, and of 5 to 7 in
      8. A matrix that is used in two ways, such as an embedding that is tied to the output, is stored twice.

    What `fobt.fake_quantize` rounds to 8 bits, with a range that is known, becomes uint8 codes: `QuantizeLinear`, and
    `DequantizeLinear` where floats are needed. In the fast form all products with codes are those of integers, and a
    convolution whose output is rounded as well is `QLinearConv`, with its bias (in int32), ReLU and max-pooling;
    so a network runs in integers from the first rounding to the last. Codes differ from JAX's by one where a sum falls
    between two of them to rounding.

    A leaf is stored once, in the order of axes in which the graph uses it first, under its path; where that is a name
    of the graph's own, such as input, it has a number behind it. Of layers that are stacked for a loop each has weights
    of its own, with its number behind the path. What does not depend on the inputs and on quantized
    leaves is computed beforehand. Two-bit tensors need opset 25 (onnxruntime 1.24 or newer); everything else is opset
    21.

    Integers wrap around, and dtypes for which onnxruntime has no kernels are carried in wider ones. What may differ
    from JAX is an index out of range, which onnxruntime refuses when it runs, and a maximum over numbers of which some
    are NaN. Both forms are meant for onnxruntime's default session options.

    Args:
      function: from a tree of weights, and the inputs, to an array or a tree of arrays. It may use dense layers,
        embeddings, convolutions and transposed ones, pooling, elementwise functions, reductions, sorting, reshaping,
        slicing, indexing, concatenation and padding; and loops of a known number of steps (`lax.scan`), which are
        unrolled.
      quantized: the tree of weights as `quantize` or `pack` returns it; other leaves are stored as they are.
      *inputs: one example, array or `jax.ShapeDtypeStruct`, for every further argument. A dimension that is symbolic
        (`jax.export.symbolic_shape`) is free in the model.
      form: "portable" or "fast".
      base3: whether ternary weights take 1.6 bits, five to a byte, instead of 2; not in the fast form.

    Returns:
      An `onnx.ModelProto`. Inputs are called input, or input_0, input_1, ...; outputs likewise.

    Warns:
      UserWarning: the function does not use a quantized leaf, which is left out of the model.

    Raises:
      ValueError: the function has a primitive that has no counterpart here, or not for its dtype or parameters, which
        the message names; it returns no array; a quantized leaf is float64; `form` is none of the two; or `base3` is
        not for the form.
      ImportError: onnx is not installed.

    Example:
      >>> import fobt, jax
      >>> import jax.numpy as jnp
      >>> quantized = fobt.quantize({"kernel": jnp.array([[1.0, -3.0]])}, None, fobt.linear(4))
      >>> x = jax.ShapeDtypeStruct(jax.export.symbolic_shape("batch, 1"), jnp.float32)
      >>> model = fobt.export.to_onnx(lambda weights, x: x @ weights["kernel"], quantized, x)
      >>> [node.op_type for node in model.graph.node]
      ['Cast', 'Mul', 'MatMul']
      >>> model.graph.initializer[0].raw_data.hex()  # codes 2 and -6
      'a2'
    """
    if form not in ("portable", "fast"):
        raise ValueError(f"form must be 'portable' or 'fast', got {form!r}.")
    if base3 and form == "fast":
        raise ValueError("base3 must be False for form='fast', whose products read 2 bits, got True.")
    storage = Fast() if form == "fast" else Portable(base3=base3)
    quantized = unpack(quantized)
    weights = dequantize(quantized)
    closed = jax.make_jaxpr(function)(weights, *inputs)
    if not closed.out_avals:
        raise ValueError("function must return an array or a tree of arrays, got no array.")
    input_types = closed.in_avals[len(jax.tree.leaves(weights)) :]
    tensors = [
        Tensor(name, aval.shape, np.dtype(aval.dtype))
        for name, aval in zip(numbered("input", len(input_types)), input_types, strict=True)
    ]
    leaves = [_leaf(path, leaf) for path, leaf in zip(leaf_paths(weights), leaves_of_quantized(quantized), strict=True)]
    paths = [leaf.name for leaf in leaves if isinstance(leaf, Weights)]
    graph = Graph(tensors, numbered("output", len(closed.out_avals)), paths, storage)
    graph.add_outputs(_convert(graph, closed, [*leaves, *tensors]))
    warn_of_unused(graph.unused_leaves())
    model = _model(graph, tensors, closed.out_avals)
    if isinstance(storage, Fast):
        graph.onnx.helper.set_model_props(model, {KEY: described(storage.leaves)})
    return model


def _leaf(path: str, leaf: Any) -> Value:
    if not isinstance(leaf, Quantized):
        return Constant(np.asarray(leaf))
    return Weights.of(path, leaf) if leaf.codes.size else Constant(np.asarray(leaf.dequantize()))


def _constants(arrays: Iterable[Any]) -> list[Value]:
    return [Constant(np.asarray(array)) for array in arrays]


def _convert(graph: Graph, closed: core.ClosedJaxpr, arguments: list[Value]) -> list[Value]:
    """The values of the outputs of a jaxpr."""
    jaxpr, constants = closed.jaxpr, _constants(closed.consts)
    values: dict[Any, Value] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *arguments], strict=True))

    def read(atom: Any) -> Value:
        is_literal = isinstance(atom, core.Literal)
        return Constant(np.asarray(atom.val, atom.aval.dtype)) if is_literal else values[atom]

    for eqn in jaxpr.eqns:
        inputs = [read(atom) for atom in eqn.invars]
        codes = quantized_activations(graph, inputs) if is_fake_quantize(eqn) else None
        if codes is not None:
            outputs: list[Value] = [codes]
        elif (called := called_jaxpr(eqn)) is not None:
            outputs = _convert(graph, called, inputs)
        elif (known := _known(eqn, inputs)) is not None:
            outputs = known
        else:
            outputs = _converted(graph, eqn, inputs)
        values.update(zip(eqn.outvars, outputs, strict=True))
    try:
        return [graph.expand(read(atom), atom.aval.shape) for atom in jaxpr.outvars]
    except Unsupported as reason:
        raise ValueError(f"function has an output {reason}, which to_onnx cannot convert.") from None


def _converted(graph: Graph, eqn: Any, inputs: list[Value]) -> list[Value]:
    """The outputs of an equation, computed by the graph."""
    name = eqn.primitive.name
    if name not in (*CONVERTERS, "scan"):
        raise ValueError(
            f"function has the primitive {name}, which to_onnx cannot convert; it knows {', '.join(CONVERTERS)}, scan."
        )
    if name in CONVERTERS and (pending := followed(graph, eqn, inputs, CONVERTERS[name])) is not None:
        return [pending]
    try:
        outputs: Any = (
            unrolled(graph, eqn, inputs, _convert) if name == "scan" else CONVERTERS[name](graph, eqn, *inputs)
        )
    except Unsupported as reason:
        raise ValueError(f"function has the primitive {name} {reason}, which to_onnx cannot convert.") from None
    return outputs if eqn.primitive.multiple_results else [outputs]


def _known(eqn: Any, inputs: list[Value]) -> list[Value] | None:
    """The outputs of an equation that is evaluated beforehand: its inputs are known, or there are no numbers in them.

    What is merely larger than its input is left to the operators.
    """
    in_shapes, out_shapes = ([var.aval.shape for var in some] for some in (eqn.invars, eqn.outvars))
    if not all(isinstance(size, int) for shape in (*in_shapes, *out_shapes) for size in shape):
        return None
    if all(0 in shape for shape in out_shapes):
        return [Constant(np.zeros(var.aval.shape, var.aval.dtype)) for var in eqn.outvars]
    arrays = [_array(value, var.aval) for value, var in zip(inputs, eqn.invars, strict=True)]
    is_larger = eqn.primitive.name == "broadcast_in_dim" and math.prod(out_shapes[0]) > math.prod(in_shapes[0])
    if is_larger or any(array is None for array in arrays) or not isinstance(eqn.params.get("dim", 0), int):
        return None
    results = eqn.primitive.bind(*map(jnp.asarray, arrays), **eqn.params)
    return _constants(results if eqn.primitive.multiple_results else [results])


def _array(value: Value, aval: Any) -> np.ndarray | None:
    """The numbers of a value, where they are known or there are none."""
    if 0 in aval.shape:
        return np.zeros(aval.shape, aval.dtype)
    return np.broadcast_to(value.array, aval.shape) if isinstance(value, Constant) else None


def _model(graph: Graph, inputs: Sequence[Tensor], output_types: Sequence[Any]) -> Any:
    helper = graph.onnx.helper

    def describe(name: str, like: Any) -> Any:
        shape = [size if isinstance(size, int) else str(size) for size in like.shape]
        return helper.make_tensor_value_info(name, graph.data_type(like.dtype), shape)

    opsets = [helper.make_opsetid("", graph.opset)]
    functions = [helper.make_function(DOMAIN, name, *body, opsets) for name, body in graph.functions.items()]
    used_domains = {node.domain for node in graph.nodes if node.domain}
    used = opsets + [helper.make_opsetid(domain, 1) for domain in sorted(used_domains)]
    return helper.make_model(
        helper.make_graph(
            graph.nodes,
            "fobt",
            [describe(tensor.name, tensor) for tensor in inputs],
            [describe(name, like) for name, like in zip(graph.outputs, output_types, strict=True)],
            list(graph.initializers.values()),
        ),
        producer_name="fobt",
        opset_imports=used,
        ir_version=helper.find_min_ir_version_for(opsets),
        functions=functions,
    )
