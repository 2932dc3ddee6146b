"""Whole jobs through the command line: every job in its quick form, and what a mistake gives."""

import json
import re
from pathlib import Path

import jax
import pytest

from experiments import train
from experiments.configs import JOBS


@pytest.mark.usefixtures("random_datasets")
@pytest.mark.parametrize(
    ("argv", "labels"),
    [
        (
            "digits",
            [
                "full precision",
                "LAQ, binary",
                "two LAQ steps, binary",
                "forward-backtrack, binary, a = 0.6, every step",
            ],
        ),
        ("digits --methods laq --quantizer logarithmic --bits 3 --tensorboard", ["LAQ, logarithmic 3 bits"]),
        ("mnist_lenet5 --methods forward_backtrack", ["forward-backtrack, binary, a = 0.6, every 2 epochs"]),
        ("mnist_mlp --methods full_precision", ["full precision"]),
        ("digits_mlp --methods parq", ["PARQ, binary"]),
        ("mnist_plain_mlp --methods quest", ["QuEST, binary"]),
        ("mnist_small_mlp --methods sam", ["LAQ with SAM, binary, ρ = 0.05"]),
        ("cifar10_vgg --methods laq --batch-size 20", ["LAQ, binary"]),
        ("cifar10_vgg_augmented --methods full_precision --batch-size 20", ["full precision"]),
        ("svhn --methods bwn --batch-size 20", ["BWN"]),
        ("imagenet_resnet18 --methods full_precision --batch-size 20", ["full precision"]),
    ],
)
def test_the_quick_form_of_every_job_runs_and_leaves_its_folder(
    argv: str, labels: list, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "results"
    train.main([*argv.split(), "--quick", "--output", str(folder)])

    files = {path.name for path in folder.iterdir() if path.is_file()}
    assert files == {"job.json", "report.json", "report.md", "report.png"}
    assert (folder / "report.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((folder / "job.json").read_text())["job"] == argv.split()[0]
    runs = [path.parent for path in folder.glob("*/seed-0/result.json")]
    results = {run: json.loads((run / "result.json").read_text()) for run in runs}
    assert sorted(result["label"] for result in results.values()) == sorted(labels)
    for run, result in results.items():
        metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert [line["epoch"] for line in metrics] == [1, 2]
        assert all((line["flip_share"] is None) == (result["label"] == "full precision") for line in metrics)
        steps = metrics[-1]["steps"]
        gradients = {"every 2 epochs": 1.5, "every step": 2, "SAM": 2, "two LAQ": 2}
        factor = next((n for part, n in gradients.items() if part in result["label"]), 1)
        assert result["gradient_evaluations"] == factor * steps
        assert 0 <= result["test_accuracy"] <= 1
        assert json.loads((run / "config.json").read_text())["environment"]["versions"]["jax"] == jax.__version__
        assert bool(list(run.glob("tensorboard/events*"))) == ("--tensorboard" in argv)
    report = (folder / "report.md").read_text()
    assert report.strip() in capsys.readouterr().out
    assert all(f"| {label} " in report for label in labels)


def test_every_job_is_run_in_its_quick_form():
    parametrize = test_the_quick_form_of_every_job_runs_and_leaves_its_folder.pytestmark
    (parametrize,) = [mark for mark in parametrize if mark.name == "parametrize"]
    assert {argv.split()[0] for argv, _ in parametrize.args[1]} == set(JOBS)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("digit", "unknown job 'digit': choose one of digits, digits_mlp, mnist_lenet5, mnist_mlp"),
        ("--bitz 3", "--bitz"),
        ("--bits two", "--bits"),
        ("--bits 9", "bits must be .*2 to 8, got 9"),
        ("--bits 2 --quantizer binary", "--bits must be 1 for binary weights, got 2"),
        ("--quantizer linear", "--bits must be given for linear weights"),
        ("--solver exact", "--solver must be left out for binary weights, got exact"),
        ("--bits 3 --scales 2", "--scales must be left out unless weights are ternary, got 2"),
        ("--methods dorefa --bits 5", "--bits must be 1 to 4 for dorefa, got 5"),
        ("--methods lsq --bits 1", "--bits must be 2 to 4 for lsq, got 1"),
        ("--methods laq momentum", "momentum"),
        ("--methods laq laq", "--methods must be one or more different values"),
        ("--a 0", r"--a must be in \(0, 1\], got 0"),
        ("--b1 1", r"--b1 must be in \[0, 1\), got 1"),
        ("--every 0", "--every must be at least 1, got 0"),
        ("--every-unit batches", "batches"),
        ("--epochs 0", "--epochs must be at least 1, got 0"),
        ("--epochs 1 --budget gradients", "--epochs must be at least 2 with --budget gradients, got 1"),
        ("--epochs", "--epochs"),
        ("--batch-size 5000", "--batch-size must be at most 1000, the training images, got 5000"),
        ("--seeds -1", "--seeds must be at least 0, got -1"),
        ("--learning-rate nan", "--learning-rate must be positive and finite, got nan"),
        ("--rho 0", "--rho must be positive and finite, got 0"),
        ("--width -1", "--width must be positive and finite, got -1"),
        ("--weight-bounds 1 -1", "--weight-bounds must be two increasing numbers"),
        ("--checkpoint-seconds -1", "--checkpoint-seconds must be at least 0, got -1"),
        ("--schedule paper", "--schedule must be one of cosine, got paper"),
        ("--output a_file", "cannot write results to a_file"),
        ("--output a_file/below", "cannot write results to a_file"),
        ("--output full_folder", "cannot write results to full_folder: it is not empty, and not of an earlier call"),
        ("--output earlier", "earlier holds runs with epochs = 3, not 20: choose another --output"),
    ],
)
def test_a_mistake_gives_one_line_and_code_two(
    argv: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    Path("a_file").write_text("kept")
    for folder, content in [("full_folder/config.json", "kept"), ("earlier/job.json", earlier())]:
        Path(folder).parent.mkdir()
        Path(folder).write_text(content)
    with pytest.raises(SystemExit, match="2"):
        train.main(argv.split())
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("python -m experiments.train: ")
    assert re.search(message, error)
    assert Path("a_file").read_text() == Path("full_folder", "config.json").read_text() == "kept"
    assert Path("earlier", "job.json").read_text() == earlier()


def earlier() -> str:
    return json.dumps({**JOBS["digits"].shared(), "epochs": 3, "data_name": "digits"})


def test_help_lists_the_jobs(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="0"):
        train.main(["--help"])
    printed = capsys.readouterr().out
    assert all(job in printed for job in JOBS)
