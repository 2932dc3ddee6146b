"""Weights in as many bits as their grids need, in memory and in files. Reading a file needs NumPy and no JAX."""

from typing import TYPE_CHECKING, Any

from fobt._src.base.with_jax import WITH_JAX, require_jax
from fobt._src.packed.packed_array import PackedArray
from fobt._src.packed.packed_file import PackedFile, load_packed
from fobt._src.packed.size_report import LeafSize, SizeReport, size_report

if TYPE_CHECKING or WITH_JAX:
    from fobt._src.packed.packed_matmul import packed_matmul
    from fobt._src.packed.packing import Packed, pack, unpack
    from fobt._src.packed.save_packed import save_packed

__all__ = [
    "LeafSize",
    "Packed",
    "PackedArray",
    "PackedFile",
    "SizeReport",
    "load_packed",
    "pack",
    "packed_matmul",
    "save_packed",
    "size_report",
    "unpack",
]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """An error that says what is missing, for the names that need JAX."""
        if name in __all__:
            require_jax(f"fobt.packed.{name}")
        raise AttributeError(f"module 'fobt.packed' has no attribute {name!r}")
