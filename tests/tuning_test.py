"""The comparison of tuned methods."""

import json
from pathlib import Path

import jax
import pytest

from experiments import tuning


@pytest.fixture(scope="module", autouse=True)
def compile_fast():
    """These tests compile much and run little."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def test_each_method_is_searched_and_compared_at_equal_gradients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(tuning, "SETTINGS", {"learning_rate": (0.01, 0.03), "b2": (0.99,)})
    options = ["--methods", "laq", "two_steps", "--epochs", "2", "--limit", "70"]
    options += ["--tuning-seeds", "9", "--seeds", "0", "1", "--output", str(tmp_path)]
    tuning.main(options)
    content = json.loads((tmp_path / "tuning.json").read_text())
    results = {path: json.loads(path.read_text()) for path in tmp_path.glob("*/*/*/seed-*/result.json")}
    for record, (method, tried) in zip(content["compared"], content["searched"].items(), strict=True):
        # The chosen setting has the lowest loss that the search saw, and that loss is the one in the run's folder.
        best = min(tried, key=lambda setting: setting["validation_loss"])
        assert record["learning_rate"] == best["learning_rate"]
        setting = "-".join(f"{key}{best[key]:g}" for key in ("learning_rate", "b2"))
        (metrics,) = (tmp_path / "search" / setting).glob(f"{method}*/seed-9/metrics.jsonl")
        assert json.loads(metrics.read_text().splitlines()[-1])["validation_loss"] == best["validation_loss"]
        # The comparison has its own seeds, and equal gradients.
        losses = [
            result["train_loss"]
            for path, result in results.items()
            if path.is_relative_to(tmp_path / "compared") and path.parts[-3].startswith(method)
        ]
        assert record["train_loss"] == pytest.approx(sum(losses) / 2)
        assert record["gradients"] == 2
    assert (tmp_path / "tuning.md").read_text() in capsys.readouterr().out

    times = {path: path.stat().st_mtime_ns for path in results}
    tuning.main(options)
    assert all(path.stat().st_mtime_ns == before for path, before in times.items())


def test_seeds_of_the_search_are_not_those_of_the_comparison(tmp_path: Path):
    with pytest.raises(SystemExit, match=r"--tuning-seeds must not be among --seeds, got \(0, 100\)"):
        tuning.main(["--tuning-seeds", "0", "100", "--output", str(tmp_path)])
