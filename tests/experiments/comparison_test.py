"""The comparison of methods with settings of their own."""

import json
import math
import statistics
from pathlib import Path

import pytest

from experiments.studies import comparison

OPTIONS = [
    "--epochs",
    "10",
    "--limit",
    "128",
    "--width",
    "0.25",
    "--tuning-seeds",
    "9",
    "--seeds",
    "0",
    "1",
    "2",
    "3",
    "4",
]


def test_every_row_is_tuned_and_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The best of the search is what is compared, and finished rows are kept when others are added."""
    options = [*OPTIONS, "--timing-rounds", "1", "--output", str(tmp_path)]
    comparison.main([*options, "--rows", "LAQ"])
    (laq,) = json.loads((tmp_path / "comparison.json").read_text())["rows"]
    assert laq["equal_time"] is None
    for record, loss in ((laq, 3), (laq["validated"], 4)):
        best = min(laq["searched"], key=lambda setting, loss=loss: setting[loss])
        assert list(record["setting"].values()) == best[:3]

    comparison.main([*options, "--rows", "LAQ", "two LAQ steps"])
    first, two_steps = json.loads((tmp_path / "comparison.json").read_text())["rows"]
    assert {key: first[key] for key in laq if key != "step_seconds"} == {
        key: laq[key] for key in laq if key != "step_seconds"
    }
    assert (first["steps"], two_steps["steps"]) == (20, 10)
    time = first["step_seconds"] / two_steps["step_seconds"]
    assert two_steps["equal_time"]["steps"] == 10 * max(1, round(2 * time))
    for record, key in [(two_steps, "train_loss_to_laq"), (two_steps["equal_time"], None)]:
        losses = [(record["by_seed"][s]["train_loss"], first["by_seed"][s]["train_loss"]) for s in "01234"]
        ratio = math.exp(statistics.fmean(math.log(loss / other) for loss, other in losses))
        found = two_steps[key or "equal_time_to_laq"]
        assert found["mean"] == pytest.approx(ratio - 1)
        assert found["low"] < found["mean"] < found["high"]
    # Times are those of one process: of a row that a later call leaves out nothing of earlier times is kept.
    comparison.main([*options, "--rows", "LAQ", "curvature 1"])
    rows = {row["label"]: row for row in json.loads((tmp_path / "comparison.json").read_text())["rows"]}
    assert rows["curvature 1"].keys() >= set(comparison.TIMED)
    assert not rows["two LAQ steps"].keys() & set(comparison.TIMED)
    text = (tmp_path / "comparison.md").read_text()
    assert text in capsys.readouterr().out
    assert "5 paired seeds" in text
    with pytest.raises(SystemExit):
        comparison.main([*options, "--grid", "ternary"])
    assert "holds rows with other settings: choose another --output" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tuning_seeds": (0, 100)}, r"--tuning-seeds must be other seeds than --seeds, got \(0, 100\)"),
        ({"rows": ("LAQ", "TWN")}, r"--rows must be among .*, got \['TWN'\]"),
    ],
)
def test_wrong_options_are_refused(options: dict, message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=message):
        comparison.ComparisonConfig(output=tmp_path, **options)
