"""How many bytes quantized weights take, leaf by leaf, from what is stored."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fobt._src.base.with_jax import require_jax
from fobt._src.packed.packed_array import PackedArray
from fobt._src.packed.packed_file import load_packed, map_leaves


@dataclasses.dataclass(frozen=True)
class LeafSize:
    """The size of one leaf, or of several together.

    Attributes:
      path: where it is in its tree.
      shape: the shape of the weights, (n,) for n weights of several leaves.
      stored_as: the grid and how its codes are stored, or the dtype of an array.
      scale_for: which weights share a scale: "tensor"; "axis 2" or "axes 0, 2", of whose indices each has one; or
        "block of 32, axis 0"; empty for an array, and for several leaves.
      scales: the number of scales, two of each where signs have their own.
      nbytes: bytes of codes and scales, or of the array.
      is_quantized: whether it is of codes and scales.
    """

    path: str
    shape: tuple[int, ...]
    stored_as: str
    scale_for: str
    scales: int
    nbytes: int
    is_quantized: bool

    @property
    def size(self) -> int:
        """The number of weights."""
        return math.prod(self.shape)

    @property
    def bits_per_weight(self) -> float:
        """8 · nbytes / size; NaN without weights."""
        return 8 * self.nbytes / self.size if self.size else math.nan

    @property
    def float32_bytes(self) -> int:
        """Bytes that the weights take in float32."""
        return 4 * self.size

    @property
    def times_smaller(self) -> float:
        """float32_bytes / nbytes; NaN where nothing is stored."""
        return self.float32_bytes / self.nbytes if self.nbytes else math.nan


@dataclasses.dataclass(frozen=True)
class SizeReport:
    """The sizes of the leaves of a tree or a file; `str` gives a table.

    Attributes:
      leaves: the size of each leaf.
      quantized: the leaves that are quantized, together.
      total: all leaves together.
      file: with the size of the file as nbytes, its header included; None where the report is not of a file.
    """

    leaves: tuple[LeafSize, ...]
    quantized: LeafSize
    total: LeafSize
    file: LeafSize | None

    def __str__(self) -> str:
        rows = [
            ("path", "shape", "stored as", "scale for", "scales", "bytes", "bits/weight", "times smaller than float32")
        ]
        for leaf in (*self.leaves, self.quantized, self.total, *([self.file] if self.file else [])):
            shape = "×".join(f"{length:,}" for length in leaf.shape) or "scalar"
            bits, times = ("" if math.isnan(x) else f"{x:.3f}" for x in (leaf.bits_per_weight, leaf.times_smaller))
            scales = f"{leaf.scales:,}" if leaf.scales else ""
            rows.append((leaf.path, shape, leaf.stored_as, leaf.scale_for, scales, f"{leaf.nbytes:,}", bits, times))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        # Names to the left, numbers to the right.
        return "\n".join(
            "  ".join(
                text.ljust(w) if i in (0, 2, 3) else text.rjust(w)
                for i, (text, w) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        )


def size_report(source: Any) -> SizeReport:
    """Bytes and bits per weight of quantized weights, per leaf and in total, scales included, against float32.

    Args:
      source: the path of a file of `save_packed`, which is read and needs no JAX; or a tree of `Quantized`, `Packed`
        and arrays, concrete or abstract. A `Quantized` counts as `pack` stores it, ternary codes in base 3.

    Returns:
      The sizes; printed they are a table.

    Raises:
      ValueError: a path is not that of an intact packed file.
      ModuleNotFoundError: safetensors is missing for a file, or JAX for a tree.

    Example:
      >>> import fobt
      >>> import jax.numpy as jnp
      >>> params = {"kernel": jnp.ones((32, 10)), "bias": jnp.zeros(10)}
      >>> report = fobt.packed.size_report(fobt.quantize(params, None, fobt.binary()))
      >>> report.quantized.nbytes, report.quantized.bits_per_weight
      (44, 1.1)
      >>> print(report)
      path       shape  stored as      scale for  scales  bytes  bits/weight  times smaller than float32
      bias          10  float32                              40       32.000                       1.000
      kernel     32×10  binary, 1 bit  tensor          1     44        1.100                      29.091
      quantized    320                                 1     44        1.100                      29.091
      total        330                                 1     84        2.036                      15.714
    """
    leaves: list[LeafSize] = []
    if isinstance(source, str | os.PathLike):
        content = load_packed(source)
        for name in ("params", "batch_stats"):
            map_leaves(lambda path, leaf: leaves.append(_leaf_size(path, leaf)), getattr(content, name), (name,))
        return _report(leaves, Path(source).stat().st_size)

    require_jax("size_report of a tree")
    import jax  # not at the top: for a file it is not needed

    from fobt._src.base.tree_paths import leaf_paths
    from fobt._src.packed.packing import Packed, pack

    def is_packed(leaf: Any) -> bool:
        return isinstance(leaf, Packed)

    packed = jax.eval_shape(pack, source)
    paths = leaf_paths(packed, is_leaf=is_packed)
    return _report(list(map(_leaf_size, paths, jax.tree.leaves(packed, is_leaf=is_packed))), None)


def _leaf_size(path: str, leaf: Any) -> LeafSize:
    """The size of a leaf of a file or of a packed tree, abstract arrays included."""
    if isinstance(leaf, PackedArray):
        spacing, bits, encoding = leaf.spacing, leaf.bits, leaf.encoding
    elif hasattr(leaf, "encoding"):
        spacing, bits, encoding = leaf.grid.spacing, leaf.grid.bits, leaf.encoding
    else:
        return LeafSize(path, tuple(leaf.shape), str(leaf.dtype), "", 0, _array_bytes(leaf), False)
    width = "base 3" if encoding == "base3" else f"{bits} bit" + "s" * (bits > 1)
    name = "ternary" if bits == 2 else spacing
    nbytes = _array_bytes(leaf.codes) + _array_bytes(leaf.scale)
    scale_for, scales = _scale_for(leaf.granularity, len(leaf.shape)), math.prod(leaf.scale.shape)
    return LeafSize(path, tuple(leaf.shape), f"{name}, {width}", scale_for, scales, nbytes, True)


def _scale_for(granularity: Any, rank: int) -> str:
    """Which weights share a scale, in words, of a granularity or of what a file says of it."""
    if not isinstance(granularity, Mapping):
        from fobt._src.packed.stored import described  # not at the top: for a file JAX is not needed

        granularity = described(granularity)
    if granularity["per"] == "tensor":
        return "tensor"
    if granularity["per"] == "block":
        return f"block of {granularity['size']}, axis {granularity['axis'] % rank}"
    axes = sorted(axis % rank for axis in granularity["axes"])
    return f"ax{'is' if len(axes) == 1 else 'es'} {', '.join(map(str, axes))}"


def _array_bytes(array: Any) -> int:
    return math.prod(array.shape) * array.dtype.itemsize


def _report(leaves: list[LeafSize], file_bytes: int | None) -> SizeReport:
    def together(name: str, parts: list[LeafSize]) -> LeafSize:
        size, scales, nbytes = (sum(getattr(leaf, count) for leaf in parts) for count in ("size", "scales", "nbytes"))
        return LeafSize(name, (size,), "", "", scales, nbytes, all(leaf.is_quantized for leaf in parts))

    quantized, total = together("quantized", [leaf for leaf in leaves if leaf.is_quantized]), together("total", leaves)
    file = None if file_bytes is None else dataclasses.replace(total, path="file", nbytes=file_bytes)
    return SizeReport(tuple(leaves), quantized, total, file)
