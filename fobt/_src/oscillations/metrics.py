"""What `track_oscillations` has seen, as numbers to log."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fobt._src.base.checks import check_number
from fobt._src.base.totals import total, widest
from fobt._src.oscillations.comparison import Comparison
from fobt._src.oscillations.tracking import LeafOscillations, OscillationState

# Edges of the bins of the frequency histogram: 0, and half powers of ten.
FREQUENCY_EDGES = (0.0, *(10 ** (exponent / 2) for exponent in range(-8, 1)))


def oscillation_metrics(state: optax.OptState, *, threshold: float = 0.005) -> dict[str, Any]:
    """Measures of oscillation from the state of `track_oscillations`, which defines them.

    Args:
      state: the state, or that of a chain or wrapper with exactly one such state in it.
      threshold: a weight is oscillating where its frequency is above; in [0, 1).

    Returns:
      `{"total": measures, "leaves": {path: measures}}`, for all quantized leaves together and for each. Shares and
      means of the total are those over all weights, each followed one standing for the others of its leaf. The measures
      are scalars, except for the histogram:

      - `flip_share`: share of codes that differ from those of the step before;
      - `oscillation_frequency`: mean of the frequencies;
      - `oscillating_share`: share of weights with a frequency above `threshold`;
      - `largest_amplitude`: the largest swing of a latent so far;
      - `frequency_histogram`: shares of weights by frequency, shape (9,), in bins with the edges 0, 10^-4,
        10^-3.5, ..., 1, each without its upper edge but for the last;
      - `gradient_cosine`: between the last two gradients, 0 in the first update;
      - `trial_gradient_cosine`: between gradient and trial gradient, NaN in a step without one;
      - `gradient_quantization_error`, `full_precision_gradient_cosine`: gradients at quantized and at full-precision
        weights, NaN unless these are taken.

      In the place of NaN there is 0 while `jax_debug_nans` is set, for which NaN is an error.

    Raises:
      ValueError: `threshold` is out of range; there is no such state, or more than one.

    Example:
      >>> import fobt, optax
      >>> import jax.numpy as jnp
      >>> tx = optax.chain(optax.clip(1.0), fobt.oscillations.track_oscillations(optax.adam(1e-3), fobt.binary()))
      >>> metrics = fobt.oscillations.oscillation_metrics(tx.init({"kernel": jnp.ones((2, 2))}))
      >>> metrics["leaves"]["kernel"]["flip_share"], metrics["total"]["largest_amplitude"]
      (Array(0., dtype=float32), Array(0., dtype=float32))

    References:
      Nagel, Fournarakis, Bondarenko, Blankevoort, Overcoming Oscillations in Quantization-Aware Training, ICML 2022:
      weights with f > 0.005 count as oscillating.
    """
    check_number("threshold", threshold, "in [0, 1)", lambda value: 0 <= value < 1)
    is_tracked = lambda node: isinstance(node, OscillationState)  # noqa: E731
    tracked = [node for node in jax.tree.leaves(state, is_leaf=is_tracked) if is_tracked(node)]
    if len(tracked) != 1:
        raise ValueError(f"state must hold one state of track_oscillations, found {len(tracked)}.")
    leaves = tracked[0].leaves
    return {
        "total": _measures(list(leaves.values()), threshold),
        "leaves": {path: _measures([leaf], threshold) for path, leaf in leaves.items()},
    }


def _measures(leaves: Sequence[LeafOscillations], threshold: float) -> dict[str, jax.Array]:
    """The measures of some leaves together."""

    def mean(values: Iterable[jax.Array]) -> jax.Array:
        """The mean over all weights, from the means over the weights of each leaf."""
        parts = [float(leaf.size) * value for leaf, value in zip(leaves, values, strict=True)]
        return total(parts) / float(max(1, sum(leaf.size for leaf in leaves)))

    def joined(comparisons: Sequence[Comparison]) -> Comparison:
        """The comparison over all weights, each followed one standing for the others of its leaf."""
        shares = [leaf.size / max(1, leaf.followed.codes.size) for leaf in leaves]
        sums = (
            total([share * getattr(comparison, field) for share, comparison in zip(shares, comparisons, strict=True)])
            for field in ("product", "square", "other_square", "distance_square")
        )
        known = jnp.all(jnp.asarray([comparison.known for comparison in comparisons], bool))
        return Comparison(known, *sums)

    frequencies = [leaf.followed.frequency for leaf in leaves]
    largest = [jnp.max(leaf.followed.amplitude, initial=0) for leaf in leaves]
    full_precision = joined([leaf.full_precision for leaf in leaves])
    return {
        "flip_share": mean(leaf.flip_share for leaf in leaves),
        "oscillation_frequency": mean(_mean(f) for f in frequencies),
        "oscillating_share": mean(_share(f > threshold, f.dtype) for f in frequencies),
        "largest_amplitude": functools.reduce(jnp.maximum, widest(largest)),
        "frequency_histogram": mean(_histogram(f) for f in frequencies),
        "gradient_cosine": joined([leaf.successive for leaf in leaves]).cosine(),
        "trial_gradient_cosine": joined([leaf.trial for leaf in leaves]).cosine(),
        "gradient_quantization_error": full_precision.relative_distance(),
        "full_precision_gradient_cosine": full_precision.cosine(),
    }


def _mean(values: jax.Array) -> jax.Array:
    """The mean of floating numbers, 0 of an empty array."""
    return jnp.sum(values) / float(max(1, values.size))


def _share(which: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The share of those that are true."""
    return _mean(which.astype(dtype))


def _histogram(frequencies: jax.Array) -> jax.Array:
    # Differences of shares above each edge: no scatter, and nothing but scalars travels where weights are sharded.
    above = jnp.stack([_share(frequencies >= edge, frequencies.dtype) for edge in FREQUENCY_EDGES[:-1]])
    return above - jnp.append(above[1:], 0)
