"""Which leaves hold linear maps, and which of their axes are stacks, inputs and outputs: from names and shapes."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

# Gains and shifts of normalisations, biases of layers and of attention.
_VECTOR_NAMES = {"b", "beta", "bias", "gain", "gamma", "offset", "scale"}
# What a leaf or the module around it is called where it is a table, as whole words and as parts of words.
_TABLE_WORDS = {"emb", "embs", "ln", "pe", "pos", "tok", "token", "wpe", "wte"}
_TABLE_PARTS = re.compile(r"(?<!un)(?<!de)embed|norm|(?:^|_)posit")
_CONVOLUTION = re.compile(r"conv|patch|embed")
# The module of attention's output, beside those of its queries, keys and values.
_SPLITS, _MERGES = {"query", "key", "value"}, "out"


@dataclasses.dataclass(frozen=True)
class Layout:
    """The axes of a leaf that holds linear maps.

    Attributes:
      stack: those along which maps are stacked.
      inputs: those over which a map sums.
      outputs: those that are left.
    """

    stack: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def holds_linear_maps(path: str, rank: int) -> bool:
    """Whether a leaf is one of linear maps, of which Flax calls each `kernel`; `rank` does not count stacked axes."""
    *modules, name = _parts(path)
    module = modules[-1] if modules else ""
    if rank < 2 or name in _VECTOR_NAMES or "bias" in _words(name):
        return False
    return name == "kernel" or not (_is_table(name) or _is_table(module))


def layout(path: str, shapes: Mapping[str, Sequence[int]], stacked: int) -> Layout:
    """The axes of a leaf with `stacked` leading axes of layers, by the shapes of all leaves."""
    shape = shapes[path]
    axes = tuple(range(len(shape)))
    *modules, name = _parts(path)
    of_map = axes[stacked:]
    if len(of_map) < 2:  # a rule may select a vector
        return Layout(axes[:stacked], (), of_map)
    if _splits_heads(path, shapes):
        return Layout(axes[:-3], axes[-3:-2], axes[-2:])
    if _merges_heads(path, shapes):
        return Layout(axes[:-3], axes[-3:-1], axes[-1:])
    is_torch_like = name.startswith("weight")  # Equinox
    if len(of_map) > 2 and modules and _CONVOLUTION.search("".join(_words(modules[-1]))):
        stack = axes[:stacked]
        return Layout(stack, of_map[1:], of_map[:1]) if is_torch_like else Layout(stack, of_map[:-1], of_map[-1:])
    first, last = axes[-2:-1], axes[-1:]
    return Layout(axes[:-2], last, first) if is_torch_like else Layout(axes[:-2], first, last)


def _splits_heads(path: str, shapes: Mapping[str, Sequence[int]]) -> bool:
    """Whether a leaf is (..., inputs, heads, head_dim), beside an output of attention (..., heads, head_dim, width).

    Keys and values may have fewer heads than the output, and other inputs than its width, but not both.
    """
    around, module, name = _around(path)
    if module not in _SPLITS or name != "kernel":
        return False
    shape, out = shapes.get(path, ()), shapes.get(f"{around}{_MERGES}/kernel", ())
    if len(out) < 3 or len(shape) != len(out) or tuple(shape[:-3]) != tuple(out[:-3]):
        return False
    return shape[-1] == out[-2] and (shape[-2] == out[-3] or shape[-3] == out[-1])


def _merges_heads(path: str, shapes: Mapping[str, Sequence[int]]) -> bool:
    """Whether a leaf is that output."""
    around, module, name = _around(path)
    return module == _MERGES and name == "kernel" and _splits_heads(f"{around}query/kernel", shapes)


def _around(path: str) -> tuple[str, str, str]:
    """What comes before the module of a leaf, with a slash behind it, the module, and the name."""
    *modules, name = path.split("/")
    return "".join(f"{module}/" for module in modules[:-1]), modules[-1] if modules else "", name


def _parts(path: str) -> list[str]:
    """The names on the way to a leaf; not the numbers of lists, and the modules that Haiku writes into one key."""
    return [part for part in path.replace("~1", "/").replace("~0", "~").split("/") if not part.isdigit()] or [""]


def _words(name: str) -> list[str]:
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]


def _is_table(name: str) -> bool:
    words = _words(name)
    return bool(_TABLE_WORDS & set(words)) or _TABLE_PARTS.search("_".join(words)) is not None
