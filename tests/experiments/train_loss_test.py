"""The train loss of a network whose weights stand still."""

import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from training_cases import small_digits

from experiments import train
from experiments.configs import JOBS


def train_losses(output: Path, method: str, batches: int) -> np.ndarray:
    """Train loss after each of three epochs at a learning rate of next to 0: only the running averages move."""
    options = {"methods": (method,), "epochs": 3, "learning_rate": 1e-30, "reestimate_batch_stats": batches}
    train.run_job(small_digits(**options, output=output), Console(quiet=True))
    (metrics,) = output.glob("*/seed-0/metrics.jsonl")
    (result,) = output.glob("*/seed-0/result.json")
    losses = [json.loads(line)["train_loss"] for line in metrics.read_text().splitlines()]
    assert losses[-1] == json.loads(result.read_text())["train_loss"]
    return np.array(losses)


@pytest.mark.parametrize("method", ["full_precision", "laq"])
def test_weights_that_stand_still_have_one_train_loss(method: str, tmp_path: Path):
    running = train_losses(tmp_path / "running", method, 0)
    fresh = train_losses(tmp_path / "fresh", method, JOBS["digits"].reestimate_batch_stats)
    np.testing.assert_allclose(fresh, fresh[0], rtol=1e-3)
    assert np.max(np.abs(running / running[0] - 1)) > 1e-2
