"""Curvature of an optimizer state: what the optimizer divides each component of its step by."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fobt._src.base.checks import check_same_leaves
from fobt._src.base.tree_paths import leaf_paths
from fobt._src.quantizers.quantizer import Quantizer

# Only guards zeros: weights whose gradient has always been zero keep a small curvature.
_EPS = 1e-8
# A gradient below what gradients are clipped to, and far above the ε of optimizers.
_PROBE = 2.0**-10


class Curvature(NamedTuple):
    """A curvature of one's own, in the place of the optimizer state from which the curvature is read otherwise.

    Attributes:
      tree: C for each leaf of the params, in its structure and shapes, with values as for `Quantizer`; what stands for
        leaves that are not quantized does not matter.

    Example:
      >>> import fobt
      >>> import jax.numpy as jnp
      >>> params = {"kernel": jnp.array([[1.0, -3.0]])}
      >>> curvature = fobt.Curvature({"kernel": jnp.array([[3.0, 1.0]])})
      >>> fobt.quantized_params(params, curvature, fobt.binary())
      {'kernel': Array([[ 1.5, -1.5]], dtype=float32)}
    """

    tree: Any


class Divisor(NamedTuple):
    """How the divisor of an optimizer follows from its state, up to a common factor per leaf and ε.

    Attributes:
      fields: the fields of the state that it is made of, trees like the params.
      function: from a leaf of each, in float32 or wider, to the divisor.
    """

    fields: tuple[str, ...]
    function: Callable[..., jax.Array]


# States by the names of their types; Optax does not export all of these types. Every other state with a field `nu`
# holds a second moment: of Adam and most of its relatives, RMSProp, AdaBelief, or of a preconditioner of one's own.
_SECOND_MOMENT = Divisor(("nu",), jnp.sqrt)
_DIVISORS = {
    "ScaleByAmsgradState": Divisor(("nu_max",), jnp.sqrt),
    "ScaleByRssState": Divisor(("sum_of_squares",), jnp.sqrt),
    "ScaleByAdanState": Divisor(("n",), jnp.sqrt),
    "ScaleByRStdDevState": Divisor(("nu", "mu"), lambda nu, mu: jnp.sqrt(jnp.maximum(nu - jnp.square(mu), 0))),
    "SophiaState": Divisor(("nu",), lambda hessian: jnp.maximum(hessian, 0)),
}
_WITHOUT_DIVISOR = {
    "ScaleByRStdDevWithCountState": "rmsprop with centered and bias_correction divides by √(v/c - m²/c²), whose c it "
    "does not hold (without bias_correction it works)",
    "ScaleBySM3State": "sm3 divides by the root of sums of squares that it does not hold; its `nu` is a momentum",
    "ScaleByNovogradState": "novograd divides a whole leaf by one number, which is curvature 1",
    "GaLoreState": "galore divides in another basis than that of the weights",
}


def curvatures(
    params: optax.Params, state: optax.OptState | None, quantizers: Sequence[Quantizer | None]
) -> list[jax.Array | None]:
    """The divisor + ε for every leaf of `params` that has a quantizer; None for others, and where there is no state."""
    needed = [quantizer is not None for quantizer in quantizers]
    if state is None or not any(needed):
        return [None] * len(needed)
    if isinstance(state, Curvature):
        check_same_leaves("curvature", state.tree, "params", params)
        return [leaf if need else None for leaf, need in zip(jax.tree.leaves(state.tree), needed, strict=True)]
    # An optimizer that sees only a part of the params (`masked`, `partition`) has holes for the others.
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(params)]
    found: list[list[tuple[Divisor, list[Any]]]] = [[] for _ in needed]
    without_divisor, misfits = [], []
    for holder in _holders(state):
        name = type(holder).__name__
        if name in _WITHOUT_DIVISOR:
            without_divisor.append(f" {name} will not do: {_WITHOUT_DIVISOR[name]}.")
            continue
        divisor = _DIVISORS.get(name, _SECOND_MOMENT)
        fields = [jax.tree.leaves(getattr(holder, field), is_leaf=_is_hole) for field in divisor.fields]
        if any(len(leaves) != len(shapes) for leaves in fields):
            misfits.append(_misfit(params, getattr(holder, divisor.fields[0])))
            continue
        rows = list(zip(*fields, strict=True))
        if all(_is_hole(x) or jnp.shape(x) == shape for row, shape in zip(rows, shapes, strict=True) for x in row):
            for candidates, row in zip(found, rows, strict=True):
                candidates.extend([] if _is_hole(row[0]) else [(divisor, list(row))])
    for path, candidates, need in zip(leaf_paths(params), found, needed, strict=True):
        if need and not candidates and any(True for _ in _holders(params)):
            raise ValueError(
                "params must be the weights and state that of the optimizer, got a state as params: call "
                "fobt.quantize(params, state, quantizer)."
            )
        if need and not candidates:
            raise ValueError(
                f"state must hold a second moment `nu` that fits the quantized leaf {path!r}, found none."
                f"{''.join(without_divisor + misfits)} Optimizers such as optax.adam, rmsprop and "
                "fobt.forward_backtrack keep one. Of other optimizers, say what the curvature is: "
                "fobt.Training(optimizer, quantizer, curvature='ones'), or a function of the state; or give "
                "fobt.Curvature(tree), or None for curvature 1, as the state."
            )
        if need and len(candidates) > 1:
            raise ValueError(
                f"state must hold one second moment `nu` that fits the quantized leaf {path!r}, found "
                f"{len(candidates)}. Pass the part of the state that belongs to the optimizer you mean."
            )
    return [_evaluate(*candidates[0]) if need else None for candidates, need in zip(found, needed, strict=True)]


def check_second_moment(optimizer: optax.GradientTransformation) -> None:
    """Raises where the `nu` of an optimizer doubles with the gradient, as adamax's largest magnitude does.

    A second moment grows by 4. The states of adamax and adam are of one type, so their steps must tell them apart.
    Nothing is said of an optimizer that cannot take a step on one matrix and no further arguments, or that divides the
    leaves among several.
    """
    try:
        with jax.ensure_compile_time_eval():  # also where a training is made within a traced function
            of_one, of_two = (_moments_after_a_step(optimizer, scale * _PROBE) for scale in (1, 2))
    except Exception:  # of whatever kind: it is not ours to say what a stranger's optimizer raises
        return
    if any(one > 0 and abs(two / one - 2) < 1e-3 for one, two in zip(of_one, of_two, strict=True)):
        raise ValueError(
            "optimizer must keep the mean of squared gradients as its second moment `nu`, got one whose `nu` doubles "
            "with the gradients, as the largest magnitude that optax.adamax and adamaxw keep. Use optax.adam, adamw, "
            "amsgrad, or fobt.forward_backtrack."
        )


def _moments_after_a_step(optimizer: optax.GradientTransformation, gradient: float) -> list[float]:
    """Every `nu` that is taken for a second moment, after a first step on a matrix, as quantized leaves mostly are."""
    params = jnp.zeros((1, 1), jnp.float32)
    grads = jnp.full_like(params, gradient)
    _, state = optax.with_extra_args_support(optimizer).update(grads, optimizer.init(params), params)
    if any(_is_hole(leaf) for leaf in jax.tree.leaves(state, is_leaf=_is_hole)):
        return []  # rules by path may choose otherwise for leaves that have a name
    holders = [holder for holder in _holders(state) if not has_own_divisor(holder)]
    return [leaf.item() for holder in holders for leaf in jax.tree.leaves(holder.nu)]


def has_own_divisor(state: Any) -> bool:
    """Whether the divisor of the optimizer that this is the state of is another one than the root of its `nu`."""
    return type(state).__name__ in {*_DIVISORS, *_WITHOUT_DIVISOR}


def _holders(tree: Any) -> Iterator[Any]:
    """The states in a tree that hold a divisor or are known to hold none, also those within others."""

    def is_holder(node: Any) -> bool:
        return hasattr(node, "nu") or has_own_divisor(node)

    if is_holder(tree):
        yield tree
    if type(tree).__name__ not in _WITHOUT_DIVISOR:
        for node in jax.tree.leaves(tree, is_leaf=lambda node: node is not tree and is_holder(node)):
            if node is not tree and is_holder(node):
                yield from _holders(node)


def _misfit(params: optax.Params, moment: Any) -> str:
    """What to say of a second moment of other leaves than the params have."""
    paths, others = leaf_paths(params), leaf_paths(moment, is_leaf=_is_hole)
    named = [path for path in paths if path not in others] or [path for path in others if path not in paths]
    lacks = "has none for" if any(path not in others for path in paths) else "also has"
    return f" A `nu` of {len(others)} leaves, where params have {len(paths)}, {lacks} {named[:3]}."


def _evaluate(divisor: Divisor, leaves: Sequence[Any]) -> jax.Array:
    wide = [jnp.asarray(x, np.promote_types(jnp.result_type(x), np.float32)) for x in leaves]
    return divisor.function(*wide) + _EPS


def _is_hole(leaf: Any) -> bool:
    return isinstance(leaf, optax.MaskedNode)
