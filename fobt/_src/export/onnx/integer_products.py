"""Products with matrices of few bits, in the operators that onnxruntime has for them.

Both round activations to 8 bits: MatMulNBits, which is made for a few rows, in blocks of 128 for each row;
MatMulIntegerToFloat, which is made for many, with one scale for the whole array.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fobt._src.export.integers import Integers
from fobt._src.export.onnx.graph import Graph, Tensor, Value
from fobt._src.export.onnx.weights import store_integers
from fobt._src.packed.layout import pack_fields

DOMAIN = "com.microsoft"
BLOCKS = (128, 64, 32)  # of MatMulNBits; the first one is the fastest, and 2-bit kernels have no larger one
# Where matrices are smaller, kernels of 4 bits are as fast as those of 2 bits, or faster.
_WEIGHTS_FOR_2_BITS = 2**22


def nbits_blocks(matrix: Integers) -> int | None:
    """The weights of a block that share a step, or None where even the smallest blocks do not."""
    return next((size for size in BLOCKS if _block_steps(matrix, size) is not None), None)


def _block_steps(matrix: Integers, size: int) -> np.ndarray | None:
    """The steps as [N, blocks], or as [N, 1] or [1, 1] where all blocks or all weights share them."""
    rows = matrix.codes.shape[0]
    if len(matrix.step) == 1:
        return matrix.step.T
    blocks = -(-rows // size)
    padded = np.pad(matrix.step, ((0, blocks * size - rows), (0, 0)), mode="edge").reshape(blocks, size, -1)
    if np.any(padded != padded[:, :1]):
        return None
    steps = padded[:, 0].T
    return np.broadcast_to(steps, (matrix.codes.shape[1], blocks))


def stored_bits(matrix: Integers) -> int:
    """The bits of each integer in the file: 1 where all are 1 or -1."""
    return 1 if matrix.bits == 2 and bool(np.all(matrix.codes)) else matrix.bits


def nbits_width(matrix: Integers) -> int:
    """The bits of the kernel: 2, 4 or 8."""
    return 4 if matrix.bits == 2 and matrix.codes.size < _WEIGHTS_FOR_2_BITS else matrix.bits


def nbits_weights(graph: Graph, matrix: Integers) -> list[Tensor | np.ndarray]:
    """The weights of MatMulNBits, uint8 [N, blocks, bytes of a block], and their steps, [N, blocks].

    Field u = integer + 2^(bits - 1), the lowest bits of a byte first. The last block of each output is filled up.
    """
    size, bits, stored = nbits_blocks(matrix) or 0, nbits_width(matrix), stored_bits(matrix)
    (rows, columns), blocks = matrix.codes.shape, -(-matrix.codes.shape[0] // size)
    # Whatever fills up a block is multiplied by nothing; one bit has no zero.
    codes = np.pad(matrix.codes.T, ((0, 0), (0, blocks * size - rows)), constant_values=1 if stored == 1 else 0)
    fields = (codes > 0).astype(np.uint8) if stored == 1 else codes.view(np.uint8) + np.uint8(2 ** (stored - 1))
    content, shape = pack_fields(fields.ravel(), stored, "bits"), (columns, blocks, size * bits // 8)
    if stored == bits:
        weights = graph.store(graph.onnx.TensorProto.UINT8, shape, content.tobytes(), matrix.name)
    else:
        integers = np.array([-1, 1]) if stored == 1 else np.arange(4) - 2
        wide = (integers + 2 ** (bits - 1)).astype(np.uint8)
        table = pack_fields(wide[_fields_of_bytes(stored)].ravel(), bits, "bits").reshape(256, -1)
        weights = _looked_up(graph, content, table, shape, matrix.name)
    steps = _block_steps(matrix, size)
    assert steps is not None
    whole = (columns, blocks)
    return [weights, steps if steps.shape == whole else graph.add("Expand", [steps, np.array(whole)], whole)]


def nbits_product(graph: Graph, rows: Value, matrix: Integers, weights: list[Tensor | np.ndarray]) -> Tensor:
    """MatMulNBits: activations are rounded to 8 bits in blocks of a row."""
    shape = matrix.codes.shape
    return graph.add(
        "MatMulNBits",
        [rows, *weights],
        (*rows.shape[:-1], shape[1]),
        domain=DOMAIN,
        K=shape[0],
        N=shape[1],
        bits=nbits_width(matrix),
        block_size=nbits_blocks(matrix),
        accuracy_level=4,  # 8-bit activations; without it kernels of 2 and 8 bits are slower than float32
    )


def int8_weights(graph: Graph, matrix: Integers, factor: int = 1) -> list[Tensor | np.ndarray]:
    """The weights as int8, from 1, 2, 4 or 8 bits in the file, and their steps, of one axis or a scalar.

    Args:
      graph: where they are stored.
      matrix: the integers, of any shape.
      factor: a power of two by which the integers are larger and the steps smaller.
    """
    step = (matrix.step.ravel() if matrix.step.size > 1 else matrix.step.reshape(())) / np.float32(factor)
    if stored_bits(matrix) > 1:
        if factor == 1:
            return [store_integers(graph, matrix.codes, matrix.bits, matrix.name, np.int8), step]
        wide = store_integers(graph, matrix.codes, matrix.bits, matrix.name, np.int32)
        larger = graph.add("Mul", [wide, np.array(factor, np.int32)], wide.shape)
        return [graph.add("Cast", [larger], wide.shape, np.int8, to=graph.data_type(np.int8)), step]
    content = pack_fields((matrix.codes > 0).astype(np.uint8).ravel(), 1, "bits")
    table = np.array([-factor, factor], np.int8)[_fields_of_bytes(1)]
    return [_looked_up(graph, content, table, matrix.codes.shape, matrix.name), step]


def quantized_rows(graph: Graph, rows: Value) -> list[Tensor]:
    """Activations as uint8, with the scale and the zero point of the whole array."""
    return graph.add_many("DynamicQuantizeLinear", [rows], [rows.shape, (), ()], [np.uint8, np.float32, np.uint8])


def int8_product(graph: Graph, rows: Sequence[Tensor | np.ndarray], weights: list[Tensor | np.ndarray]) -> Tensor:
    """MatMulIntegerToFloat, for activations that are quantized already."""
    (values, scale, zero), (integers, step) = rows, weights
    shape = (*values.shape[:-1], integers.shape[1])
    return graph.add("MatMulIntegerToFloat", [values, integers, scale, step, zero], shape, np.float32, domain=DOMAIN)


def _fields_of_bytes(bits: int) -> np.ndarray:
    """The fields in each of the 256 bytes, [256, 8/bits]."""
    return np.arange(256)[:, None] >> np.arange(0, 8, bits) & 2**bits - 1


def _looked_up(graph: Graph, content: np.ndarray, table: np.ndarray, shape: tuple[int, ...], name: str) -> Tensor:
    """The rows of a table at every byte, as an array of that shape; a runtime computes it as it loads the model."""
    stored = graph.store(graph.onnx.TensorProto.UINT8, content.shape, content.tobytes(), name)
    # Indices of Gather have 32 or 64 bits.
    indices = graph.add("Cast", [stored], content.shape, np.int32, to=graph.data_type(np.int32))
    rows = graph.add("Gather", [table, indices], (len(content), table.shape[1]), table.dtype)
    size = math.prod(shape)
    if size < len(content) * table.shape[1]:
        flat = graph.add("Reshape", [rows, np.array([-1])], (len(content) * table.shape[1],))
        rows = graph.add("Slice", [flat, np.array([0]), np.array([size])], (size,))
    return graph.add("Reshape", [rows, np.array(shape)], shape)
