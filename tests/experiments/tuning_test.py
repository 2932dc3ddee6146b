"""The comparison of tuned methods."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
from rich.console import Console
from training_cases import small_digits

from experiments import train
from experiments.data import load_dataset
from experiments.methods.registry import METHODS
from experiments.reporting.results import read_job
from experiments.studies import tuning

OPTIONS = ["--epochs", "2", "--limit", "70", "--b1", "0.8", "--tuning-seeds", "9", "--seeds", "0", "1"]


def test_every_row_is_tuned_and_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The best of the search is what is compared, and finished rows are kept when others are added."""
    variants = {"optimistic, a per layer": ("optimistic_per_layer", {})}
    variants |= {"optimistic, a from 0.3 to 0.9": ("optimistic_scheduled", {"start": 0.3, "end": 0.9})}
    methods = {name: METHODS[name] for name in ("laq", "nesterov")}
    for label, (name, options) in variants.items():
        methods[name] = dataclasses.replace(METHODS[name], variants={label: options})
    monkeypatch.setattr(tuning, "METHODS", methods)
    options = [*OPTIONS, "--learning-rates", "0.01", "0.03", "--b2", "0.9", "--output", str(tmp_path)]
    tuning.main([*options, "--rows", "methods"])
    laq, nesterov = json.loads((tmp_path / "tuning.json").read_text())["rows"]
    for row in (laq, nesterov):
        assert [setting[:3] for setting in row["searched"]] == [[0.01, 0.8, 0.9], [0.03, 0.8, 0.9]]
        best = min(row["searched"], key=lambda setting: setting[3])
        assert [row[key] for key in ("learning_rate", "b1", "b2")] == best[:3]
    ratios = [nesterov["by_seed"][seed]["train_loss"] / laq["by_seed"][seed]["train_loss"] for seed in "01"]
    assert nesterov["to_laq"]["mean"] == pytest.approx(math.sqrt(ratios[0] * ratios[1]) - 1)

    tuning.main(options)
    rows = json.loads((tmp_path / "tuning.json").read_text())["rows"]
    assert [row["label"] for row in rows] == ["LAQ", "quantized Nesterov", *variants]
    assert rows[0] == laq
    assert (tmp_path / "tuning.md").read_text() in capsys.readouterr().out
    with pytest.raises(SystemExit):
        tuning.main([*options, "--grid", "ternary"])
    assert "holds rows with other settings: choose another --output" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("label", "options"),
    [
        ("quantized Nesterov", {"methods": ("nesterov",)}),
        ("forward-backtrack, a = 0.3", {"methods": ("forward_backtrack",), "a": 0.3}),
    ],
)
def test_a_row_reaches_the_loss_of_the_training_program(label, options, tmp_path: Path):
    config = tuning.TuningConfig(
        learning_rates=(0.005,), b1=(0.8,), b2=(0.95,), tuning_seeds=(9,), seeds=(0,), output=tmp_path
    )
    options = options | {"learning_rate": 0.005, "b1": 0.8, "b2": 0.95, "reestimate_batch_stats": 0}
    job = small_digits(**options, budget="gradients", output=tmp_path / "trained")
    train.run_job(job, Console(quiet=True))
    (((run,),)) = read_job(tmp_path / "trained").runs.values()
    dataset = load_dataset(job.dataset, job.limit)
    record = tuning.measure(config, job, dataset, *tuning.offered("methods")[label])
    # At larger rates rounding turns single codes, and their losses part.
    assert record["by_seed"]["0"]["train_loss"] == pytest.approx(run.result["train_loss"], rel=1e-4)


def test_seeds_of_the_search_are_not_those_of_the_comparison(tmp_path: Path):
    with pytest.raises(ValueError, match=r"--tuning-seeds must be other seeds than --seeds, got \(0, 100\)"):
        tuning.TuningConfig(tuning_seeds=(0, 100), output=tmp_path)
