"""The matrices of a transformer quantized, each with scales of its own, and everything else left as it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from fobt._src.base.tree_paths import leaf_paths
from fobt._src.quantizers.granularity import Granularity, PerBlock, PerChannel
from fobt._src.quantizers.quantizer import Quantizer
from fobt._src.trees.full_precision import LeafQuantizer
from fobt._src.trees.layouts import Layout, holds_linear_maps, layout
from fobt._src.trees.rules import Rule, Selector, check_rules, check_selector, is_floating, ruled, select


@dataclasses.dataclass(frozen=True, eq=False)
class LinearMaps:
    """A quantizer of the linear maps of a network. Made by `linear_maps`."""

    quantizer: Quantizer
    rules: tuple[Rule, ...]
    stacked: Selector | None


def linear_maps(quantizer: Quantizer, *rules: Rule, stacked: Selector | None = None) -> LinearMaps:
    r"""Quantizes the linear maps of a network, such as a transformer, each with scales of its own.

    The names are those that Flax Linen and NNX, Equinox and Haiku give. "Called like" means the leaf or the module that
    holds it, as a word of its name in any case: `LayerNorm_0`, `pos_embedding`. Axes of `stacked` layers are not
    counted. The first row that fits a leaf says what it is:

    +---------------------------------------------------+---------------------+------------------------------------+
    | leaf                                              | is                  | scales; axes                       |
    +===================================================+=====================+====================================+
    | one axis, or none                                 | a vector            | full precision                     |
    +---------------------------------------------------+---------------------+------------------------------------+
    | ``bias``, ``b``, ``scale``, ``offset``, ``gain``, | a vector            | full precision                     |
    | ``beta``, ``gamma``, or with the word bias; also  |                     |                                    |
    | (heads, head_dim) of attention                    |                     |                                    |
    +---------------------------------------------------+---------------------+------------------------------------+
    | not called ``kernel``, but like an embedding,     | a table, or a gain  | full precision                     |
    | position, norm or token: embed, emb, wte, posit,  |                     |                                    |
    | pos, wpe, pe, norm, ln, token, tok                |                     |                                    |
    +---------------------------------------------------+---------------------+------------------------------------+
    | ``kernel`` (d, heads, head_dim) of ``query``,     | one matrix          | inputs d, outputs (heads,          |
    | ``key``, ``value``, beside an ``out/kernel`` that |                     | head_dim)                          |
    | fits                                              |                     |                                    |
    +---------------------------------------------------+---------------------+------------------------------------+
    | ``out/kernel`` (heads, head_dim, d), beside a     | one matrix          | inputs (heads, head_dim), outputs  |
    | ``query/kernel`` that fits                        |                     | d                                  |
    +---------------------------------------------------+---------------------+------------------------------------+
    | three axes or more, in a module called like conv, | a convolution       | outputs the last axis, or the      |
    | patch or embed                                    |                     | first one of a ``weight``; inputs  |
    |                                                   |                     | the others                         |
    +---------------------------------------------------+---------------------+------------------------------------+
    | two axes                                          | one matrix          | (inputs, outputs), or of a         |
    |                                                   |                     | ``weight``, as Equinox has,        |
    |                                                   |                     | (outputs, inputs)                  |
    +---------------------------------------------------+---------------------+------------------------------------+
    | more axes, such as experts                        | a stack of matrices | for each matrix; it is in the last |
    |                                                   |                     | two axes                           |
    +---------------------------------------------------+---------------------+------------------------------------+

    The `granularity` of the quantizer is meant as that of a matrix (inputs, outputs), whatever the axes of a leaf are:
    `per_channel()` gives one scale to each output, `per_channel(0)` to each input, `per_block(n)` to n inputs in a row;
    of inputs in several axes, those along the last of them.

    Args:
      quantizer: the grid, solver and granularity of all linear maps; its `stacked` is 0.
      *rules: pairs of a selector and a quantizer, as in `per_leaf`, for leaves that are to be treated otherwise: other
        bits, `full_precision()`, or an embedding that is quantized after all. Axes are found as above.
      stacked: which leaves hold whole layers that are stacked along the first axis, with scales for each (`nn.scan`,
        `nnx.vmap`, `jax.lax.scan`): a selector as in `per_leaf`, such as "layers/.*", or ".*" for all. Matrices
        (layers, inputs, outputs) have scales for each without it, too; it says that (layers, width) are vectors,
        whatever they are called, and that convolutions are stacked.

    Returns:
      A quantizer for trees, to be given wherever the library takes one, also as the `default` of `per_leaf`.
      `fobt.choices` prints what it chooses.

    Raises:
      ValueError: `quantizer` is none of those with a grid, or has `stacked` of its own or a granularity that a matrix
        cannot have; a rule is no pair; when used on a tree that has leaves, a selector selects none of them, `stacked`
        selects one without axes, or a rule one that is not floating.

    Example:
      >>> import fobt
      >>> import jax.numpy as jnp
      >>> params = {
      ...     "embed": {"embedding": jnp.ones((100, 8))},
      ...     "layers": {"mlp": {"kernel": jnp.ones((3, 8, 16))}, "norm": {"scale": jnp.ones((3, 8))}},
      ...     "head": {"kernel": jnp.ones((8, 100))},
      ... }
      >>> quantizer = fobt.linear_maps(fobt.ternary(), ("head/kernel", fobt.linear(4)), stacked="layers/.*")
      >>> print(fobt.choices(quantizer, params))
      path                shape  stored as        scale for  scales  bytes  bits/weight  times smaller than float32
      embed/embedding     100×8  float32                             3,200       32.000                       1.000
      head/kernel         8×100  linear, 4 bits   tensor          1    404        4.040                       7.921
      layers/mlp/kernel  3×8×16  ternary, base 3  axis 0          3     89        1.854                      17.258
      layers/norm/scale     3×8  float32                                96       32.000                       1.000
      quantized           1,184                                   4    493        3.331                       9.606
      total               2,008                                   4  3,789       15.096                       2.120
    """
    for given in (quantizer, *(rule[1] for rule in rules if isinstance(rule, tuple) and len(rule) == 2)):
        if isinstance(given, Quantizer):
            _check_of_matrix(given)
    if not isinstance(quantizer, Quantizer):
        raise ValueError(
            "linear_maps: quantizer must be made by fobt.binary, ternary, linear or logarithmic, got "
            f"{type(quantizer).__name__}."
        )
    check_rules("linear_maps", rules)
    check_selector("linear_maps", stacked)
    return LinearMaps(quantizer, rules, stacked)


def quantizers_of_linear_maps(maps: LinearMaps, params: optax.Params) -> list[LeafQuantizer | None]:
    """The quantizer of every leaf; None for those that are no linear maps."""
    paths, leaves = leaf_paths(params), jax.tree.leaves(params)
    shapes = {path: jnp.shape(leaf) for path, leaf in zip(paths, leaves, strict=True)}
    stacked = _stacked_axes(maps.stacked, params, shapes)
    chosen = ruled("linear_maps", maps.rules, params)
    for i, (path, leaf) in enumerate(zip(paths, leaves, strict=True)):
        if chosen[i] is None and is_floating(leaf) and holds_linear_maps(path, len(shapes[path]) - stacked[i]):
            chosen[i] = maps.quantizer
    return [
        _for_axes(quantizer, layout(path, shapes, count)) if isinstance(quantizer, Quantizer) else quantizer
        for path, quantizer, count in zip(paths, chosen, stacked, strict=True)
    ]


def _stacked_axes(selector: Selector | None, params: optax.Params, shapes: dict[str, tuple[int, ...]]) -> list[int]:
    """1 for every leaf of stacked layers, 0 for others."""
    if selector is None:
        return [0] * len(shapes)
    selected = select("linear_maps", selector, params)
    scalars = [path for path, is_stacked in zip(shapes, selected, strict=True) if is_stacked and not shapes[path]]
    if shapes and not any(selected):
        raise ValueError(f"linear_maps: stacked {selector!r} selects none of the leaves; paths: {list(shapes)}.")
    if scalars:
        raise ValueError(f"linear_maps: stacked {selector!r} selects {scalars[0]!r}, which has no axis of layers.")
    return [int(is_stacked) for is_stacked in selected]


def _check_of_matrix(quantizer: Quantizer) -> None:
    if quantizer.stacked:
        raise ValueError(
            f"linear_maps: a quantizer must have stacked=0, got {quantizer.stacked}: say which leaves are stacked in "
            "linear_maps(..., stacked='layers/.*')."
        )
    try:
        quantizer.granularity.axes(2)
    except ValueError as error:
        raise ValueError(f"linear_maps: granularity must be that of a matrix (inputs, outputs): {error}") from error


def _for_axes(quantizer: Quantizer, axes: Layout) -> Quantizer:
    """The quantizer of a matrix (inputs, outputs) for a leaf whose axes these are."""
    return dataclasses.replace(quantizer, granularity=_granularity(quantizer.granularity, axes))


def _granularity(of_matrix: Granularity, axes: Layout) -> Granularity:
    def of_leaf(kept: Sequence[int]) -> list[int]:
        return [axis for index in kept for axis in (axes.inputs, axes.outputs)[index % 2]]

    if isinstance(of_matrix, PerBlock):
        along = of_leaf([of_matrix.axis]) or list(axes.outputs)
        return PerBlock(of_matrix.size, along[-1])
    kept = sorted({*axes.stack, *(of_leaf(of_matrix.kept) if isinstance(of_matrix, PerChannel) else ())})
    return PerChannel(tuple(kept)) if kept else of_matrix
