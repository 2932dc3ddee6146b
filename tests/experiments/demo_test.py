"""The small files of the main job: those that are kept in the repository, and the command that writes them."""

import json
from pathlib import Path

import jax
import numpy as np
import onnxruntime
import pytest
from flax import nnx

import fobt
from experiments.core.network import split_model
from experiments.core.records import ROOT
from experiments.data import DATASETS
from experiments.deployment import demo
from experiments.deployment.read_packed import read_packed
from experiments.models.feed_forward import digits_cnn

KEPT = ROOT / "experiments" / "results" / "demo"
DIGITS = DATASETS["digits"]()


def kept_accuracy(runtime: str) -> float:
    records = json.loads((KEPT / "demo.json").read_text())["files"]
    (accuracy,) = [r["accuracy"] for r in records if r["label"] == "LAQ, binary" and runtime in r["runtime"]]
    return accuracy


def accuracy(scores) -> float:
    return 100 * float(np.mean(np.argmax(scores, axis=-1) == DIGITS.test.labels))


def images():
    return np.asarray(DIGITS.prepare(DIGITS.test.images))


def test_the_kept_packed_file_has_the_accuracy_of_the_table():
    content = fobt.packed.load_packed(KEPT / "laq-binary.safetensors")
    graph, _, _ = split_model(digits_cnn(nnx.Rngs(0), 1.0))
    model = nnx.merge(graph, content.weights(), content.batch_stats)
    assert accuracy(model(images(), training=False)) == pytest.approx(kept_accuracy("JAX"))
    assert fobt.packed.size_report(KEPT / "laq-binary.safetensors").quantized.bits_per_weight < 1.02


def test_the_kept_packed_file_reads_the_same_in_plain_python():
    content = fobt.packed.load_packed(KEPT / "laq-binary.safetensors")
    leaves = jax.tree_util.tree_leaves_with_path(content.weights())
    plain = read_packed(str(KEPT / "laq-binary.safetensors"))
    assert leaves
    for path, leaf in leaves:
        shape, values = plain["/".join(["params", *(str(step.key) for step in path)])]
        assert tuple(shape) == leaf.shape
        np.testing.assert_array_equal(np.array(values, np.float32).reshape(shape), leaf)


def test_the_kept_onnx_file_has_the_accuracy_of_the_table():
    session = onnxruntime.InferenceSession(KEPT / "laq-binary.onnx")
    (scores,) = session.run(None, {"input": images()})
    assert accuracy(scores) == pytest.approx(kept_accuracy("onnxruntime"))


def test_the_command_writes_every_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    demo.main(["--epochs", "1", "--runs", str(tmp_path / "runs"), "--output", str(tmp_path / "files")])
    records = json.loads((tmp_path / "files" / "demo.json").read_text())["files"]
    names = [f"{row}.{suffix}" for suffix in ("safetensors", "onnx") for row in ("full_precision", "laq-binary")]
    assert [record["bytes"] for record in records] == [(tmp_path / "files" / name).stat().st_size for name in names]
    assert all(record["same"] == "500 of 500" for record in records)
    assert (tmp_path / "files" / "demo.md").read_text() in capsys.readouterr().out
    # Another grid: full precision is not trained again, and gives the same file.
    more = ["--epochs", "1", "--runs", str(tmp_path / "runs"), "--output", str(tmp_path / "more")]
    demo.main([*more, "--grids", "linear4", "--formats", "onnx"])
    again, linear4 = json.loads((tmp_path / "more" / "demo.json").read_text())["files"]
    assert again["bytes"] == records[2]["bytes"]
    assert linear4["label"] == "LAQ, linear 4 bits"
    assert 1 < linear4["bytes"] / records[3]["bytes"] < 4
