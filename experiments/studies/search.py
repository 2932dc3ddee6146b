"""A search of learning rate, b1 and b2 with the same budget for every method: three rounds of eight settings."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from experiments.core.cohort import Setting

Score: TypeAlias = Callable[[Sequence[Setting]], Sequence[float]]

RATES = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
B1 = (0.0, 0.3, 0.6, 0.9, 0.97)
B2 = (0.2, 0.5, 0.8, 0.95, 0.995)


def search(score: Score) -> dict[Setting, float]:
    """Scores of 24 settings, or of fewer where a neighbour would be past the end of its list.

    The first round takes learning rates over four decades, the second b1 and b2 at the best of them, the third the
    neighbours of the best so far.

    Args:
        score: From settings to numbers, the lower the better; a training that failed may give NaN.

    Returns:
        Settings and their scores.
    """
    scores: dict[Setting, float] = {}

    def try_all(settings: Sequence[Setting]) -> Setting:
        new = [setting for setting in dict.fromkeys(settings) if setting not in scores]
        values = [value if math.isfinite(value) else math.inf for value in map(float, score(new))]
        scores.update(zip(new, values, strict=True))
        return best(scores)

    centre = try_all([Setting(rate, b1=0.6, b2=0.8) for rate in RATES])
    moments = itertools.product(B1[1:4], B2[1:4])
    centre = try_all([dataclasses.replace(centre, b1=b1, b2=b2) for b1, b2 in moments])
    try_all(_neighbours(centre))
    return scores


def best(scores: Mapping[Setting, float]) -> Setting:
    """The setting with the lowest score."""
    return min(scores, key=lambda setting: scores[setting])


def on_an_edge(scores: Mapping[Setting, float]) -> list[str]:
    """Names of what is at its smallest or largest value tried in the best setting; b1 = 0 is no edge but an end."""
    chosen = best(scores)
    edges = []
    for name in ("learning_rate", "b1", "b2"):
        values = {getattr(setting, name) for setting in scores}
        value = getattr(chosen, name)
        if value == max(values) or (value == min(values) and value != 0):
            edges.append(name)
    return edges


def _neighbours(centre: Setting) -> list[Setting]:
    slower, faster = (float(f"{factor * centre.learning_rate:.2g}") for factor in (0.56, 1.8))
    lower_b1, higher_b1 = _beside(B1, centre.b1)
    lower_b2, higher_b2 = _beside(B2, centre.b2)
    changes: list[dict[str, float | None]] = [
        {"learning_rate": slower},
        {"learning_rate": faster},
        {"b1": lower_b1},
        {"b1": higher_b1},
        {"b2": lower_b2},
        {"b2": higher_b2},
        {"learning_rate": slower, "b1": lower_b1},
        {"learning_rate": faster, "b2": lower_b2},
    ]
    kept = [change for change in changes if None not in change.values()]
    return [Setting(**{**vars(centre), **change}) for change in kept]


def _beside(values: Sequence[float], value: float) -> tuple[float | None, float | None]:
    place = values.index(value)
    return (values[place - 1] if place > 0 else None, values[place + 1] if place + 1 < len(values) else None)
