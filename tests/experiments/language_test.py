"""The job of the language model, its export and its fine-tuning, with a tiny decoder on a tiny text."""

import dataclasses
import importlib.util
import json
import math
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from rich.console import Console
from safetensors.numpy import load_file

import fobt
from experiments.__main__ import main
from experiments.core.checkpoints import Checkpoints
from experiments.core.evaluation import Evaluator
from experiments.core.losses import LOSSES
from experiments.data import load_dataset
from experiments.data.text import Text, even_windows
from experiments.deployment import language as deployment
from experiments.models import decoder
from experiments.reporting.saved_run import read_run
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


def test_stored_weights_are_the_loss_aware_projection(job: Path):
    """α = Σ √v |w| / Σ √v of each layer, with latents w and second moments v of the last checkpoint."""
    folder = command.folder_of(job, command.ROWS["LAQ, binary"], 0)
    weights = training.read_weights(folder)
    like = jax.tree.map(np.asarray, fobt.dequantize(weights))
    state = optax.adam(lambda count: 0.1).init(like)
    with Checkpoints(folder / "checkpoints", 60) as checkpoints:
        _, (params, (adam, _), _) = checkpoints.restore((like, state, np.zeros(6, np.float32)))
    for name in decoder.LINEAR_MAPS:
        w, v = (np.asarray(tree["layers"][name]["kernel"], np.float64) for tree in (params, adam.nu))
        expected = np.sum(np.sqrt(v) * np.abs(w), axis=(1, 2)) / np.sum(np.sqrt(v), axis=(1, 2))
        np.testing.assert_allclose(weights["layers"][name]["kernel"].scale.ravel(), expected, rtol=1e-3)


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


NO_LITERT = importlib.util.find_spec("litert_converter") is None


@pytest.mark.parametrize(
    "format_", ["onnx", pytest.param("litert", marks=pytest.mark.skipif(NO_LITERT, reason="needs litert-converter"))]
)
def test_files_predict_as_jax_does_at_once_and_with_a_cache(format_: str, job: Path, tmp_path: Path):
    options = ["--formats", format_, "--rows", "laq-binary", "--windows", "3", "--output", str(tmp_path)]
    main(["language_export", str(job), *options])
    ((record,),) = (json.loads((tmp_path / "files.json").read_text())["files"],)
    assert record["same_predictions"] == record["predictions"] == 3 * 16
    assert record["largest_difference"] < 1e-4
    assert record["largest_difference_of_steps"] < 1e-4
    results = json.loads((job / "language.json").read_text())
    assert record["bits_per_byte"] == pytest.approx(results["records"]["LAQ, binary"]["0"]["test_bits"], rel=1e-4)
    # What JAX draws, to the last byte: the logits differ by rounding alone.
    assert record["text"] == results["samples"]["LAQ, binary"]
    for name, key in (("laq-binary", "bytes"), ("laq-binary_step", "step_bytes")):
        path = tmp_path / f"{name}{deployment.SUFFIXES[format_]}"
        assert record[key] == path.stat().st_size
    assert record["share"] < 0.75  # the embedding in float32 is most of it
    assert (tmp_path / "files.md").read_text().startswith("| row ")


def test_onnx_takes_windows_of_any_number_and_length(job: Path, tmp_path: Path):
    quantized = training.read_weights(command.folder_of(job, command.ROWS["LAQ, binary"], 0))
    windows = np.random.default_rng(0).integers(0, 256, (3, 17)).astype(np.int32)
    deployment.export(quantized, "onnx", windows, tmp_path / "decoder")
    run = deployment.load_onnx(tmp_path / "decoder.onnx")
    longer = np.random.default_rng(1).integers(0, 256, (2, 30)).astype(np.int32)
    expected = decoder.logits(fobt.dequantize(quantized), longer)
    np.testing.assert_allclose(run(longer)[0], expected, rtol=1e-4, atol=1e-4)


def test_a_folder_without_a_training_is_named(job: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="2"):
        main(["language_export", str(job), "--seed", "7", "--output", str(job / "files")])
    (line,) = capsys.readouterr().err.splitlines()
    assert "full_precision/seed-7 is no finished training of a language model" in line


@pytest.mark.usefixtures("random_datasets")
def test_fine_tuning_has_all_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    options = ["--seeds", "0", "--epochs", "1", "--limit", "200", "--width", "0.05", "--vision-steps", "3"]
    options += ["--max-evaluations", "1", "--calibration-images", "20", "--output", str(tmp_path)]
    monkeypatch.setattr(fine_tuning, "GRIDS", {"binary": fine_tuning.GRIDS["binary"]})
    monkeypatch.setattr(fine_tuning, "NETWORKS", (fine_tuning.vision_network,))
    monkeypatch.setattr(fine_tuning, "Evaluator", LossEvaluator)
    main(["fine_tuning", *options])
    (record,) = json.loads((tmp_path / "fine_tuning.json").read_text())["records"]
    stages = [key for key in fine_tuning.COLUMNS if isinstance(record.get(key), float)]
    assert len({record[key] for key in stages}) == len(stages) == 6

    # By hand: the weights of the checkpoint, with mean magnitudes of each output as scales.
    run = read_run(tmp_path / "mlp" / "full_precision" / "seed-0")
    params = run.arrays.state.params

    def project(leaf):
        return leaf if leaf.ndim < 2 else np.where(leaf < 0, -1, 1) * np.abs(leaf).mean(axis=0, keepdims=True)

    dataset = load_dataset("mnist", 200)
    evaluator = LossEvaluator(run.model, LOSSES["cross_entropy"], dataset.prepare)
    for key, weights in {"float32": params, "unweighted_projection": jax.tree.map(project, params)}.items():
        expected = 100 * evaluator(weights, run.arrays.state.batch_stats, dataset.test).accuracy
        assert record[key] == pytest.approx(expected, rel=1e-4)

    monkeypatch.setattr(fine_tuning, "fine_tune", None)
    before = (tmp_path / "fine_tuning.md").read_text()
    main(["fine_tuning", *options])
    assert (tmp_path / "fine_tuning.md").read_text() == before


class LossEvaluator(Evaluator):
    """Losses in the place of accuracies, which are the same for many weights."""

    def __call__(self, *arguments):
        evaluation = super().__call__(*arguments)
        return dataclasses.replace(evaluation, accuracy=evaluation.loss)


def test_the_decoder_is_that_of_the_file(job: Path, tiny_text, tmp_path: Path):
    config = fine_tuning.FineTuningConfig(decoder=job, seeds=(0,), calibration_windows=2, output=tmp_path)
    trained = fine_tuning.text_network(config, 0, Console(quiet=True))
    folder = command.folder_of(job, command.ROWS["full precision"], 0)
    stored = load_file(folder / training.WEIGHTS)
    leaves = jax.tree.leaves(trained.params)
    assert sorted(leaf.tobytes() for leaf in map(np.asarray, leaves)) == sorted(
        leaf.tobytes() for leaf in stored.values()
    )
    assert trained.measure(trained.params) == json.loads((folder / "result.json").read_text())["test_bits"]
    (windows,) = next(trained.batches())
    assert windows.shape == (2, 17)
    assert bytes(windows[0].astype(np.uint8)) in PARTS["train"]


def test_float32_weights_train_on_in_float32(tmp_path: Path):
    target = jax.numpy.array([1000.0, -2000.0])
    trained = fine_tuning.Trained(
        name="two numbers",
        folder=tmp_path,
        params={"kernel": jax.numpy.zeros(2)},
        loss_fn=lambda weights, x: jax.numpy.sum((weights["kernel"] - x) ** 2),
        measure=lambda weights: float(np.abs(weights["kernel"] - target).max()),
        batches=lambda: iter([(target,)] * 4),
        calibration=(target,),
        select=lambda quantizer: quantizer,
        steps=4,
        learning_rate=0.5,
        b2=0.999,
    )
    result = fine_tuning.fine_tune(fine_tuning.FineTuningConfig(output=tmp_path), trained, None, tmp_path)
    assert result.keys() == {"float32", "unweighted_projection", "unweighted_trained"}
    assert result["float32"] == result["unweighted_projection"] == 2000
    # The gradient hardly changes, so Adam's steps are the learning rate, 0.5 · (1 + cos(π t/4)) / 2.
    rates = 0.25 * (1 + np.cos(np.pi * np.arange(4) / 4))
    assert result["unweighted_trained"] == pytest.approx(2000 - rates.sum(), abs=0.01)
