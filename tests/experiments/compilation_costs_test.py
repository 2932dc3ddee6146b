"""The table of compilation times."""

import fobt
from experiments.costs import compilation


def test_a_row_for_each_tree_and_quantizer(monkeypatch):
    monkeypatch.setattr(compilation, "TREES", {"small": [(3, 4), (3, 4)], "other": [(2, 5)]})
    monkeypatch.setattr(compilation, "QUANTIZERS", {"binary": fobt.binary()})
    # Caches are of use to other tests.
    monkeypatch.setattr(compilation.jax, "clear_caches", lambda: None)
    rows = compilation.compilation_ratios(1)
    assert [row["what"] for row in rows] == ["small, loss-aware: binary", "other, loss-aware: binary"]
    assert all(row["ratio"] > 0 and row["unit"] == compilation.ADAM_STEP for row in rows)
