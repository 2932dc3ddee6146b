"""Export of quantized weights to GGUF, the files of llama.cpp."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import numpy as np

from fobt._src.base.tree_paths import leaf_paths
from fobt._src.export.gguf.blocks import TYPES
from fobt._src.export.gguf.container import StoredTensor, gguf_file
from fobt._src.export.integers import Integers, why_no_integers
from fobt._src.export.weights import Weights, warn_of_unused
from fobt._src.packed.packing import unpack
from fobt._src.quantizers.quantized import Quantized
from fobt._src.trees.params import dequantize, leaves_of_quantized

_FLOAT_TYPES = {"float32": 0, "float16": 1}
TernaryType = Literal["TQ1_0", "TQ2_0", "Q4_0"]


def to_gguf(
    function: Callable[[Any], Mapping[str, Any]],
    quantized: Any,
    metadata: Mapping[str, Any],
    *,
    ternary: TernaryType = "TQ2_0",
) -> bytes:
    """A GGUF file of weights, with quantized leaves as blocks of few bits.

    - Binary and ternary leaves are of the type `ternary`: TQ1_0 has 1.69 bits for each weight and TQ2_0 2.06, in blocks
      of 256, Q4_0 has 4.5 in blocks of 32.
    - Other leaves whose levels are multiples -8 to 7 of the smallest one, linear grids of 3 and 4 bits and logarithmic
      ones of 3, are Q4_0.
    - Leaves that are not quantized are F32, and F16 where they are float16.

    Blocks lie along the last axis, that of the inputs of a matrix. Codes stay exactly what they are; the scale of a
    block is half precision, so that it is rounded by up to 2^-11 of itself.

    Args:
      function: from the tree of weights to a mapping from the names of tensors in the file to arrays. It only renames
        and rearranges: slices, transposes, reshapes, reverses. A matrix of ggml is outputs × inputs, so most of a JAX
        model are to be transposed. It is called with NumPy arrays.
      quantized: the tree of weights as `quantize` or `pack` returns it.
      metadata: keys and values of the file, such as general.architecture: bools, integers, floats, strings, and
        sequences of them. llama.cpp says which ones an architecture needs.
      ternary: the type of binary and ternary leaves.

    Returns:
      The content of the file.

    Warns:
      UserWarning: the function does not use a quantized leaf, which is left out.

    Raises:
      ValueError: a quantized leaf has two scales, is not float32, or is on a grid of more bits; where it is used, its
        last axis is no multiple of the block, its scales vary within a block, or are beyond float16; an array has
        numbers of several leaves, or another dtype than float32 and float16; `ternary` is none of the three; or a value
        of the metadata has no type in GGUF.

    Example:
      >>> import fobt, jax
      >>> kernel = jax.random.normal(jax.random.key(0), (32, 5))
      >>> quantized = {"kernel": fobt.linear(4)(kernel)}
      >>> metadata = {"general.architecture": "llama", "llama.block_count": 1}
      >>> content = fobt.export.to_gguf(lambda weights: {"output.weight": weights["kernel"].T}, quantized, metadata)
      >>> content[:4], len(content)
      (b'GGUF', 256)
    """
    if ternary not in ("TQ1_0", "TQ2_0", "Q4_0"):
        raise ValueError(f"ternary must be 'TQ1_0', 'TQ2_0' or 'Q4_0', got {ternary!r}.")
    quantized = unpack(quantized)
    paths, structure = leaf_paths(dequantize(quantized)), jax.tree.structure(dequantize(quantized))
    leaves = [
        _integers(path, leaf) if isinstance(leaf, Quantized) else np.asarray(leaf)
        for path, leaf in zip(paths, leaves_of_quantized(quantized), strict=True)
    ]

    def rearranged(of_leaf: Callable[[int, Integers | np.ndarray], np.ndarray]) -> dict[str, np.ndarray]:
        arrays = [of_leaf(i, leaf) for i, leaf in enumerate(leaves)]
        return {name: np.asarray(array) for name, array in function(jax.tree.unflatten(structure, arrays)).items()}

    # What a function that only rearranges does to codes, it does to steps and to the numbers of the leaves.
    values = rearranged(lambda _, leaf: leaf.codes if isinstance(leaf, Integers) else leaf)
    steps = rearranged(
        lambda _, leaf: (
            np.broadcast_to(leaf.step, leaf.codes.shape)
            if isinstance(leaf, Integers)
            else np.ones(leaf.shape, np.float32)
        )
    )
    numbers = rearranged(
        lambda i, leaf: np.full(leaf.codes.shape if isinstance(leaf, Integers) else leaf.shape, i + 1, np.int32)
    )
    tensors, used = {}, set()
    for name, array in values.items():
        sources = [int(number) - 1 for number in np.unique(numbers[name])]
        if len(sources) != 1 or sources[0] < 0:
            found = [paths[i] for i in sources if i >= 0]
            raise ValueError(
                f"function must return arrays that are each a part of one leaf, got {name!r} from {found}."
            )
        (source,) = sources
        leaf = leaves[source]
        used.add(paths[source])
        if isinstance(leaf, Integers):
            tensors[name] = _blocks(leaf, array, steps[name], ternary)
        else:
            tensors[name] = _floats(paths[source], array)
    warn_of_unused([leaf.name for leaf in leaves if isinstance(leaf, Integers) and leaf.name not in used])
    return gguf_file(metadata, tensors)


def _integers(path: str, leaf: Quantized) -> Integers:
    weights = Weights.of(path, leaf)
    if (reason := why_no_integers(weights)) is not None:
        raise ValueError(f"quantized has the leaf {path!r}, which GGUF cannot store: it {reason}.")
    integers = Integers.of(weights)
    low, high = TYPES["Q4_0"].lowest, TYPES["Q4_0"].highest
    if integers.codes.size and not low <= integers.codes.min() <= integers.codes.max() <= high:
        raise ValueError(
            f"quantized has the leaf {path!r}, which GGUF cannot store: it is on a {leaf.grid.spacing} grid of "
            f"{leaf.grid.bits} bits, allowed are multiples {low} to {high} of a smallest level."
        )
    return integers


def _blocks(leaf: Integers, codes: np.ndarray, steps: np.ndarray, ternary: TernaryType) -> StoredTensor:
    """A tensor of integers in the type for their range."""
    name = ternary if leaf.bits == 2 else "Q4_0"
    kind = TYPES[name]

    def refusal(reason: str) -> ValueError:
        return ValueError(f"quantized has the leaf {leaf.name!r}, which the type {name} cannot hold: {reason}.")

    if codes.shape[-1] % kind.size:
        raise refusal(f"its last axis has size {codes.shape[-1]}, allowed are multiples of {kind.size}")
    steps = steps.reshape(-1, kind.size)
    if np.any(steps != steps[:, :1]):
        raise refusal(f"its scales vary within {kind.size} neighbours along the last axis")
    with np.errstate(over="ignore"):
        scales = steps[:, 0].astype(np.float16)
    limits = np.finfo(np.float16)
    if np.any(scales < limits.smallest_normal) or np.any(scales > limits.max):
        allowed = f"{limits.smallest_normal} to {limits.max}"
        raise refusal(f"its scales are {steps.min()} to {steps.max()}, allowed are those of float16, {allowed}")
    content = kind.encode(codes.reshape(-1, kind.size), scales)
    return StoredTensor(codes.shape, kind.number, content.tobytes())


def _floats(path: str, array: np.ndarray) -> StoredTensor:
    if array.dtype.name not in _FLOAT_TYPES:
        raise ValueError(f"quantized must hold float32 or float16, got {array.dtype} at {path!r}.")
    return StoredTensor(array.shape, _FLOAT_TYPES[array.dtype.name], np.ascontiguousarray(array).tobytes())
