"""Reports: statistics against closed forms, and tables against runs made up by hand."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from training_cases import small_digits

from experiments.core.run_folder import JobFolder
from experiments.methods.rows import Row
from experiments.reporting import paper, report
from experiments.reporting.results import Job, read_job
from experiments.reporting.statistics import Estimate, paired_difference, relative_difference

LAQ = Row(method="laq", grid="binary")
TWO_STAGE = Row(method="forward_backtrack", grid="binary", a=0.6, every=1, every_unit="steps")


def test_paired_difference_takes_common_seeds_only():
    estimate = paired_difference({0: 1.0, 1: 4.0, 2: 9.0, 5: 100.0}, {0: 0.0, 1: 1.0, 2: 4.0, 7: 0.0})
    assert estimate is not None
    assert estimate.seeds == 3
    np.testing.assert_allclose(estimate.mean, (1 + 3 + 5) / 3)
    assert paired_difference({0: 1.0}, {1: 1.0}) is None
    assert paired_difference({3: 2.0}, {3: 0.5}) == Estimate(1.5, None, None, 1)


def test_the_interval_is_students():
    # Differences 1, 2, 4, 5, 8: mean 4, squares of deviations 9 + 4 + 0 + 1 + 16 = 30, s² = 7.5, s/√5 = √1.5. The
    # 97.5 % quantile is 2.776445 with 4 degrees of freedom and 2.131450 with 15.
    reference = {0: 1.0, 1: 0.0, 2: -1.0, 3: 2.0, 4: 10.0}
    values = {seed: reference[seed] + d for seed, d in enumerate([1, 2, 4, 5, 8])}
    estimate = paired_difference(values, reference)
    half = 2.776445 * np.sqrt(1.5)
    np.testing.assert_allclose([estimate.mean, estimate.low, estimate.high], [4, 4 - half, 4 + half], rtol=1e-6)
    # Eight times ±1: mean 0, s² = 16/15, standard error √(16/15/16).
    estimate = paired_difference({seed: (-1.0) ** seed for seed in range(16)}, dict.fromkeys(range(16), 0.0))
    half = 2.131450 / np.sqrt(15)
    np.testing.assert_allclose([estimate.mean, estimate.low, estimate.high], [0, -half, half], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("difference", [paired_difference, relative_difference])
def test_below_five_seeds_there_is_no_interval(difference: Callable):
    values, reference = {seed: 2.0 + seed for seed in range(5)}, dict.fromkeys(range(4), 1.0)
    four, five = difference(values, reference), difference(values, reference | {4: 1.0})
    assert (four.low, four.high, four.seeds, five.seeds) == (None, None, 4, 5)
    assert five.low < five.mean < five.high


def test_relative_differences_are_those_of_the_geometric_mean():
    # Ratios 1/2, 1, 2, 4, 8: their logarithms in base 2 are -1 to 3, with mean 1 and standard error √(2.5 / 5).
    values = {seed: 3.0 * 2.0**power for seed, power in enumerate([-1, 0, 1, 2, 3])}
    estimate = relative_difference(values, dict.fromkeys(range(5), 3.0))
    ends = 2.0 ** (1 + 2.776445 * np.sqrt(0.5) * np.array([-1, 1])) - 1
    np.testing.assert_allclose([estimate.mean, estimate.low, estimate.high], [1, *ends], rtol=1e-6)
    assert relative_difference({0: 0.0, 1: 1.0}, {0: 1.0, 1: 1.0}) is None  # log 0
    assert relative_difference({0: 1.0}, {1: 1.0}) is None


@pytest.mark.parametrize("seeds", [5, 8])
def test_intervals_cover_the_mean_of_normal_values_in_95_of_100_cases(seeds: int):
    cases = 3000
    covered = 0
    for values in np.random.default_rng(seeds).normal(0.3, 2.0, (cases, seeds)):
        estimate = paired_difference(dict(enumerate(values)), dict.fromkeys(range(seeds), 0.0))
        covered += estimate.low <= 0.3 <= estimate.high
    # Four standard deviations of a share of 3000; normal quantiles would cover 0.88 with 5 seeds, a bootstrap 0.84.
    assert abs(covered / cases - 0.95) < 4 * np.sqrt(0.95 * 0.05 / cases)


def write_run(folder: JobFolder, row: Row, seed: int, accuracies: list, losses: list, finished: bool = True) -> None:
    """A run with 10 steps an epoch; its train loss is a tenth of the minibatch loss plus 0.1."""
    run = folder.run(row, seed)
    gradients = 10 * row.gradient_evaluations(1, 1)
    for epoch, (accuracy, loss) in enumerate(zip(accuracies, losses, strict=True), start=1):
        run.append_metrics(
            run.identity
            | {"epoch": epoch, "steps": 10 * epoch, "gradient_evaluations": gradients * epoch}
            | {"minibatch_loss": loss, "train_loss": loss / 10 + 0.1}
            | {"validation_accuracy": accuracy, "flip_share": 0.01 * epoch}
        )
    if finished:
        run.write_result(
            run.identity
            | {"test_accuracy": accuracies[-1] - 0.01, "train_loss": losses[-1] / 10 + 0.1, "seconds": 2.0}
            | {"gradient_evaluations": gradients * len(losses), "bits_per_weight": 1.5}
        )


def write_job(path: Path, reestimate_batch_stats: int) -> Path:
    config = small_digits(output=path, epochs=4, reestimate_batch_stats=reestimate_batch_stats)
    folder = JobFolder(config, "digits")
    for seed, offset in [(0, 0.0), (1, 0.02)]:
        write_run(folder, LAQ, seed, [0.5, 0.8, 0.7, 0.9 + offset], [4, 3, 2, 1 + offset])
        write_run(folder, TWO_STAGE, seed, [0.6, 0.82, 0.8, 0.94 + offset], [3, 2.5, 1.5, 0.5 + offset])
    write_run(folder, TWO_STAGE, 2, [0.1, 0.2], [9, 9], finished=False)
    compressed = Row(**(vars(TWO_STAGE) | {"equal_gradients": True}))
    write_run(folder, compressed, 0, [0.7, 0.88], [2, 1.25])
    return folder.path


@pytest.fixture
def job(tmp_path: Path) -> Path:
    return write_job(tmp_path / "job", reestimate_batch_stats=0)


def test_tables_have_means_deviations_and_differences(job: Path):
    laq, method = report.equal_epochs(read_job(job))
    assert (laq["label"], laq["seeds"], laq["test_accuracy_to_laq"]) == ("LAQ, binary", 2, None)
    np.testing.assert_allclose(list(laq["test_accuracy"].values()), [90, np.sqrt(2)])
    np.testing.assert_allclose([method["test_accuracy"]["mean"], method["test_accuracy_to_laq"]["mean"]], [94, 4])
    ratio = np.sqrt(0.5 / 1 * 0.52 / 1.02)
    np.testing.assert_allclose(
        [method["minibatch_loss"]["mean"], method["minibatch_loss_to_laq"]["mean"]], [0.51, ratio - 1]
    )
    assert (laq["gradient_evaluations"], method["gradient_evaluations"], method["seeds"]) == (40, 80, 2)


def test_equal_gradients_cut_off_at_what_laq_took(job: Path):
    laq, method, compressed = report.equal_gradients(read_job(job))
    assert [record["gradient_evaluations"] for record in (laq, method, compressed)] == [40, 40, 40]
    # Two epochs with two gradients each: the best validation accuracy is 0.82, the loss 2.5. Seed 2 ends there, but it
    # is not finished, so it may still be on its way.
    assert method["seeds"] == 2
    np.testing.assert_allclose([method["validation_accuracy"]["mean"], method["minibatch_loss"]["mean"]], [82, 2.5])
    np.testing.assert_allclose(method["minibatch_loss_to_laq"]["mean"], np.sqrt(2.5 / 1 * 2.5 / 1.02) - 1)
    assert method["test_accuracy"] is None
    np.testing.assert_allclose(compressed["test_accuracy"]["mean"], 87)
    np.testing.assert_allclose(compressed["minibatch_loss_to_laq"]["mean"], 0.25)


def test_the_train_loss_is_shown_where_batch_statistics_were_estimated_anew(job: Path, tmp_path: Path):
    running, fresh = read_job(job), read_job(write_job(tmp_path / "fresh", reestimate_batch_stats=50))
    for table in (report.equal_epochs, report.equal_gradients):
        assert not any("train_loss" in record for record in table(running))
        assert all("train_loss" in record for record in table(fresh))
    method = report.equal_epochs(fresh)[1]
    np.testing.assert_allclose(method["train_loss"]["mean"], 0.151)
    np.testing.assert_allclose(method["train_loss_to_laq"]["mean"], np.sqrt(0.15 / 0.2 * 0.152 / 0.202) - 1)
    for path, shown in [(job, False), (tmp_path / "fresh", True)]:
        report.write_report([path], path, Console(quiet=True))
        assert ("| train loss" in re.sub(" +", " ", (path / "report.md").read_text())) == shown


def test_the_report_of_several_folders(job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    report.main([str(job), str(job), "--output", str(tmp_path / "out")])
    text = (tmp_path / "out" / "report.md").read_text()
    assert text.count("## digits: digits_cnn, width 0.25 on digits, 64 images, 4 epochs") == 2
    assert "| 94.00 ± 1.41 | +4.00 |" in re.sub(" +", " ", text)  # two seeds, no interval
    assert "paper %" not in text  # a column without values
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
