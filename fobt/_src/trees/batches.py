"""Leaves of a tree that are projected together, so that a program has one projection for many leaves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fobt._src.quantizers.quantizer import Quantizer

# Larger ones are faster alone, where the search among candidates reads them from a nearer cache.
_LARGEST = 2**17


def quantize_leaves(
    leaves: Sequence[Any], quantizers: Sequence[Quantizer | None], curvatures: Sequence[jax.Array | None]
) -> list[Any]:
    """Every leaf as its quantizer gives it with its curvature; leaves without a quantizer as they are."""
    results = list(leaves)
    batches: dict[Any, list[int]] = {}
    for i, (leaf, quantizer, curvature) in enumerate(zip(leaves, quantizers, curvatures, strict=True)):
        if quantizer is None:
            continue
        weights = jnp.asarray(leaf)
        key = quantizer.batch_key(weights)
        if key is None or weights.size > _LARGEST or (curvature is not None and jnp.shape(curvature) != weights.shape):
            results[i] = quantizer(leaf, curvature)
        else:
            batches.setdefault((quantizer, key, weights.dtype, curvature is None), []).append(i)
    for (quantizer, *_, is_unweighted), places in batches.items():
        if len(places) == 1:
            results[places[0]] = quantizer(leaves[places[0]], curvatures[places[0]])
            continue
        ws, cs = ([jnp.asarray(xs[i]) for i in places if xs[i] is not None] for xs in (leaves, curvatures))
        projected = quantizer.of_all(ws, None if is_unweighted else cs)
        for i, of_leaf in zip(places, projected, strict=True):
            results[i] = of_leaf
    return results
