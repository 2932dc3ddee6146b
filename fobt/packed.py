"""Weights in as many bits as their grids need, in memory and in files. Reading a file needs NumPy and no JAX."""

import importlib.util

from fobt._src.packed.packed_array import PackedArray
from fobt._src.packed.packed_file import PackedFile, load_packed
from fobt._src.packed.size_report import LeafSize, SizeReport, size_report

__all__ = [
    "LeafSize",
    "PackedArray",
    "PackedFile",
    "SizeReport",
    "load_packed",
    "size_report",
]

if importlib.util.find_spec("jax") is not None:
    from fobt._src.packed.packed_matmul import packed_matmul
    from fobt._src.packed.packing import Packed, pack, unpack
    from fobt._src.packed.save_packed import save_packed

    __all__ += ["Packed", "pack", "packed_matmul", "save_packed", "unpack"]
