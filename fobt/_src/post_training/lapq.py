"""Loss-aware post-training quantization: no training, only a search for clipping values on a calibration loss."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy  # loads its parts where they are first used
from jax.typing import ArrayLike

from fobt._src.base.checks import check_number
from fobt._src.base.tree_paths import leaf_paths
from fobt._src.quantizers.clipping import lp_clipping_values
from fobt._src.quantizers.granularity import PerChannel, PerTensor
from fobt._src.quantizers.quantizer import Quantizer
from fobt._src.trees.leaves import TreeQuantizer, leaf_quantizers
from fobt._src.trees.params import dequantize

# A line search starts with a step of about a tenth of the clipping value, and ends when it knows the best step to a
# tenth of it: scipy multiplies this tolerance by 100.
_FIRST_STEP, _LINE_TOLERANCE = 0.1, 1e-3


@dataclasses.dataclass(frozen=True)
class LapqResult:
    """What `lapq` found.

    Attributes:
      quantized: the tree of params with a `Quantized` in place of every quantized leaf, as `quantize` returns it.
      clipping_values: the clipping value c of every quantized leaf by path, or the array of those of its channels,
        which are its scale.
      norm_losses: the calibration loss for each of the norms p.
      norm: the p, one of these or the vertex of the parabola through them, from which the joint search started.
      norm_loss: its calibration loss.
      loss: the calibration loss of `quantized`: the lowest of all that were evaluated.
      losses: the calibration loss of every evaluation, in order: the norms, the vertex where there is one, the joint
        search.
    """

    quantized: Any
    clipping_values: dict[str, Any]
    norm_losses: tuple[float, ...]
    norm: float
    norm_loss: float
    loss: float
    losses: tuple[float, ...]


def lapq(
    loss_fn: Callable[[optax.Params], ArrayLike],
    params: optax.Params,
    quantizer: TreeQuantizer,
    *,
    norms: Sequence[float] | None = None,
    max_evaluations: int = 200,
    tolerance: float = 1e-3,
) -> LapqResult:
    """Loss-aware post-training quantization (LAPQ) of trained weights.

    A leaf w with clipping value c > 0 is quantized to ŵ(c), the levels of its grid nearest to w where c is the largest
    one: on linear grids round(clip(w, -c, c) / (c/n)) · c/n. The clipping values of all leaves are chosen in three
    phases, of which only the first one does not look at the loss:

    1. For each norm p the clipping value of each leaf that minimises `Σᵢ |wᵢ - ŵᵢ(c)|ᵖ`. p = 2 is the mean squared
       error; a larger p clips less.
    2. The calibration loss at each p, and at the vertex of the parabola through them, where that is a minimum between
       them. The best of these clipping values is the start of the next phase.
    3. Powell's method on the logarithms of all clipping values jointly, which keeps them positive.

    With a scale for each channel, each has a clipping value c of the first phase, and the third phase searches one
    factor for each leaf, by which all of its clipping values are multiplied.

    The result is the best of all evaluated clipping values, so no phase makes it worse. The correction of the mean of
    the quantized weights, which is described with the method, is left out: codes and a scale cannot hold it.

    The loss is compiled once in each call. Leaves that are empty or all zero are projected as `quantize` does.

    Args:
      loss_fn: a function of the weights, a tree like `params`, to the scalar calibration loss; usually it closes over
        some hundred examples. It must be traceable by `jax.jit`; a value that is not finite is never chosen.
      params: trained full-precision weights.
      quantizer: what is quantized and how: any grid, with one scale per tensor or per channel.
      norms: three or more different p ≥ 1; by default the published ones, ten from 2 to 4.
      max_evaluations: how often the third phase may evaluate the loss; 0 leaves it out.
      tolerance: the third phase ends when a sweep over all directions lowers the loss by less than this share of it.

    Returns:
      The quantized weights and how they were found.

    Raises:
      ValueError: an argument is out of range, a quantizer has scales per block or sign, or the loss is not a
        scalar, or finite for none of the norms.

    Example:
      >>> import fobt
      >>> import jax.numpy as jnp
      >>> params = {"kernel": jnp.array([[0.9, -0.4, 0.1, 0.2]]), "bias": jnp.array([0.5])}
      >>> x, y = jnp.array([1.0, 1.0, 0.0, 0.0]), 0.56  # the loss wants the first two weights to add up to 0.56
      >>> result = fobt.lapq(lambda weights: (weights["kernel"][0] @ x - y) ** 2, params, fobt.linear(3))
      >>> result.quantized["kernel"].codes
      Array([[ 3, -1,  0,  1]], dtype=int8)
      >>> result.norm_loss > 10 * result.loss, round(result.clipping_values["kernel"], 2)
      (True, 0.84)

    References:
      Nahshan, Chmiel, Baskin, Zheltonozhskii, Banner, Bronstein, Mendelson, [Loss Aware Post-training
      Quantization](https://arxiv.org/abs/1911.07190), 2019.
    """
    norms = _checked_norms(np.linspace(2, 4, 10).tolist() if norms is None else norms)
    check_number("max_evaluations", max_evaluations, "an integer of at least 0", lambda n: n >= 0 and n == int(n))
    check_number("tolerance", tolerance, "a number of at least 0", lambda value: 0 <= value < math.inf)
    leaves, structure = jax.tree.flatten(params)
    quantizers = leaf_quantizers(quantizer, params)
    paths = leaf_paths(params)
    _check_granularity(quantizers, paths)
    searched = [i for i, (leaf, q) in enumerate(zip(leaves, quantizers, strict=True)) if q and bool(jnp.any(leaf != 0))]

    def quantize(leaves: list[jax.Array], clipping_values: list[jax.Array]) -> Any:
        scales = dict(zip(searched, clipping_values, strict=True))
        quantized = [
            leaf if q is None else q.round_to_nearest(leaf, scales[i]) if i in scales else q(leaf)
            for i, (leaf, q) in enumerate(zip(leaves, quantizers, strict=True))
        ]
        return jax.tree.unflatten(structure, quantized)

    loss = jax.jit(lambda leaves, clipping_values: loss_fn(dequantize(quantize(leaves, clipping_values))))
    evaluations: list[tuple[float, list[np.ndarray]]] = []

    def evaluate(clipping_values: list[np.ndarray]) -> float:
        value = np.asarray(loss(leaves, list(map(jnp.asarray, clipping_values))))
        if value.shape != ():
            raise ValueError(f"loss_fn must return a scalar, got shape {value.shape}.")
        evaluations.append((float(value) if np.isfinite(value) else math.inf, clipping_values))
        return evaluations[-1][0]

    def clipping_values_of(norm: float) -> list[np.ndarray]:
        values = [lp_clipping_values(leaves[i], quantizers[i], jnp.asarray(norm)) for i in searched]
        return [np.asarray(value, float) for value in jax.device_get(values)]

    norm_losses = [evaluate(clipping_values_of(norm)) for norm in norms]
    if not np.any(np.isfinite(norm_losses)):
        raise ValueError(f"loss_fn must be finite for some of the norms {norms}, got none that is.")
    vertex = _vertex(norms, norm_losses)
    tried = norms if vertex is None else (*norms, vertex)
    for norm in tried[len(norms) :]:
        evaluate(clipping_values_of(norm))
    norm, (norm_loss, start) = min(zip(tried, evaluations, strict=True), key=lambda item: item[1][0])

    if searched and max_evaluations > 0:
        with np.errstate(all="ignore"):  # differences of losses that are not finite
            scipy.optimize.minimize(
                lambda log_factors: evaluate(
                    [c * factor for c, factor in zip(start, np.exp(log_factors), strict=True)]
                ),
                np.zeros(len(start)),
                method="Powell",
                options={
                    "direc": _FIRST_STEP * np.eye(len(start)),
                    "maxfev": max_evaluations,
                    "xtol": _LINE_TOLERANCE,
                    "ftol": tolerance,
                },
            )
    best_loss, best = min(evaluations, key=lambda evaluation: evaluation[0])
    return LapqResult(
        quantized=jax.jit(quantize)(leaves, list(map(jnp.asarray, best))),
        clipping_values={
            paths[i]: value if value.ndim else float(value) for i, value in zip(searched, best, strict=True)
        },
        norm_losses=tuple(norm_losses),
        norm=norm,
        norm_loss=norm_loss,
        loss=best_loss,
        losses=tuple(loss for loss, _ in evaluations),
    )


def _vertex(norms: Sequence[float], losses: Sequence[float]) -> float | None:
    """Where the parabola through the losses has its minimum, if it has one strictly between the norms."""
    finite = np.isfinite(losses)
    if np.sum(finite) < 3:
        return None
    a, b, _ = np.polyfit(np.asarray(norms)[finite], np.asarray(losses)[finite], 2)
    vertex = float(-b / (2 * a)) if a > 0 else math.inf
    return vertex if min(norms) < vertex < max(norms) else None


def _checked_norms(norms: Sequence[float]) -> tuple[float, ...]:
    """The norms as numbers, where they are three or more different ones of at least 1."""
    try:
        checked = tuple(map(float, norms))
        valid = len(set(checked)) == len(checked) >= 3 and all(1 <= norm < math.inf for norm in checked)
    except (TypeError, ValueError):
        valid = False
    if not valid:
        raise ValueError(f"norms must be three or more different numbers of at least 1, got {norms!r}.")
    return checked


def _check_granularity(quantizers: Sequence[Quantizer | None], paths: Sequence[str]) -> None:
    for quantizer, path in zip(quantizers, paths, strict=True):
        if quantizer is not None and (
            not isinstance(quantizer.granularity, PerTensor | PerChannel) or quantizer.scales != 1
        ):
            raise ValueError(
                f"quantizer must have one scale per tensor or per channel, got {quantizer.granularity!r} with "
                f"{quantizer.scales} scale(s) at {path!r}."
            )
