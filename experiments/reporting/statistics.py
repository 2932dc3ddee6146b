"""Statistics over seeds: mean, standard deviation, paired differences and ratios with Student's t interval."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import scipy.special

CONFIDENCE = 0.95
LEAST_SEEDS = 5  # with fewer an interval says more about the assumption of normality than about the values


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        mean: The mean.
        low: Lower end of the 95 % confidence interval of the mean; None with fewer than five seeds.
        high: Its upper end, or None.
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
    """Mean over common seeds of the differences d = value - reference, with Student's t interval.

    The interval is mean(d) ± t s/√n for n seeds: s is the sample standard deviation of d, and t the 97.5 % quantile of
    Student's distribution with n - 1 degrees of freedom. It covers the mean of normal differences in 95 % of all cases.

    Args:
        values: By seed.
        reference: By seed.

    Returns:
        The estimate, without an interval below five common seeds; None without a common seed.

    Example:
        >>> estimate = paired_difference({0: 2.0, 1: 3.0, 2: 4.0, 3: 5.0, 4: 6.0, 9: 0.0}, dict.fromkeys(range(5), 1.0))
        >>> estimate.mean, round(estimate.low, 3), round(estimate.high, 3), estimate.seeds  # 3 ± 2.776 · √2.5 / √5
        (3.0, 1.037, 4.963, 5)
        >>> paired_difference({0: 1.5, 1: 2.5}, {0: 1.0, 1: 2.0})
        Estimate(mean=0.5, low=None, high=None, seeds=2)
    """
    differences = [values[seed] - reference[seed] for seed in sorted(values.keys() & reference.keys())]
    if not differences:
        return None
    mean, n = statistics.fmean(differences), len(differences)
    if n < LEAST_SEEDS:
        return Estimate(mean, None, None, n)
    quantile = float(scipy.special.stdtrit(n - 1, (1 + CONFIDENCE) / 2))
    half = quantile * statistics.stdev(differences) / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half, n)


def relative_difference(values: Mapping[int, float], reference: Mapping[int, float]) -> Estimate | None:
    """Geometric mean over common seeds of value / reference, minus 1, with Student's t interval of the log ratios.

    Losses of seeds differ by factors: on log ratios a half and a double cancel, as they do not in a mean of ratios.

    Args:
        values: By seed.
        reference: By seed.

    Returns:
        The estimate, without an interval below five common seeds; None without a common seed, or where a value is not
        positive and has no logarithm.

    Example:
        >>> relative_difference({0: 1.0, 1: 4.0}, {0: 2.0, 1: 2.0})
        Estimate(mean=0.0, low=None, high=None, seeds=2)
    """
    common = values.keys() & reference.keys()
    if any(side[seed] <= 0 for seed in common for side in (values, reference)):
        return None
    logs = [{seed: math.log(side[seed]) for seed in common} for side in (values, reference)]
    estimate = paired_difference(*logs)
    if estimate is None:
        return None
    low, high = (None if end is None else math.expm1(end) for end in (estimate.low, estimate.high))
    return Estimate(math.expm1(estimate.mean), low, high, estimate.seeds)


def as_record(estimate: Estimate | None) -> dict[str, Any] | None:
    """An estimate as records of tables hold it."""
    return None if estimate is None else vars(estimate)
