"""Reports: statistics against closed forms, and tables against runs made up by hand."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from training_cases import small_digits

from experiments.core.run_folder import JobFolder
from experiments.methods.rows import Row
from experiments.reporting import paper, report
from experiments.reporting.results import Job, read_job
from experiments.reporting.statistics import paired_difference, standard_deviation

LAQ = Row(method="laq", grid="binary")
TWO_STAGE = Row(method="forward_backtrack", grid="binary", a=0.6, every=1, every_unit="steps")


def test_paired_difference_takes_common_seeds_only():
    estimate = paired_difference({0: 1.0, 1: 4.0, 2: 9.0, 5: 100.0}, {0: 0.0, 1: 1.0, 2: 4.0, 7: 0.0})
    assert estimate is not None
    assert estimate.seeds == 3
    np.testing.assert_allclose(estimate.mean, (1 + 3 + 5) / 3)
    assert paired_difference({0: 1.0}, {1: 1.0}) is None
    single = paired_difference({3: 2.0}, {3: 0.5})
    assert single is not None
    assert (single.mean, single.low, single.high) == (1.5, None, None)


def test_the_interval_is_that_of_the_mean():
    # With many seeds the percentile bootstrap is the normal interval: mean ± 1.96 standard errors.
    rng = np.random.default_rng(1)
    values = dict(enumerate(rng.normal(0.3, 2.0, 400)))
    estimate = paired_difference(values, dict.fromkeys(values, 0.0))
    assert estimate is not None
    assert estimate.low is not None
    assert estimate.high is not None
    half = 1.96 * standard_deviation(list(values.values())) / 20
    np.testing.assert_allclose([estimate.low, estimate.high], [estimate.mean - half, estimate.mean + half], atol=0.03)


def write_run(folder: JobFolder, row: Row, seed: int, accuracies: list, losses: list, finished: bool = True) -> None:
    """A run with 10 steps an epoch."""
    run = folder.run(row, seed)
    gradients = 10 * row.gradient_evaluations(1, 1)
    for epoch, (accuracy, loss) in enumerate(zip(accuracies, losses, strict=True), start=1):
        run.append_metrics(
            run.identity
            | {"epoch": epoch, "steps": 10 * epoch, "gradient_evaluations": gradients * epoch, "train_loss": loss}
            | {"validation_accuracy": accuracy, "flip_share": 0.01 * epoch}
        )
    if finished:
        run.write_result(
            run.identity
            | {"test_accuracy": accuracies[-1] - 0.01, "train_loss": losses[-1], "seconds": 2.0}
            | {"gradient_evaluations": gradients * len(losses), "bits_per_weight": 1.5}
        )


@pytest.fixture
def job(tmp_path: Path) -> Path:
    folder = JobFolder(small_digits(output=tmp_path / "job", epochs=4), "digits")
    for seed, offset in [(0, 0.0), (1, 0.02)]:
        write_run(folder, LAQ, seed, [0.5, 0.8, 0.7, 0.9 + offset], [4, 3, 2, 1 + offset])
        write_run(folder, TWO_STAGE, seed, [0.6, 0.82, 0.8, 0.94 + offset], [3, 2.5, 1.5, 0.5 + offset])
    write_run(folder, TWO_STAGE, 2, [0.1, 0.2], [9, 9], finished=False)
    compressed = Row(**(vars(TWO_STAGE) | {"equal_gradients": True}))
    write_run(folder, compressed, 0, [0.7, 0.88], [2, 1.25])
    return folder.path


def test_tables_have_means_deviations_and_differences(job: Path):
    laq, method = report.equal_epochs(read_job(job))
    assert (laq["label"], laq["seeds"], laq["test_accuracy_to_laq"]) == ("LAQ, binary", 2, None)
    np.testing.assert_allclose(list(laq["test_accuracy"].values()), [90, np.sqrt(2)])
    np.testing.assert_allclose([method["test_accuracy"]["mean"], method["test_accuracy_to_laq"]["mean"]], [94, 4])
    np.testing.assert_allclose([method["train_loss"]["mean"], method["train_loss_to_laq"]["mean"]], [0.51, -0.5])
    assert (laq["gradient_evaluations"], method["gradient_evaluations"], method["seeds"]) == (40, 80, 2)


def test_equal_gradients_cut_off_at_what_laq_took(job: Path):
    laq, method, compressed = report.equal_gradients(read_job(job))
    assert [record["gradient_evaluations"] for record in (laq, method, compressed)] == [40, 40, 40]
    # Two epochs with two gradients each: the best validation accuracy is 0.82, the loss 2.5. Seed 2 ends there, but it
    # is not finished, so it may still be on its way.
    assert method["seeds"] == 2
    np.testing.assert_allclose([method["validation_accuracy"]["mean"], method["train_loss"]["mean"]], [82, 2.5])
    np.testing.assert_allclose(method["train_loss_to_laq"]["mean"], 2.5 - 1.01)
    assert method["test_accuracy"] is None
    np.testing.assert_allclose(compressed["test_accuracy"]["mean"], 87)
    np.testing.assert_allclose(compressed["train_loss_to_laq"]["mean"], 0.25)


def test_the_report_of_several_folders(job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    report.main([str(job), str(job), "--output", str(tmp_path / "out")])
    text = (tmp_path / "out" / "report.md").read_text()
    assert text.count("## digits: digits_cnn, width 0.25 on digits, 64 images, 4 epochs") == 2
    assert "94.00 ± 1.41 |" in text
    assert "+4.00 [+4.00, +4.00]" in text
    assert len(json.loads((tmp_path / "out" / "report.json").read_text())) == 2
    assert text.strip() == capsys.readouterr().out.strip()


def test_the_records_of_rows_stand_for_the_folders_of_runs(job: Path, tmp_path: Path):
    report.main([str(job), "--output", str(tmp_path / "before")])
    for folder in job.glob("*/seed-*"):
        shutil.rmtree(folder)
    report.main([str(job), "--output", str(tmp_path / "after")])
    for name in ("report.md", "report.json"):
        assert (tmp_path / "after" / name).read_text() == (tmp_path / "before" / name).read_text()


def test_a_folder_without_finished_runs_is_no_error(tmp_path: Path):
    folder = JobFolder(small_digits(output=tmp_path / "job"), "digits")
    write_run(folder, LAQ, 0, [0.5], [1.0], finished=False)
    report.write_report([folder.path], folder.path, Console(quiet=True))
    assert "| LAQ" not in (folder.path / "report.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"), [(["nowhere"], "nowhere is no folder of"), ([], "give at least one folder")]
)
def test_a_folder_that_is_none_gives_one_line(
    arguments: list, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        report.main(arguments)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("python -m experiments report: ")
    assert message in line.lower()


def test_the_papers_numbers_stand_beside_the_rows_they_belong_to():
    row = Row(method="forward_backtrack", grid="binary", a=0.6, every=5, every_unit="epochs")
    assert paper.accuracy("cifar10_vgg", row) == 91.50
    assert paper.accuracy("digits", row) is None
    assert paper.accuracy("cifar10_vgg", TWO_STAGE) is None
    assert paper.accuracy("cifar10_vgg", LAQ) is None
    best = {job: max(max(row) for row in grid.values()) for (job, bits), grid in paper.ACCURACY.items()}
    assert best["mnist_mlp"] == 99.11
    assert best["mnist_lenet5"] == 99.38
    assert best["svhn"] == 98.13


@pytest.mark.parametrize(("settings", "expected"), [({}, 91.50), ({"width": 0.125}, None), ({"limit": 100}, None)])
def test_the_papers_numbers_stand_beside_full_size_jobs_only(settings: dict, expected: float | None):
    row = Row(method="forward_backtrack", grid="binary", a=0.6, every=5, every_unit="epochs")
    job = Job(Path("job"), {"job": "cifar10_vgg", "width": 1.0, "limit": None} | settings, {})
    assert job.paper_accuracy(row) == expected
