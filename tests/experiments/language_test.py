"""The job of the language model, its export and its fine-tuning, with a tiny decoder on a tiny text."""

import importlib.util
import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest

import fobt
from experiments.__main__ import main
from experiments.data.text import Text, even_windows
from experiments.deployment import language as deployment
from experiments.models import decoder
from experiments.studies import fine_tuning
from experiments.studies.language import command, training

LINE = b"She sells sea shells by the sea shore; the shells she sells are sea shells, I am sure. "
PARTS = {"train": 6 * LINE, "validation": LINE, "test": LINE[20:]}
ROWS = ("full precision", "LAQ, binary")
OPTIONS = ["--width", "32", "--depth", "2", "--context", "16", "--batch-size", "2", "--steps", "6"]
OPTIONS += ["--seeds", "0", "--evaluation-windows", "3"]


@pytest.fixture(scope="module")
def tiny_text():
    """A text of some lines in the place of the large one."""
    texts = {
        "state_of_the_union": lambda: Text(*(np.frombuffer(part, np.uint8) for part in PARTS.values())),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "TEXTS", texts)
        patch.setattr(deployment, "TEXTS", texts)
        yield texts["state_of_the_union"]()


@pytest.fixture(scope="module")
def job(tiny_text, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a job with two rows."""
    folder = tmp_path_factory.mktemp("language")
    main(["language", *OPTIONS, "--rows", *ROWS, "--output", str(folder)])
    return folder


def test_rows_have_the_bits_of_their_files(job: Path, tiny_text):
    results = json.loads((job / "language.json").read_text())
    assert [row["label"] for row in results["table"]] == list(ROWS)
    assert [row["gradients"] for row in results["table"]] == [6, 6]
    windows = even_windows(tiny_text.test, 17, 3)
    for label in ROWS:
        record, folder = results["records"][label]["0"], command.folder_of(job, command.ROWS[label], 0)
        weights = fobt.dequantize(training.read_weights(folder))
        logits = np.asarray(decoder.logits(weights, windows[:, :-1]), np.float64)
        odds = np.take_along_axis(logits, windows[:, 1:, None], -1)[..., 0] - np.log(np.exp(logits).sum(-1))
        assert record["test_bits"] == pytest.approx(-odds.mean() / math.log(2), rel=1e-4)
        assert record["bytes"] == (folder / training.WEIGHTS).stat().st_size
        assert len(np.unique(np.abs(weights["layers"]["up"]["kernel"][1]))) == 1 or label == "full precision"
    full, binary = results["table"]
    assert full["bytes"] > 2 * binary["bytes"]
    difference = binary["test_bits"]["mean"] - full["test_bits"]["mean"]
    assert binary["to_full_precision"]["mean"] == pytest.approx(difference)


@pytest.mark.parametrize(("label", "steps"), [("LAQ, binary", 6), ("forward-backtrack, binary, a = 0.6", 3)])
def test_rows_take_equally_many_gradients(label: str, steps: int, tiny_text):
    config = command.LanguageConfig(steps=6, output=Path("unused"))
    trainer = training.Trainer(command.ROWS[label], 0.1, config.size, tiny_text)
    assert trainer.steps == steps


def test_table_and_samples_are_written(job: Path):
    text = (job / "language.md").read_text()
    assert all(f"| {label} " in text and f"### {label}\n" in text for label in ROWS)
    samples = json.loads((job / "language.json").read_text())["samples"]
    assert all(sample.startswith("The Congress of the United States ") for sample in samples.values())


def test_finished_trainings_are_kept_and_other_settings_refused(
    job: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    before = (job / "language.md").read_text()
    monkeypatch.setattr(training, "fit", None)
    main(["language", *OPTIONS, "--rows", *ROWS, "--output", str(job)])
    assert (job / "language.md").read_text() == before
    with pytest.raises(SystemExit, match="2"):
        main(["language", *OPTIONS, "--depth", "3", "--output", str(job)])
    assert "holds trainings with depth = 2, not 3: choose another --output" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["language", *OPTIONS, "--context", "80", "--output", str(job / "new")])
    assert "--context must be below 67" in capsys.readouterr().err


@pytest.mark.parametrize(
    "format_",
    [
        "onnx",
        pytest.param(
            "litert",
            marks=pytest.mark.skipif(
                importlib.util.find_spec("litert_converter") is None, reason="needs litert-converter"
            ),
        ),
    ],
)
def test_files_predict_as_jax_does_at_once_and_with_a_cache(format_: str, job: Path, tmp_path: Path):
    run = command.folder_of(job, command.ROWS["LAQ, binary"], 0)
    main(["language_export", str(run), "--format", format_, "--windows", "3", "--output", str(tmp_path)])
    suffix = deployment.SUFFIXES[format_]
    report = json.loads((tmp_path / f"decoder{suffix}.json").read_text())
    assert report["same_predictions"] == report["predictions"] == 3 * 16
    assert report["largest_logit_difference"] < 1e-4
    assert report["largest_difference_of_steps"] < 1e-4
    result = json.loads((run / "result.json").read_text())
    assert report["bits_per_byte"] == pytest.approx(result["test_bits"], rel=1e-4)
    # What JAX draws, to the last byte: the logits differ by rounding alone.
    assert report["text"] == json.loads((job / "language.json").read_text())["samples"]["LAQ, binary"]
    # The embedding in float32 is most of it.
    assert all(size < 0.75 * report["float32_bytes"] for size in report["files"].values())


def test_onnx_takes_windows_of_any_number_and_length(job: Path, tmp_path: Path):
    quantized = training.read_weights(command.folder_of(job, command.ROWS["LAQ, binary"], 0))
    windows = np.random.default_rng(0).integers(0, 256, (3, 17)).astype(np.int32)
    deployment.export(quantized, "onnx", windows, tmp_path)
    run = deployment.load_onnx(tmp_path / "decoder.onnx")
    longer = np.random.default_rng(1).integers(0, 256, (2, 30)).astype(np.int32)
    expected = decoder.logits(fobt.dequantize(quantized), longer)
    np.testing.assert_allclose(run(longer)[0], expected, rtol=1e-4, atol=1e-4)


def test_a_folder_without_a_training_is_named(job: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="2"):
        main(["language_export", str(job / "laq-binary" / "seed-7")])
    (line,) = capsys.readouterr().err.splitlines()
    assert "seed-7 is no finished training of a language model" in line


@pytest.mark.usefixtures("random_datasets")
def test_fine_tuning_has_all_stages(job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    options = ["--seeds", "0", "--epochs", "1", "--limit", "200", "--vision-steps", "3", "--text-steps", "3"]
    options += ["--max-evaluations", "1", "--calibration-images", "20", "--calibration-windows", "2"]
    options += ["--decoder", str(job), "--output", str(tmp_path)]
    monkeypatch.setattr(fine_tuning, "GRIDS", {key: fine_tuning.GRIDS[key] for key in ("float32", "binary")})
    main(["fine_tuning", *options])
    results = json.loads((tmp_path / "fine_tuning.json").read_text())["records"]
    assert [(record["network"].split(":")[0], record["grid"]) for record in results] == [
        ("MLP", "float32"),
        ("MLP", "binary"),
        ("decoder", "float32"),
        ("decoder", "binary"),
    ]
    # By hand, for the decoder: it starts from the file, and an unweighted projection has mean magnitudes as scales.
    folder = command.folder_of(job, command.ROWS["full precision"], 0)
    params = fobt.packed.load_packed(folder / training.WEIGHTS).quantized()
    kept, binary = results[2:]
    assert (
        kept["float32"]
        == kept["unweighted_projection"]
        == pytest.approx(json.loads((folder / "result.json").read_text())["test_bits"])
    )

    def project(path, leaf):
        if path[-1].key != "kernel":
            return leaf
        return np.where(leaf < 0, -1, 1) * np.abs(leaf).mean(axis=-2, keepdims=True)

    windows = even_windows(np.frombuffer(PARTS["test"], np.uint8), 17, 3)
    expected = training.bits_per_byte(jax.tree_util.tree_map_with_path(project, params), windows)
    assert binary["unweighted_projection"] == pytest.approx(expected, rel=1e-4)
    assert binary["calibrated_projection"] != pytest.approx(expected, rel=1e-4)
    stages = [key for key in fine_tuning.COLUMNS if isinstance(binary.get(key), float)]
    assert len({binary[key] for key in stages}) == len(stages) == 6
    monkeypatch.setattr(fine_tuning, "fine_tune", None)
    before = (tmp_path / "fine_tuning.md").read_text()
    main(["fine_tuning", *options])
    assert (tmp_path / "fine_tuning.md").read_text() == before
