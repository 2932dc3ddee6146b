"""A training of steps: the gradients of its method, and an end at any moment."""

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.core import fitting
from experiments.methods.method import Hyperparameters
from experiments.methods.rows import Row

ROWS = {
    "laq": Row(method="laq", grid="binary"),
    "forward_backtrack": Row(method="forward_backtrack", grid="binary", a=0.6, every=1, every_unit="steps"),
}
STEPS = 7


def batches(stop: int | None = None):
    """Minibatches of numbers; a training that asks for number `stop` is ended."""
    for number in itertools.count():
        if number == stop:
            raise KeyboardInterrupt
        yield (jax.random.normal(jax.random.key(number), (3,)),)


@pytest.mark.parametrize("name", ROWS)
def test_an_ended_training_goes_on_to_the_same_weights(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    method = ROWS[name].build(Hyperparameters(0.1, weight_bounds=None))
    step = fitting.compiled_step(method, lambda weights, x: jnp.sum((weights["kernel"] @ x - 1) ** 2))
    params = {"kernel": jax.random.normal(jax.random.key(9), (2, 3))}
    state = method.optimizer.init(params)
    expected = fitting.fit(step, params, state, batches(), STEPS, tmp_path / "whole")
    monkeypatch.setattr(fitting, "CHECKPOINT_SECONDS", 0)
    for stop in (3, 5):
        with pytest.raises(KeyboardInterrupt):
            fitting.fit(step, params, state, batches(stop), STEPS, tmp_path / "ended")
    fitted = fitting.fit(step, params, state, batches(5 + STEPS), STEPS, tmp_path / "ended")
    jax.tree.map(np.testing.assert_array_equal, (fitted.params, fitted.state), (expected.params, expected.state))
    np.testing.assert_array_equal(fitted.losses, expected.losses)
    assert np.all(expected.losses > 0)
    assert not np.array_equal(fitted.params["kernel"], params["kernel"])
