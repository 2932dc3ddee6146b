"""Export of a function of quantized weights to ONNX: its jaxpr, one primitive after the other."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from fobt._exported import Weights
from fobt._leaves import leaf_paths
from fobt._onnx_graph import Constant, Graph, Tensor, Value
from fobt._onnx_primitives import CONVERTERS
from fobt._onnx_unpack import DOMAIN
from fobt._params import dequantize, leaves_of_quantized
from fobt._quantized import Quantized

# Primitives that call a jaxpr, and the name under which they hold it.
_CALLS = {
    "checkpoint": "jaxpr",
    "closed_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "remat2": "jaxpr",
}


def to_onnx(function: Callable[..., Any], quantized: Any, *inputs: Any, base3: bool = False) -> Any:
    """An ONNX model of a function whose quantized weights stay packed.

    The graph holds every quantized leaf as codes of the promised number of bits, and its scale:

    - linear grids of 2, 4 and 8 bits as INT2, INT4 and INT8, from which `DequantizeLinear` makes weights;
    - all others as bytes, from which a function of standard operators makes weights, one for each number of bits. Code
      c is the field c + n, or (c + 1)/2 on the binary grid; the stream of fields of the leaf, in C order and the least
      significant bit first, is cut into bytes. In base 3 a byte holds five fields, Σ uᵢ 3ⁱ. Ternary matrices whose rows
      do not fill bytes are stored like this, too, because onnxruntime misreads them as INT2.

    A kernel is stored in the order of axes in which the graph uses it. What does not depend on the inputs and on
    quantized leaves is computed beforehand. Two-bit tensors need opset 25 (onnxruntime 1.24 or newer); everything else
    is opset 21.

    By default onnxruntime fuses `DequantizeLinear` and `MatMul` into a kernel that rounds activations to 8 bits. Its
    session option `session.qdq_matmulnbits_accuracy_level` = "1" keeps them in float32.

    Args:
      function: from a tree of weights, and the inputs, to an array or a tree of arrays. It may use dense layers and
        convolutions, pooling, elementwise functions, reductions, reshaping, slicing, concatenation and padding.
      quantized: the tree of weights as `quantize` returns it; leaves that are not quantized are stored as they are.
      *inputs: one example, array or `jax.ShapeDtypeStruct`, for every further argument. A dimension that is symbolic
        (`jax.export.symbolic_shape`) is free in the model.
      base3: whether ternary weights take 1.6 bits, five to a byte, instead of 2.

    Returns:
      An `onnx.ModelProto`. Inputs are called input, or input_0, input_1, ...; outputs likewise.

    Raises:
      ValueError: the function has a primitive that has no counterpart here, which the message names, or a leaf is
        float64.
      ImportError: onnx is not installed.

    Example:
      >>> import fobt, jax
      >>> import jax.numpy as jnp
      >>> quantized = fobt.quantize({"kernel": jnp.array([[1.0, -3.0]])}, None, fobt.linear(4))
      >>> x = jax.ShapeDtypeStruct(jax.export.symbolic_shape("batch, 1"), jnp.float32)
      >>> model = fobt.to_onnx(lambda weights, x: x @ weights["kernel"], quantized, x)
      >>> [node.op_type for node in model.graph.node]
      ['DequantizeLinear', 'MatMul']
      >>> model.graph.initializer[0].raw_data.hex()  # codes 2 and -6
      'a2'
    """
    weights = dequantize(quantized)
    closed = jax.make_jaxpr(function)(weights, *inputs)
    input_types = closed.in_avals[len(jax.tree.leaves(weights)) :]
    names = _names("input", input_types)
    tensors = [Tensor(name, aval.shape) for name, aval in zip(names, input_types, strict=True)]
    graph = Graph(tensors, base3=base3)
    leaves = [
        Weights.of(path, leaf) if isinstance(leaf, Quantized) else Constant(np.asarray(leaf))
        for path, leaf in zip(leaf_paths(weights), leaves_of_quantized(quantized), strict=True)
    ]
    constants = [Constant(np.asarray(constant)) for constant in closed.consts]
    results = _convert(graph, closed.jaxpr, constants, [*leaves, *tensors])
    return _model(graph, tensors, input_types, results, closed.out_avals)


def _convert(graph: Graph, jaxpr: Any, constants: list[Any], arguments: list[Value]) -> list[Value]:
    """The values of the outputs of a jaxpr."""
    values: dict[Any, Value] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *arguments], strict=True))

    def read(atom: Any) -> Value:
        is_literal = isinstance(atom, core.Literal)
        return Constant(np.asarray(atom.val, atom.aval.dtype)) if is_literal else values[atom]

    for eqn in jaxpr.eqns:
        inputs = [read(atom) for atom in eqn.invars]
        name = eqn.primitive.name
        if name in _CALLS:
            called = eqn.params[_CALLS[name]]
            consts = [Constant(np.asarray(constant)) for constant in getattr(called, "consts", ())]
            outputs = _convert(graph, getattr(called, "jaxpr", called), consts, inputs)
        elif (arrays := _known(eqn, inputs)) is not None:
            results = eqn.primitive.bind(*map(jnp.asarray, arrays), **eqn.params)
            results = results if eqn.primitive.multiple_results else [results]
            outputs = [Constant(np.asarray(result)) for result in results]
        elif name in CONVERTERS:
            outputs = [CONVERTERS[name](graph, eqn, *inputs)]
        else:
            raise ValueError(
                f"function has the primitive {name}, which to_onnx cannot convert; it knows {', '.join(CONVERTERS)}."
            )
        values.update(zip(eqn.outvars, outputs, strict=True))
    return [graph.expand(read(atom), atom.aval.shape) for atom in jaxpr.outvars]


def _known(eqn: Any, inputs: list[Value]) -> list[np.ndarray] | None:
    """The inputs of an equation that is evaluated beforehand: all are known, and its result is not merely larger."""
    arrays = [value.array for value in inputs if isinstance(value, Constant)]
    shapes = [var.aval.shape for var in eqn.outvars]
    sizes = [size for shape in shapes for size in shape]
    if len(arrays) < len(inputs) or not all(isinstance(size, int) for size in [*sizes, eqn.params.get("dim", 0)]):
        return None
    is_larger = eqn.primitive.name == "broadcast_in_dim" and math.prod(shapes[0]) > arrays[0].size
    return None if is_larger else arrays


def _names(stem: str, items: list[Any]) -> list[str]:
    return [stem] if len(items) == 1 else [f"{stem}_{i}" for i in range(len(items))]


def _model(
    graph: Graph, inputs: list[Tensor], input_types: list[Any], results: list[Value], output_types: list[Any]
) -> Any:
    helper = graph.onnx.helper

    def describe(name: str, like: Any) -> Any:
        shape = [size if isinstance(size, int) else str(size) for size in like.shape]
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(like.dtype)), shape)

    names = _names("output", results)
    graph.add_outputs(names, results)
    opsets = [helper.make_opsetid("", graph.opset)]
    functions = [
        helper.make_function(DOMAIN, name, ["bytes", "levels", "shape"], ["weights"], nodes, opsets)
        for name, nodes in graph.functions.items()
    ]
    used = opsets + ([helper.make_opsetid(DOMAIN, 1)] if functions else [])
    return helper.make_model(
        helper.make_graph(
            graph.nodes,
            "fobt",
            [describe(tensor.name, like) for tensor, like in zip(inputs, input_types, strict=True)],
            [describe(name, like) for name, like in zip(names, output_types, strict=True)],
            list(graph.initializers.values()),
        ),
        producer_name="fobt",
        opset_imports=used,
        ir_version=helper.find_min_ir_version_for(opsets),
        functions=functions,
    )
