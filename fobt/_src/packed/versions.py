"""What the versions of the packed file say of its trees and leaves: each class reads one of them.

A reader is made of the arrays of a file by name and of what is stored of its description. It has `metadata`, the nodes
`params` and `batch_stats`, the leaf that a node stands for, and the names of what no leaf has taken.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from fobt._src.packed.compressed import decompress
from fobt._src.packed.leaf_layout import LeafLayout
from fobt._src.packed.packed_array import PackedArray

CODES = "codes"  # the array with the codes of all leaves
SCALES = {dtype: f"scales/{dtype}" for dtype in ("float32", "float64")}  # those with all scales of a dtype


class Version2:
    """Nodes of leaves have no names. Codes and scales of all leaves follow each other, in the order of the leaves."""

    def __init__(self, arrays: dict[str, np.ndarray], stored: Mapping[str, Any]) -> None:
        _check_fields(stored, ("description", "digest", "version"))
        try:
            description = json.loads(decompress(stored["description"]))
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"its description cannot be read, {error}") from None
        _check_fields(description, ("batch_stats", "layouts", "metadata", "params"))
        self.metadata, self.params, self.batch_stats = (description[k] for k in ("metadata", "params", "batch_stats"))
        if not isinstance(description["layouts"], list):
            raise ValueError("its layouts must be a list")
        self._layouts = description["layouts"]
        self._joined = {name: arrays.pop(name) for name in (CODES, *SCALES.values()) if name in arrays}
        self._arrays = arrays

    def leaf(self, path: str, node: Any) -> np.ndarray | PackedArray:
        """The leaf at a path; the leaves must be asked for in their order."""
        match node:
            case "array":
                return _taken(self._arrays, path)
            case {"layout": int(index), "shape": list(shape), **others} if not others and type(index) is int:
                return self._packed_array(path, index, tuple(shape))
        raise ValueError(f"its trees must be of null, leaves, lists, tuples and dicts, got {node!r:.50}")

    def left_out(self) -> list[str]:
        """The arrays, or the rests of joined ones, that are in no leaf."""
        return [*self._arrays, *(name for name, rest in self._joined.items() if rest.size)]

    def _packed_array(self, path: str, index: int, shape: tuple[Any, ...]) -> PackedArray:
        if not 0 <= index < len(self._layouts):
            raise ValueError(f"{path!r}: layout must be one of {len(self._layouts)}, got {index}")
        try:
            layout = LeafLayout(shape=shape, **self._layouts[index])
            codes = self._next(CODES, (layout.code_bytes,))
            scale = self._next(SCALES[layout.scale_dtype], layout.scale_shape)
            return PackedArray(codes, scale, **vars(layout))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path!r}: {error}") from error

    def _next(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """The next part of the array of this name."""
        rest, size = self._joined.get(name), math.prod(shape)
        if rest is None or rest.ndim != 1 or rest.size < size:
            raise ValueError(f"the array {name!r} must have one axis, and {size} more numbers")
        self._joined[name] = rest[size:]
        return rest[:size].reshape(shape)


class Version1:
    """The node of a leaf is its path, which is the name of its array, and the beginning of those of codes and scale."""

    def __init__(self, arrays: dict[str, np.ndarray], stored: Mapping[str, Any]) -> None:
        _check_fields(stored, ("batch_stats", "digest", "metadata", "params", "quantized", "version"))
        self.metadata, self.params, self.batch_stats = (stored[key] for key in ("metadata", "params", "batch_stats"))
        quantized = stored["quantized"]
        if not isinstance(quantized, dict) or not all(isinstance(layout, dict) for layout in quantized.values()):
            raise ValueError("its description of quantized leaves must be objects")
        self._leaves: dict[str, Any] = dict(arrays)
        for name, layout in quantized.items():
            codes, scale = (_taken(self._leaves, f"{name}/{part}") for part in ("codes", "scale"))
            try:
                self._leaves[name] = PackedArray(codes, scale, **{**layout, "shape": tuple(layout["shape"])})
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{name!r}: {error}") from error

    def leaf(self, path: str, node: Any) -> np.ndarray | PackedArray:
        """The leaf at a path."""
        if node != path:
            raise ValueError(f"its trees must be of null, paths, lists, tuples and dicts, got {node!r:.50} at {path!r}")
        return _taken(self._leaves, path)

    def left_out(self) -> list[str]:
        """The leaves that are in no tree."""
        return [*self._leaves]


def _check_fields(description: Any, fields: tuple[str, ...]) -> None:
    """Raises a ValueError where a description is no object with exactly these fields."""
    if not isinstance(description, dict) or sorted(description) != list(fields):
        raise ValueError(f"its description must have the fields {fields}")


def _taken(arrays: dict[str, Any], name: str) -> Any:
    if name not in arrays:
        raise ValueError(f"it has no array {name!r}, or uses it twice")
    return arrays.pop(name)
