"""A LiteRT model that is read, changed and written: its tensors, buffers and operators."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

Layout = Callable[[Any], Any]


class Graph:
    """The main graph of a model, and the buffers and operator kinds that it shares with the others."""

    def __init__(self, content: bytes):
        self._flatbuffer, self._schema = import_litert()
        self._model = self._flatbuffer.read_model_from_bytearray(bytearray(content))
        self._graph = self._model.subgraphs[0]
        self._buffers: dict[bytes, int] = {}

    def content(self) -> bytes:
        """The model as a file."""
        used = {tensor.buffer for graph in self._model.subgraphs for tensor in graph.tensors}
        used |= {entry.buffer for entry in self._model.metadata or ()}
        for index, buffer in enumerate(self._model.buffers):
            if index not in used:
                buffer.data = None
        return bytes(self._flatbuffer.convert_object_to_bytearray(self._model))

    def take_inputs(self, names: Collection[str]) -> dict[str, int]:
        """Removes inputs from the signature and the graph; returns their tensors."""
        (signature,) = self._model.signatureDefs
        found = {entry.name.decode(): entry.tensorIndex for entry in signature.inputs or ()}
        taken = {name: found[name] for name in names}
        signature.inputs = [entry for entry in signature.inputs or () if entry.name.decode() not in taken]
        self._graph.inputs = [tensor for tensor in self._graph.inputs if tensor not in taken.values()]
        return taken

    @property
    def operators(self) -> list[Any]:
        """The operators, in the order in which they run."""
        return list(self._graph.operators or ())

    @operators.setter
    def operators(self, operators: list[Any]) -> None:
        self._graph.operators = operators

    def users(self, tensor: int) -> list[Any]:
        """The operators that have a tensor among their inputs."""
        return [operator for operator in self._graph.operators or () if tensor in operator.inputs]

    def is_output(self, tensor: int) -> bool:
        """Whether a tensor is an output of the graph."""
        return tensor in self._graph.outputs

    def remove(self, operator: Any) -> None:
        """Removes an operator."""
        self._graph.operators.remove(operator)

    def layout(self, operator: Any) -> Layout | None:
        """What an operator does to its first input, if it only puts elements elsewhere or leaves some out."""
        kinds, kind = self._schema.BuiltinOperator, self._kind(operator)
        shape = tuple(self._graph.tensors[operator.outputs[0]].shape)
        if kind in (kinds.RESHAPE, kinds.SQUEEZE, kinds.EXPAND_DIMS):
            return lambda array: array.reshape(shape)
        constants = [constant for tensor in operator.inputs[1:] if (constant := self._constant(tensor)) is not None]
        if not constants or len(constants) < len(operator.inputs) - 1:
            return None
        first = constants[0]
        if kind == kinds.TRANSPOSE:
            return lambda array: array.transpose(first)
        if kind == kinds.REVERSE_V2:
            return lambda array: np.flip(array, tuple(first))
        if kind == kinds.SLICE:
            return lambda array: array[_slices(first, shape, np.ones_like(first))]
        if kind == kinds.STRIDED_SLICE and not any(vars(operator.builtinOptions).values()):
            return lambda array: array[_slices(first, shape, constants[2])]
        return None

    def is_product_with_matrix(self, operator: Any, matrix: int) -> bool:
        """Whether an operator multiplies rows of something else by a matrix with two axes."""
        if self._kind(operator) != self._schema.BuiltinOperator.BATCH_MATMUL:
            return False
        rows, columns = operator.inputs
        flags = operator.builtinOptions
        plain = flags is None or not (flags.adjX or flags.adjY)
        return plain and columns == matrix != rows and len(self._graph.tensors[matrix].shape) == 2

    def make_dense(self, operator: Any, transposed: int) -> None:
        """Makes a product with a matrix a dense layer of the transposed matrix."""
        schema = self._schema
        operator.opcodeIndex = self._operator_code(schema.BuiltinOperator.FULLY_CONNECTED)
        operator.inputs = [operator.inputs[0], transposed, -1]
        operator.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
        operator.builtinOptions = schema.FullyConnectedOptionsT()
        operator.builtinOptions.keepNumDims = True

    def new_tensor(self, shape: Sequence[int]) -> int:
        """Adds a tensor of float32."""
        tensor = self._schema.TensorT()
        tensor.shape, tensor.type, tensor.buffer = list(shape), self._schema.TensorType.FLOAT32, 0
        self._graph.tensors.append(tensor)
        return len(self._graph.tensors) - 1

    def reader(self, operator: Any, tensor: int) -> str | None:
        """The name of an operator that can read a tensor as integers, as its weights."""
        kinds = self._schema.BuiltinOperator
        names = {kinds.FULLY_CONNECTED: "FULLY_CONNECTED", kinds.CONV_2D: "CONV_2D"}
        inputs = list(operator.inputs)
        return names.get(self._kind(operator)) if inputs.count(tensor) == 1 and inputs[1] == tensor else None

    def add_integers(
        self, shape: Sequence[int], name: str, integers: np.ndarray, bits: int, scale: np.ndarray, axis: int
    ) -> int:
        """Adds a tensor of integers, given as their bytes, with a scale for each index of an axis."""
        schema = self._schema
        constant = self.new_tensor(shape)
        entry = self._graph.tensors[constant]
        entry.name = name
        entry.type = {2: schema.TensorType.INT2, 4: schema.TensorType.INT4, 8: schema.TensorType.INT8}[bits]
        entry.buffer = self._buffer(integers)
        entry.quantization = schema.QuantizationParametersT()
        entry.quantization.scale = scale
        entry.quantization.zeroPoint = np.zeros(scale.size, np.int64)
        entry.quantization.quantizedDimension = axis
        return constant

    def add_dequantize(self, integers: int, tensor: int) -> None:
        """Makes a tensor the product of integers and their scales."""
        dequantize = self._schema.OperatorT()
        dequantize.opcodeIndex = self._operator_code(self._schema.BuiltinOperator.DEQUANTIZE)
        dequantize.inputs, dequantize.outputs = [integers], [tensor]
        self._graph.operators = [dequantize, *(self._graph.operators or ())]

    def new_codes(self, like: int, scale: np.float32, zero: int) -> int:
        """Adds a tensor of int8 codes in the shape of another tensor, which stand for scale · (code - zero)."""
        tensor = self.new_tensor(self.shape(like))
        entry = self._graph.tensors[tensor]
        entry.shapeSignature, entry.type = self._graph.tensors[like].shapeSignature, self._schema.TensorType.INT8
        entry.quantization = self._schema.QuantizationParametersT()
        entry.quantization.scale = np.array([scale], np.float32)
        entry.quantization.zeroPoint = np.array([zero], np.int64)
        return tensor

    def new_bias(self, codes: np.ndarray, scale: np.ndarray) -> int:
        """Adds a constant of int32, each one with a scale of its own."""
        tensor = self.new_tensor(codes.shape)
        entry = self._graph.tensors[tensor]
        entry.type, entry.buffer = self._schema.TensorType.INT32, self._buffer(codes.view(np.uint8))
        entry.quantization = self._schema.QuantizationParametersT()
        entry.quantization.scale, entry.quantization.zeroPoint = scale, np.zeros(scale.size, np.int64)
        return tensor

    def new_operator(self, name: str, source: int, target: int) -> Any:
        """An operator from one tensor to another, which is not in the graph yet."""
        operator = self._schema.OperatorT()
        operator.opcodeIndex = self._operator_code(getattr(self._schema.BuiltinOperator, name))
        operator.inputs, operator.outputs = [source], [target]
        return operator

    def name_of(self, operator: Any) -> str:
        """The kind of an operator."""
        kind = self._kind(operator)
        return next(name for name, number in vars(self._schema.BuiltinOperator).items() if number == kind)

    def composite(self, operator: Any) -> str | None:
        """The name of a composite, or None for any other operator."""
        if self.name_of(operator) != "STABLEHLO_COMPOSITE":
            return None
        return operator.builtinOptions2.name.decode()

    def drop_composites(self) -> None:
        """Removes what composites consist of, once no operator is one."""
        self._model.subgraphs = [self._graph]

    def shape(self, tensor: int) -> tuple[int, ...]:
        """The shape of a tensor."""
        return tuple(self._graph.tensors[tensor].shape)

    def codes_of(self, tensor: int) -> int | None:
        """The integers with scales that a tensor is, or that it is made of; None for any other tensor."""
        if self.scales(tensor).size:
            return tensor
        makers = (maker for maker in self.operators if tensor in maker.outputs)
        return next((maker.inputs[0] for maker in makers if self.name_of(maker) == "DEQUANTIZE"), None)

    def enlarge(self, weights: int) -> None:
        """Makes integers of 8 bits larger by a power of two, and their scales smaller, if one operator reads them."""
        entry = self._graph.tensors[weights]
        if entry.type != self._schema.TensorType.INT8 or len(self.users(weights)) > 1:
            return
        integers = np.frombuffer(bytes(self._model.buffers[entry.buffer].data), np.int8)
        factor = 2 ** int(np.log2(127 / max(1, np.abs(integers.astype(int)).max())))
        entry.buffer = self._buffer((integers * np.int8(factor)).view(np.uint8))
        entry.quantization.scale = self.scales(weights).astype(np.float32) / np.float32(factor)

    def scales(self, tensor: int) -> np.ndarray:
        """The scales of a tensor of integers; none for other tensors."""
        quantization = self._graph.tensors[tensor].quantization
        return np.zeros(0) if quantization is None or quantization.scale is None else np.array(quantization.scale)

    def zero(self, tensor: int) -> int:
        """The zero point of a tensor of codes."""
        return int(self._graph.tensors[tensor].quantization.zeroPoint[0])

    def has_relu(self, operator: Any) -> bool:
        """Whether an operator clips its output at zero, and in no other way."""
        return operator.builtinOptions.fusedActivationFunction == self._schema.ActivationFunctionType.RELU

    def set_relu(self, operator: Any) -> None:
        """Makes an operator clip its output at zero."""
        operator.builtinOptions.fusedActivationFunction = self._schema.ActivationFunctionType.RELU

    def has_no_activation(self, operator: Any) -> bool:
        """Whether an operator leaves its output as it is."""
        return operator.builtinOptions.fusedActivationFunction == self._schema.ActivationFunctionType.NONE

    def floats(self, tensor: int) -> np.ndarray | None:
        """The numbers of a constant of float32, or None."""
        entry = self._graph.tensors[tensor]
        data = self._model.buffers[entry.buffer].data
        if data is None or entry.type != self._schema.TensorType.FLOAT32:
            return None
        return np.frombuffer(bytes(data), np.float32).reshape(entry.shape)

    def add_metadata(self, name: str, text: str) -> None:
        """Adds a text to the metadata."""
        entry = self._schema.MetadataT()
        entry.name, entry.buffer = name, self._buffer(np.frombuffer(text.encode(), np.uint8))
        self._model.metadata = [*(self._model.metadata or ()), entry]

    def _buffer(self, data: np.ndarray) -> int:
        """A buffer with this content; equal ones are stored once."""
        key = data.tobytes()
        if key not in self._buffers:
            self._buffers[key] = len(self._model.buffers)
            buffer = self._schema.BufferT()
            buffer.data = data
            self._model.buffers.append(buffer)
        return self._buffers[key]

    def _constant(self, tensor: int) -> np.ndarray | None:
        """The integers of a constant, or None."""
        entry = self._graph.tensors[tensor]
        data = self._model.buffers[entry.buffer].data
        dtype = {self._schema.TensorType.INT32: np.int32, self._schema.TensorType.INT64: np.int64}.get(entry.type)
        return None if data is None or dtype is None else np.frombuffer(bytes(data), dtype)

    def _kind(self, operator: Any) -> int:
        code = self._model.operatorCodes[operator.opcodeIndex]
        return max(code.builtinCode, code.deprecatedBuiltinCode)

    def _operator_code(self, kind: int) -> int:
        """Where the model lists an operator kind among those that it uses."""
        for index, code in enumerate(self._model.operatorCodes or ()):
            if code.builtinCode == kind:
                return index
        code = self._schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = kind
        self._model.operatorCodes = [*(self._model.operatorCodes or ()), code]
        return len(self._model.operatorCodes) - 1


def import_litert() -> tuple[Any, Any]:
    """The modules of ai-edge-litert for reading and writing models, imported only where one is written."""
    try:
        from ai_edge_litert import schema_py_generated
        from ai_edge_litert.tools import flatbuffer_utils
    except ImportError as error:
        raise ImportError("to_litert needs the package ai-edge-litert: pip install 'fobt[litert]'.") from error
    return flatbuffer_utils, schema_py_generated


def read_metadata(content: bytes, name: str) -> str | None:
    """The text that a model has in its metadata under a name, if it has any."""
    flatbuffer, _ = import_litert()
    model = flatbuffer.read_model_from_bytearray(bytearray(content))
    for entry in model.metadata or ():
        if entry.name.decode() == name:
            return bytes(model.buffers[entry.buffer].data).decode()
    return None


def _slices(begin: np.ndarray, shape: Sequence[int], strides: np.ndarray) -> Any:
    return tuple(slice(b, b + n * s, s) for b, n, s in zip(begin, shape, strides, strict=True))
