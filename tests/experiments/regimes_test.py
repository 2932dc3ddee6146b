"""The comparison over regimes."""

import json
import math
import re
from pathlib import Path

import pytest

from experiments.studies import regimes


def test_a_regime_is_compared_with_its_controls(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    options = ["--regimes", "learning rate × 3", "--epochs", "2", "--seeds", "0", "1", "--limit", "70"]
    regimes.main([*options, "--output", str(tmp_path)])
    (record,) = json.loads((tmp_path / "regimes.json").read_text())["regimes"]

    folder = tmp_path / "learning_rate_times_3"
    assert json.loads((folder / "job.json").read_text())["learning_rate"] == 0.03
    results = [json.loads(path.read_text()) for path in folder.glob("*/seed-*/result.json")]
    last = [json.loads(path.read_text().splitlines()[-1]) for path in folder.glob("*/seed-*/metrics.jsonl")]
    losses = {(record["row"], record["seed"]): record["minibatch_loss"] for record in last}
    method = "forward_backtrack-binary-a0.6-every_1_steps"
    for key, first, second in [
        ("method_to_two_steps", method, "two_steps-binary"),
        ("half_to_laq", f"{method}-equal_gradients", "laq-binary"),
    ]:
        ratios = [losses[first, seed] / losses[second, seed] for seed in (0, 1)]
        assert record[key]["mean"] == pytest.approx(math.sqrt(ratios[0] * ratios[1]) - 1)
    evaluations = {result["row"]: result["gradient_evaluations"] for result in results}
    assert evaluations[method] == evaluations["two_steps-binary"] == 2 * evaluations["laq-binary"]
    assert evaluations[f"{method}-equal_gradients"] == evaluations["laq-binary"]
    assert capsys.readouterr().out.strip().endswith((tmp_path / "regimes.md").read_text().split("\n\n")[0])
    assert (tmp_path / "regimes.png").read_bytes().startswith(b"\x89PNG")


def test_a_regime_that_the_job_does_not_offer_is_named(tmp_path: Path):
    message = re.escape("learning rate ÷ 10, learning rate × 3")
    with pytest.raises(ValueError, match=rf"--regimes must be among .*{message}.* for digits, got paper's schedule"):
        regimes.RegimesConfig(regimes=("paper's schedule",), output=tmp_path)
