"""The script that damages packed files: what it makes, and that it tells errors, intact files and faults apart."""

import random

import numpy as np
import pytest

import fobt
from experiments.deployment import hostile_files


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    path = tmp_path_factory.mktemp("files") / "file.safetensors"
    return [hostile_files.saved(path, tree) for tree in hostile_files.trees()]


def test_a_digest_is_made_right_again(contents: list[bytes], tmp_path):
    path, content = tmp_path / "changed.safetensors", contents[0]
    assert hostile_files.sealed(content) == content
    changed = content.replace(np.arange(3.0).tobytes(), np.arange(1.0, 4.0).tobytes())
    path.write_bytes(changed)
    with pytest.raises(ValueError, match="its digest is not that of its content"):
        fobt.packed.load_packed(path)
    path.write_bytes(hostile_files.sealed(changed))
    np.testing.assert_array_equal(fobt.packed.load_packed(path).weights()["bias"], [1, 2, 3])


@pytest.mark.parametrize("name", hostile_files.CHANGES)
def test_changes_are_different_and_repeatable(name: str, contents: list[bytes]):
    change = hostile_files.CHANGES[name]
    made = [[change(contents[0], draw) for _ in range(20)] for draw in (random.Random(0), random.Random(0))]
    assert made[0] == made[1]
    assert len({*made[0], contents[0]}) > 3


def test_outcomes(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hostile_files, "_limit_memory", lambda: None)
    records = hostile_files.read_damaged(60, tmp_path)
    assert sum(record["files"] for record in records) == 60
    assert all(record["errors"] + record["intact"] == record["files"] for record in records)
    assert sum(record["errors"] for record in records) > 30
    monkeypatch.setattr(fobt.packed, "load_packed", lambda path: 1 / 0)
    assert all(record["wrong"] == record["files"] for record in hostile_files.read_damaged(10, tmp_path))
