"""Statistics over seeds: mean, standard deviation, paired differences with a bootstrap confidence interval."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        mean: The mean.
        low: Lower end of the confidence interval of the mean, None with one seed.
        high: Its upper end, None with one seed.
        seeds: How many values.
    """

    mean: float
    low: float | None
    high: float | None
    seeds: int


def standard_deviation(values: Sequence[float]) -> float | None:
    """Sample standard deviation, n - 1 in the denominator; None of one value.

    Example:
        >>> standard_deviation([1.0, 3.0]), standard_deviation([1.0])
        (1.4142135623730951, None)
    """
    return statistics.stdev(values) if len(values) > 1 else None


def mean_and_deviation(values: Mapping[int, float]) -> dict[str, float | None]:
    """Mean and sample standard deviation over seeds, as records of tables hold them.

    Example:
        >>> mean_and_deviation({0: 1.0, 1: 3.0})
        {'mean': 2.0, 'deviation': 1.4142135623730951}
    """
    return {"mean": statistics.fmean(values.values()), "deviation": standard_deviation(list(values.values()))}


def paired_difference(values: Mapping[int, float], reference: Mapping[int, float]) -> Estimate | None:
    """Mean over common seeds of value minus reference, with the percentile bootstrap interval of that mean.

    With few seeds the interval is narrower than its nominal confidence of 95 %.

    Args:
        values: By seed.
        reference: By seed.

    Returns:
        The estimate, or None without a common seed.

    Example:
        >>> paired_difference({0: 1.5, 1: 2.5, 7: 9.0}, {0: 1.0, 1: 2.0})
        Estimate(mean=0.5, low=0.5, high=0.5, seeds=2)
    """
    seeds = sorted(values.keys() & reference.keys())
    if not seeds:
        return None
    differences = np.array([values[seed] - reference[seed] for seed in seeds])
    mean = float(np.mean(differences))
    if len(seeds) == 1:
        return Estimate(mean, None, None, 1)
    if np.all(differences == differences[0]):
        return Estimate(mean, mean, mean, len(seeds))
    interval = scipy.stats.bootstrap(
        (differences,), np.mean, confidence_level=CONFIDENCE, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return Estimate(mean, float(interval.low), float(interval.high), len(seeds))


def relative_difference(values: Mapping[int, float], reference: Mapping[int, float]) -> Estimate | None:
    """Mean over common seeds of value / reference - 1, with the interval of `paired_difference`.

    Example:
        >>> relative_difference({0: 1.5, 1: 3.0}, {0: 1.0, 1: 2.0})
        Estimate(mean=0.5, low=0.5, high=0.5, seeds=2)
    """
    ratios = {seed: value / reference[seed] - 1 for seed, value in values.items() if seed in reference}
    return paired_difference(ratios, dict.fromkeys(ratios, 0.0))


def as_record(estimate: Estimate | None) -> dict[str, Any] | None:
    """An estimate as records of tables hold it."""
    return None if estimate is None else vars(estimate)
