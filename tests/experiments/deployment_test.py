"""The benchmark of exported files, on networks of a few units."""

import json

import numpy as np
import pytest

from experiments.deployment import deployment, networks
from experiments.deployment.runtimes import load, peak_memory


@pytest.fixture
def without_int4(monkeypatch: pytest.MonkeyPatch):
    """Without the peer that needs a package of its own."""
    forms = {
        runtime: {form: value for form, value in of_runtime.items() if form != "onnxruntime's int4"}
        for runtime, of_runtime in networks.FORMS.items()
    }
    monkeypatch.setattr(deployment, "FORMS", forms)


@pytest.mark.usefixtures("without_int4")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_table_of_a_small_network(tmp_path, monkeypatch: pytest.MonkeyPatch):
    memory = []
    monkeypatch.setattr(deployment, "peak_memory", lambda *arguments: memory.append(arguments) or 2**20)
    options = ["--networks", "mlp", "--width", "0.02", "--rounds", "1", "--runtimes", "onnx"]
    deployment.main([*options, "--output", str(tmp_path)])
    records = json.loads((tmp_path / "mlp-onnx.json").read_text())["files"]
    assert [(record["form"], record["batch"]) for record in records[::8]] == [("float32", 1), ("float32", 64)]
    assert len(records) == len(memory) == 2 * 8
    by_form = {record["form"]: record for record in records[:8]}
    assert by_form["float32"]["ratio"] == 1
    assert by_form["portable, binary"]["bytes"] < by_form["float32"]["bytes"] / 4
    for form, record in by_form.items():
        assert record["difference"] < (1e-5 if form in ("float32", "portable, binary") else 0.2)
        assert record["ratio"] == record["seconds"] / by_form["float32"]["seconds"]
    table = (tmp_path / "summary.md").read_text()
    assert "| mlp: fast, binary" in table
    assert "time, batch 64" in table


def test_differences_by_hand():
    expected = np.array([[3.0, 4.0], [0.0, 5.0]])
    got = np.array([[3.0, 2.0], [0.0, 5.0]])
    found = deployment._differences(got, expected)
    assert found == {"difference": pytest.approx(2 / np.sqrt(50 / 4)), "same": 0.5}


@pytest.mark.slow
def test_memory_is_that_of_the_file(tmp_path):
    network = networks.make_network("mlp", networks.FORMS["onnx"]["float32"][1], 0.5)
    inputs = np.zeros((1, *network.inputs), np.float32)
    content = networks.onnx_float32(network, inputs)
    found = peak_memory(content, "onnx", inputs, tmp_path)
    assert 0.9 * len(content) < found < 6 * len(content)
    assert load(content, "onnx", 1)(inputs).shape == (1, 10)
