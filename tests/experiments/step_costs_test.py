"""The steps that the benchmark times, of small networks: every method runs, and rows say what they compare."""

import pytest

import fobt
from experiments.costs import steps
from experiments.costs.steps import ADAM_STEP, Timed, branch_ratios, instrument_ratios, step_ratios
from experiments.models import NETWORKS
from experiments.models.transformer import Transformer

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what Qwix calls

MLP = Timed("small_mlp", lambda rngs: NETWORKS["small_mlp"](rngs, 1 / 64), (4, 28, 28, 1))
TRANSFORMER = Timed("transformer", lambda rngs: Transformer(rngs, 1 / 32, depth=1), (1, 4, 24))


def test_every_step_is_timed_in_its_unit():
    rows = step_ratios(TRANSFORMER, rounds=1)
    names = {row["what"].removeprefix(TRANSFORMER.title): row["unit"] for row in rows}
    assert {name for name, unit in names.items() if unit == ADAM_STEP} == {
        "SAM, float32",
        "Qwix, int4 weights",
        "loss-aware, binary",
        "loss-aware, linear(2)",
    }
    assert len(names) == len(rows) == 4 + 2 * 3
    for row in rows:
        assert row["ratio"] == pytest.approx(row["milliseconds"] / row["unit_milliseconds"])
        # What reads and writes a second gradient or a projection has more to move than its unit.
        assert row["traffic"] > 1


def test_instruments_and_branches_are_timed_in_the_step_without(monkeypatch):
    monkeypatch.setattr(steps, "QUANTIZERS", {"binary": fobt.binary()})
    for measure, suffix in ((instrument_ratios, ", tracked"), (branch_ratios, ", chosen by lax.cond")):
        rows = measure(MLP, rounds=1)
        assert rows
        assert all(row["what"] == MLP.title + row["unit"] + suffix for row in rows)
