"""The READMEs: their numbers are those of the results files, and the example runs."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fobt
from experiments.reporting.readme import READMES, fill_tables

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", READMES, ids=str)
def test_tables_are_those_of_the_results_files(path):
    text = path.read_text(encoding="utf-8")
    assert "<!-- table: " in text
    assert fill_tables(text) == text


def test_the_example_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    x = jax.random.normal(jax.random.key(0), (64, 4))
    y = (x[:, 0] > x[:, 1]).astype(jnp.int32)
    given = {
        "model": lambda weights, x: x @ weights["kernel"],
        "params": {"kernel": jax.random.normal(jax.random.key(1), (4, 2))},
        "batches": [(x, y)] * 100,
    }
    monkeypatch.chdir(tmp_path)  # the example writes a file
    namespace = dict(given)
    exec(example, namespace)
    right = jnp.argmax(given["model"](namespace["weights"], x), -1) == y
    assert jnp.mean(right) > 0.9
    loaded = fobt.packed.load_packed("model.safetensors")
    jax.tree.map(np.testing.assert_array_equal, loaded.weights(), fobt.dequantize(namespace["codes_and_scales"]))


def test_columns_and_rows_of_a_table_can_be_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("experiments.reporting.readme.ROOT", tmp_path)
    (tmp_path / "file.md").write_text(
        "| a | b, c | d |\n|---|---|---|\n| x, y | 1 | 2 |\n| z | 3 | 4 |\n", encoding="utf-8"
    )
    text = "<!-- table: file.md 1 columns: a; d rows: z -->\n<!-- end of table -->"
    assert "\n\n| a | d |\n|---|---|\n| z | 4 |\n\n" in fill_tables(text)
    with pytest.raises(ValueError, match="'e' is not in list"):
        fill_tables(text.replace("a; d", "a; e"))
