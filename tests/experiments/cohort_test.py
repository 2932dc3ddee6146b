"""Models that train together: each one as if it were alone."""

import functools
import itertools
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from training_cases import small_digits

from experiments import train
from experiments.core import cohort as cohort_module
from experiments.core.cohort import Cohort, Member, Setting
from experiments.data import load_dataset
from experiments.methods.method import make_quantizer
from experiments.methods.registry import METHODS
from experiments.reporting.results import read_job

NETWORKS = ["digits_mlp", "digits_cnn"]


def make_cohort(job, method: str, **options) -> Cohort:
    dataset = load_dataset(job.dataset, job.limit)
    make = functools.partial(METHODS[method].make, quantizer=make_quantizer("binary"), **options)
    return Cohort(job, dataset, make)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("method", "options"), [("nesterov", {}), ("forward_backtrack", {"a": 0.3})])
def test_a_member_reaches_the_loss_of_the_training_program(network: str, method: str, options: dict, tmp_path: Path):
    job = small_digits(
        network=network, methods=(method,), learning_rate=0.005, b1=0.8, b2=0.95, output=tmp_path, **options
    )
    train.run_job(job, Console(quiet=True))
    (((run,),)) = read_job(tmp_path).runs.values()
    steps = job.epochs * (64 // job.batch_size)
    members = [Member(5, Setting(0.1, 0.0, 0.5)), Member(0, Setting(0.005, 0.8, 0.95))]
    _, record = make_cohort(job, method, **options).run(members, steps)
    # At larger rates rounding turns single codes, and their losses part.
    assert record["minibatch_loss"] == pytest.approx(run.metrics[-1]["minibatch_loss"], rel=1e-4)


def test_networks_without_convolutions_train_together_and_one_after_the_other_alike(monkeypatch: pytest.MonkeyPatch):
    job = small_digits(network="digits_mlp")
    members = [Member(seed, Setting(rate, 0.9, 0.95)) for rate, seed in itertools.product((0.001, 0.003), range(5))]
    together = make_cohort(job, "laq")
    assert together.together == cohort_module.TOGETHER == 8  # so the second group is filled up
    expected = together.run(members, 12)
    monkeypatch.setattr(cohort_module, "trains_together", lambda job: False)
    in_turn = make_cohort(job, "laq")
    assert in_turn.together == 1
    assert len({record["minibatch_loss"] for record in expected}) == len(members)
    for record, other in zip(in_turn.run(members, 12), expected, strict=True):
        for key in ("minibatch_loss", "train_loss"):
            assert record[key] == pytest.approx(other[key], rel=1e-3)


@pytest.mark.parametrize("network", NETWORKS)
def test_weights_that_stand_still_have_one_training_loss(network: str, monkeypatch: pytest.MonkeyPatch):
    """Running averages go on moving; batch statistics that are re-estimated do not."""
    job = small_digits(network=network)
    still = [Member(seed, Setting(0.0, 0.9, 0.95)) for seed in range(2)]

    def losses(steps: int) -> np.ndarray:
        return np.array([record["train_loss"] for record in make_cohort(job, "laq").run(still, steps)])

    np.testing.assert_allclose(losses(4), losses(12), rtol=1e-3)
    monkeypatch.setattr("fobt.reestimate_batch_stats", lambda update, batch_stats, batches: batch_stats)
    assert np.all(np.abs(losses(4) / losses(12) - 1) > 1e-2)


@pytest.mark.usefixtures("random_datasets")
def test_a_network_without_normalisation_needs_no_statistics():
    job = small_digits(network="plain_mlp", dataset="mnist", limit=40, width=0.1, loss="cross_entropy")
    (record,) = make_cohort(job, "laq").run([Member(0, Setting(0.01, 0.9, 0.9))], 3)
    assert 0 < record["train_loss"] < 10
