"""The READMEs: their numbers are those of the results files, and the example runs."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest

import fobt
from experiments.reporting.readme import READMES, fill_tables

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", READMES, ids=str)
def test_tables_are_those_of_the_results_files(path):
    text = path.read_text(encoding="utf-8")
    assert "<!-- table: " in text
    assert fill_tables(text) == text


def test_the_example_trains():
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    targets = jnp.array([[1.0, -2.0, 1.5]])

    def loss_fn(weights, batch, key):
        return jnp.sum((weights - targets) ** 2)

    params = jnp.array([[0.3, 0.2, -0.1]])
    state = fobt.forward_backtrack(1e-2, fobt.binary()).init(params)
    namespace = {"loss_fn": loss_fn, "params": params, "state": state}
    exec(example, namespace)
    before = loss_fn(namespace["weights"], None, None)
    for _ in range(200):
        params, state, _ = namespace["train_step"](params, state, None, jax.random.key(0))
    after = loss_fn(fobt.quantized_params(params, state, fobt.binary()), None, None)
    assert after < before / 4
    assert isinstance(state, optax.ScaleByAdamState)
