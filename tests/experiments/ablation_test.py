"""The grid over (m, a)."""

import json
from pathlib import Path

import pytest

from experiments.studies import ablation


def test_the_grid_has_a_cell_for_each_pair_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    options = ["--periods", "1", "2", "--epochs", "2", "--seeds", "0", "--limit", "70", "--output", str(tmp_path)]
    ablation.main([*options, "--a-values", "0.6"])
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/seed-0/result.json")}
    assert len(times) == 3
    ablation.main([*options, "--a-values", "0.6", "0.3"])
    assert all(path.stat().st_mtime_ns == before for path, before in times.items())

    records = json.loads((tmp_path / "ablation.json").read_text())
    assert [(record["m"], record["a"]) for record in records] == [
        ("every step", 0.6),
        ("every step", 0.3),
        ("2 epochs", 0.6),
        ("2 epochs", 0.3),
        ("LAQ", None),
    ]
    assert [record["gradients"] for record in records] == [4, 4, 3, 3, 2]
    for record in records:
        period = record["m"].replace("every step", "1 steps").replace(" ", "_")
        row = "laq-binary" if record["a"] is None else f"forward_backtrack-binary-a{record['a']}-every_{period}"
        run = tmp_path / row / "seed-0"
        result = json.loads((run / "result.json").read_text())
        assert record["validation_accuracy"] == 100 * result["validation_accuracy"]
        last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
        assert record["minibatch_loss"] == last["minibatch_loss"]
    table = (tmp_path / "ablation.md").read_text()
    assert table.split("\n\n")[0] in capsys.readouterr().out
    assert (tmp_path / "ablation.png").read_bytes().startswith(b"\x89PNG")


def test_a_of_one_is_laq_and_no_cell(tmp_path: Path):
    with pytest.raises(ValueError, match=r"--a-values must be in \(0, 1\), got \(0.5, 1.0\)"):
        ablation.AblationConfig(a_values=(0.5, 1.0), output=tmp_path)
