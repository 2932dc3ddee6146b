"""The command line of the export, on a run of a few seconds, and the recovery of codes from weights."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
from rich.console import Console
from training_cases import small_digits

import fobt
from experiments import train
from experiments.data import load_dataset
from experiments.deployment import export
from experiments.deployment.trained import quantizer_of, read_trained, recover
from experiments.methods.rows import Row


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = small_digits(methods=("laq", "dorefa"), bits=2, quantizer="ternary", output=tmp_path_factory.mktemp("job"))
    return train.run_job(config, Console(quiet=True)).path


@pytest.fixture(scope="module")
def run(job: Path) -> Path:
    return job / "laq-ternary" / "seed-0"


@pytest.mark.parametrize("options", [[], ["--base3"]])
def test_an_onnx_file_has_the_predictions_of_jax(
    run: Path, tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "small.onnx"
    export.main([str(run), "--verify", "--output", str(path), *options])
    report = json.loads((tmp_path / "small.onnx.json").read_text())
    result = json.loads((run / "result.json").read_text())
    assert report["same_predictions"] == report["test_images"] == 64
    assert report["accuracy"] == report["jax_accuracy"] == report["training_accuracy"] == result["test_accuracy"]
    assert report["largest_score_difference"] < 1e-4
    assert report["bytes"] == path.stat().st_size
    assert report["float32_bytes"] == 4 * report["weights"]
    printed = capsys.readouterr().out
    assert f"{report['bytes']:,} bytes" in printed
    assert "same predictions as JAX: 64 of 64 test images" in printed
    # By hand: accuracy over the test set.
    dataset = load_dataset("digits", 64)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (scores,) = session.run(None, {"input": np.asarray(dataset.prepare(dataset.test.images))})
    assert np.mean(scores.argmax(-1) == dataset.test.labels) == pytest.approx(report["accuracy"], abs=0.05)


@pytest.mark.parametrize("options", [[], ["--batch", "3"], ["--format", "litert"]])
def test_a_fast_file_agrees_with_jax(run: Path, tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture[str]):
    if "litert" in options:
        pytest.importorskip("litert_converter")
    path = tmp_path / "small"
    export.main([str(run), "--verify", "--form", "fast", "--output", str(path), *options])
    report = json.loads((tmp_path / "small.json").read_text())
    assert report["test_images"] == 64
    assert report["same_predictions"] >= 62
    assert "because" in capsys.readouterr().out


@pytest.mark.parametrize("options", [[], ["--format", "litert"]])
def test_a_file_of_integers_only_agrees_with_jax(
    run: Path, tmp_path: Path, options: list[str], capsys: pytest.CaptureFixture[str]
):
    if "litert" in options:
        pytest.importorskip("litert_converter")
    export.main([str(run), "--verify", "--form", "integers", "--output", str(tmp_path / "small"), *options])
    report = json.loads((tmp_path / "small.json").read_text())
    assert report["same_predictions"] >= 62
    assert abs(report["accuracy"] - report["training_accuracy"]) < 0.1
    printed = capsys.readouterr().out
    assert "in codes" in printed
    assert "float32" not in printed.partition("because")[2].partition(str(tmp_path))[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--form", "fast", "--base3"], "--base3 must be left out for litert and the fast form"),
        (["--form", "fast", "--format", "safetensors"], "--form must be portable for safetensors"),
        (["--batch", "0"], "--batch must be at least 1, and only for onnx, got 0"),
        (["--batch", "2", "--format", "litert"], "--batch must be at least 1, and only for onnx, got 2"),
    ],
)
def test_options_of_the_form_are_checked(options: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="2"):
        export.main(["FOLDER", *options])
    assert message in capsys.readouterr().err


def test_the_file_is_as_small_as_promised(run: Path, tmp_path: Path):
    trained = read_trained(run)
    weights = sum(
        leaf.codes.size for leaf in jax.tree.leaves(trained.quantized, is_leaf=is_quantized) if is_quantized(leaf)
    )
    channels = sum(leaf.size for leaf in jax.tree.leaves(trained.batch_stats)) // 2
    for base3, bits in ((False, 2), (True, 1.6)):
        export.main([str(run), "--output", str(tmp_path / "small.onnx"), *(["--base3"] if base3 else [])])
        ideal = bits * weights / 8 + 2 * 4 * channels  # a scale and a bias for each channel
        assert (tmp_path / "small.onnx").stat().st_size < 1.05 * ideal + 3000


def is_quantized(leaf: object) -> bool:
    return isinstance(leaf, fobt.Quantized)


def test_a_packed_file_has_the_predictions_of_jax(run: Path, tmp_path: Path):
    path = tmp_path / "small.safetensors"
    export.main([str(run), "--format", "safetensors", "--verify", "--output", str(path)])
    report = json.loads((tmp_path / "small.safetensors.json").read_text())
    assert report["same_predictions"] == report["test_images"] == 64
    assert report["largest_score_difference"] == 0


def test_a_litert_file_has_the_predictions_of_jax(run: Path, tmp_path: Path):
    pytest.importorskip("litert_converter", reason="needs pip install --no-deps litert-converter")
    path = tmp_path / "small.tflite"
    export.main([str(run), "--format", "litert", "--verify", "--output", str(path)])
    report = json.loads((tmp_path / "small.tflite.json").read_text())
    assert report["same_predictions"] == report["test_images"] == 64
    assert report["largest_score_difference"] < 1e-4
    assert report["bytes"] == path.stat().st_size < 10_000


def test_mistakes_give_one_line_and_code_2(job: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    for name in ("config.json", "result.json"):
        (unfinished / name).write_text((run / name).read_text())
    older = tmp_path / "older"
    older.mkdir()
    settings = json.loads((run / "config.json").read_text())
    del settings["config"]["b1"]
    (older / "config.json").write_text(json.dumps(settings))
    (older / "result.json").write_text((run / "result.json").read_text())
    cases = {
        (str(older),): "older was made by an older version: its config.json lacks b1",
        (str(run), "--format", "litert", "--base3"): "--base3 must be left out for litert and the fast form",
        (str(tmp_path / "nowhere"),): r"nowhere is no folder of a finished run: it has no config.json",
        (str(job),): "is no folder of a finished run",
        (str(unfinished),): "has no checkpoints; they are not kept under version control, so train again",
        (str(job / "dorefa-2_bits" / "seed-0"),): "weights of DoReFa, 2 bits are on no grid of fobt",
        (str(run), "--format", "zip"): "invalid choice 'zip' for argument '--format'",
        (str(run), "--output", str(tmp_path / "missing" / "file.onnx")): "cannot write",
        (): "folder",
    }
    for arguments, message in cases.items():
        with pytest.raises(SystemExit) as exit_:
            export.main(list(arguments))
        assert exit_.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("python -m experiments export: ")
        assert message.lower() in line.lower()


@pytest.mark.parametrize(
    "quantizer",
    [
        fobt.binary(),
        fobt.ternary(),
        fobt.ternary(scale_per_sign=True),
        fobt.linear(3),
        fobt.linear(8),
        fobt.logarithmic(3),
    ],
)
def test_codes_and_scale_are_recovered(quantizer: fobt.Quantizer):
    weights = np.random.default_rng(0).normal(size=(40, 30)).astype(np.float32)
    quantized = jax.jit(quantizer)(weights)
    recovered = recover(quantized.dequantize(), quantizer)
    np.testing.assert_array_equal(recovered.codes, quantized.codes)
    np.testing.assert_allclose(recovered.scale, quantized.scale, rtol=3e-7)
    exact = quantizer.grid.max_code == 1
    np.testing.assert_allclose(recovered.dequantize(), quantized.dequantize(), rtol=0 if exact else 3e-7)


def test_weights_without_the_largest_code_or_any_are_recovered():
    for codes in ([[1, -2, 0, 2]], [[0, 0, 0, 0]], [[3, 0, 0, -3]], [[-1, 0, 0, 1]]):
        weights = jnp.asarray(codes, jnp.float32) * 0.1
        np.testing.assert_allclose(recover(weights, fobt.linear(3)).dequantize(), weights, rtol=3e-7)
    np.testing.assert_array_equal(recover(jnp.zeros((2, 2)), fobt.binary()).dequantize(), np.zeros((2, 2)))
    with pytest.raises(ValueError, match="weights must be on the grid"):
        recover(jnp.array([[0.1, 0.25, 0.3]]), fobt.linear(3))
    with pytest.raises(ValueError, match="one positive and one negative value"):
        recover(jnp.array([[0.1, 0.2]]), fobt.ternary(scale_per_sign=True))


def test_methods_have_the_quantizer_of_their_weights():
    rows = {"full_precision": None, "bwn": fobt.binary(), "binary_connect": fobt.binary(), "twn": fobt.ternary()}
    for method, quantizer in rows.items():
        assert quantizer_of(Row(method=method)) == quantizer
    assert quantizer_of(Row(method="dorefa", bits=1)) == fobt.binary()
    assert quantizer_of(Row(method="laq", grid="linear4")) == fobt.linear(4)
