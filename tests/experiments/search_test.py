"""The search of settings, on scores whose minimum is known."""

import math

import pytest

from experiments.core.cohort import Setting
from experiments.studies.search import B1, B2, RATES, best, on_an_edge, search


def bowl(rate: float, b1: float, b2: float):
    """Scores with their minimum at a setting; the rate counts more than the moments, as in training."""

    def score(settings):
        return [
            3 * abs(math.log(s.learning_rate / rate)) + abs(s.b1 - b1) + abs(math.log((1 - s.b2) / (1 - b2)))
            for s in settings
        ]

    return score


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize(("b1", "b2"), [(0.6, 0.8), (0.9, 0.95), (0.0, 0.995), (0.97, 0.2)])
def test_it_finds_the_minimum_of_a_bowl(rate: float, b1: float, b2: float):
    scores = search(bowl(rate, b1, b2))
    assert len(scores) <= 24
    found = best(scores)
    assert found.learning_rate == rate
    # Neither moment is more than one step away: one round moves each of them, and the last only one of the two.
    assert abs(B1.index(found.b1) - B1.index(b1)) + abs(B2.index(found.b2) - B2.index(b2)) <= 1


def test_a_finer_learning_rate_is_found_between_the_first_ones():
    found = best(search(bowl(0.0165, 0.6, 0.95)))
    assert found == Setting(0.018, 0.6, 0.95)


def test_settings_at_the_end_of_what_was_tried_are_named():
    assert on_an_edge(search(bowl(0.01, 0.6, 0.95))) == []
    assert on_an_edge(search(bowl(1e-6, 0.6, 0.95))) == ["learning_rate"]
    assert on_an_edge(search(bowl(0.01, 0.6, 0.2))) == ["b2"]
    assert on_an_edge(search(bowl(0.01, 0.0, 0.95))) == []  # no momentum is an end of the range, not of the search


def test_trainings_that_fail_lose():
    def score(settings):
        return [math.nan if setting.learning_rate > 0.005 else setting.learning_rate for setting in settings]

    scores = search(score)
    assert best(scores).learning_rate < 0.0003
    assert all(value == math.inf for setting, value in scores.items() if setting.learning_rate > 0.005)
