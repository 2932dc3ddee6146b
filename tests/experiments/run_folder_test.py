"""The folders that jobs leave behind."""

import dataclasses
import json
from pathlib import Path

import pytest
from training_cases import small_digits

from experiments.configs import JOBS
from experiments.core.run_folder import JobFolder
from experiments.methods.rows import Row

TWO_STAGE = Row(method="forward_backtrack", grid="binary", a=0.6, every=2, every_unit="steps")


def test_the_default_folder_is_new_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    folders = {JobFolder(JOBS["digits"], "digits").path for _ in range(3)}
    assert len(folders) == 3
    assert all(folder.parent == Path("runs") and folder.name.startswith("digits-") for folder in folders)


def test_a_folder_takes_new_rows_but_no_other_settings(tmp_path: Path):
    config = small_digits(output=tmp_path)
    JobFolder(config, "digits")
    JobFolder(dataclasses.replace(config, methods=("laq",), seeds=(7,), checkpoint_seconds=1.0), "digits")
    for change, message in [
        ({"epochs": 3}, "epochs = 2, not 3"),
        ({"learning_rate": 0.5}, "learning_rate = 0.03, not"),
    ]:
        with pytest.raises(ValueError, match=f"holds runs with {message}"):
            JobFolder(dataclasses.replace(config, **change), "digits")
    with pytest.raises(ValueError, match="data_name = digits, not other"):
        JobFolder(config, "other")
    assert json.loads((tmp_path / "job.json").read_text())["epochs"] == 2


def test_metrics_of_epochs_that_are_run_again_are_dropped_and_cut_lines_too(tmp_path: Path):
    folder = JobFolder(small_digits(output=tmp_path), "digits").run(TWO_STAGE, 0)
    for epoch in (1, 2, 3):
        folder.append_metrics({"epoch": epoch, "train_loss": float("inf") if epoch == 2 else 0.5})
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 4, "tra')
    folder.keep_metrics_before(3)
    lines = (folder.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"epoch": 1, "train_loss": 0.5}, {"epoch": 2, "train_loss": None}]
