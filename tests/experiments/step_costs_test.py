"""The steps that the benchmark times, of small networks: every method runs, and rows say what they compare."""

import json

import pytest

import fobt
from experiments.costs import steps
from experiments.costs.benchmark import beside_earlier
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


def test_rows_of_networks_that_are_not_measured_stay(tmp_path):
    path = tmp_path / "steps.json"
    rows = [{"what": f"{name} step, batch 4: a", "ratio": 1.0} for name in ("mlp", "lenet5", "transformer")]
    path.write_text(json.dumps({"rows": rows}))
    new = [{"what": "lenet5 step, batch 4: b", "ratio": 2.0}]
    assert beside_earlier(new, path, ("lenet5",)) == [rows[0], new[0], rows[2]]
    assert beside_earlier(new, tmp_path / "none.json", ("lenet5",)) == new
