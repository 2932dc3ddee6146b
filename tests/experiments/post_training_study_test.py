"""The comparison of methods that quantize after training."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

import fobt
from experiments.core.evaluation import Evaluator
from experiments.core.losses import LOSSES
from experiments.data import load_dataset
from experiments.models.feed_forward import digits_cnn
from experiments.reporting.saved_run import read_run
from experiments.studies import post_training


def test_the_quick_form_leaves_table_records_and_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    options = ["--job", "digits", "--quick", "--bits", "2", "--max-evaluations", "4", "--calibration-images", "32"]
    post_training.main([*options, "--output", str(tmp_path)])
    content = json.loads((tmp_path / "post_training.json").read_text())
    methods = [(record["bits"], record["method"]) for record in content["table"]]
    assert methods == [
        (32, "full precision"),
        (2, "round to nearest, scale max|w|"),
        (2, "projection, curvature 1"),
        (2, "projection, curvature of the training"),
        (2, "LAPQ, phases 1 and 2"),
        (2, "LAPQ"),
    ]
    records = {record["method"]: record for record in content["records"]}
    norm_phases, joint = records["LAPQ, phases 1 and 2"], records["LAPQ"]
    assert joint["losses"][: norm_phases["evaluations"]] == pytest.approx(norm_phases["losses"])
    assert joint["evaluations"] == norm_phases["evaluations"] + 4
    for record in (norm_phases, joint):
        assert record["calibration_loss"] == pytest.approx(min(record["losses"]), rel=1e-5)
    table = (tmp_path / "post_training.md").read_text()
    assert table.split("\n\n")[0] in capsys.readouterr().out
    assert (tmp_path / "post_training.png").read_bytes().startswith(b"\x89PNG")

    # By hand, for two of the methods: the weights of the checkpoint, and the data of the training.
    config = post_training.PostTrainingConfig(job="digits", quick=True, output=tmp_path).training_config()
    dataset = load_dataset("digits", 512)
    run = tmp_path / "training" / "full_precision" / "seed-0"
    trained = read_run(run).arrays.state
    evaluator = Evaluator(digits_cnn(nnx.Rngs(0)), LOSSES[config.loss], dataset.prepare)
    result = json.loads((run / "result.json").read_text())
    full_precision = evaluator(trained.params, trained.batch_stats, dataset.train.first(10_000))
    assert full_precision.loss == pytest.approx(result["train_loss"], rel=1e-5)
    weights = fobt.quantized_params(trained.params, trained.optimizer, fobt.linear(2))
    expected = evaluator(weights, trained.batch_stats, dataset.test)
    got = records["projection, curvature of the training"]
    np.testing.assert_allclose([got["test_loss"], got["test_accuracy"]], [expected.loss, 100 * expected.accuracy], 1e-5)

    # A training whose checkpoints are gone, as those of the repository.
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(SystemExit, match="2"):
        post_training.main([*options, "--output", str(tmp_path)])
    assert (
        "seed-0 has no checkpoints; they are not kept under version control, so train again" in capsys.readouterr().err
    )
