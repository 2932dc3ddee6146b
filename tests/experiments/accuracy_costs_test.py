"""The table of how far projections are above the optimum."""

import functools

import fobt
from experiments.costs import accuracy


def test_rows_have_quantiles_of_the_excess(monkeypatch):
    """The solver that sorts is at the optimum, and plain alternation is not."""
    monkeypatch.setattr(accuracy, "TENSORS", ())
    monkeypatch.setattr(accuracy, "GROUPS", (50,))
    rows = {}
    for solver in ("exact", "alternating"):
        monkeypatch.setattr(accuracy, "GRIDS", {"linear(3)": (functools.partial(fobt.linear, solver=solver), 3)})
        (rows[solver],) = accuracy.accuracy(seed=0)
    assert rows["exact"]["what"] == "linear(3), channels of 50"
    assert rows["exact"]["count"] == 13 * 6 * accuracy.CHANNELS
    assert rows["exact"]["largest"] < 1e-4
    worse = rows["alternating"]
    assert 1e-2 < worse["most"] < worse["nearly_all"] <= worse["largest"]
