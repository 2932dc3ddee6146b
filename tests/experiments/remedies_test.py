"""The remedies against oscillations, in trainings of the experiments."""

import json

import pytest
from rich.console import Console
from training_cases import small_digits

from experiments import train


def test_weights_freeze_and_are_dampened_after_a_quarter_of_the_training(tmp_path):
    """Weights freeze from a quarter of the training on; dampening and re-estimated statistics train too."""
    config = small_digits(
        methods=("laq", "laq_freezing", "laq_dampening"),
        freezing_threshold=1e-4,
        reestimate_batch_stats=2,
        epochs=4,
        learning_rate=0.05,
        output=tmp_path,
    )
    train.run_job(config, Console(quiet=True))

    def metrics(pattern):
        (path,) = tmp_path.glob(f"{pattern}/seed-0/metrics.jsonl")
        return [json.loads(line) for line in path.read_text().splitlines()]

    shares = [record["frozen_share"] for record in metrics("laq_freezing*")]
    assert shares[0] == 0  # the first quarter
    assert 0 < shares[1] <= shares[2] <= shares[3] < 1
    laq, dampened = metrics("laq-*"), metrics("laq_dampening*")
    assert [record["frozen_share"] for record in laq] == [None] * 4
    # λ is 0 in the first quarter, and changes the weights after it.
    assert dampened[0]["train_loss"] == pytest.approx(laq[0]["train_loss"], rel=1e-3)
    assert dampened[-1]["train_loss"] != laq[-1]["train_loss"]
