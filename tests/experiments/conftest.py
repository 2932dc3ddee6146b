"""Data sets of noise or from memory, and an empty cache."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tensorflow_datasets as tfds
from training_cases import RANDOM_DATASETS

from experiments import data


class Records(list):
    """What tfds.data_source returns, with records from memory instead of ArrayRecord files."""

    def __getitems__(self, keys: range) -> list:
        return [self[key] for key in keys]


@pytest.fixture
def mock_tfds() -> Iterator[Callable[[dict[str, list]], None]]:
    """Gives tensorflow-datasets the records of each split."""
    splits: dict[str, list] = {}
    with tfds.testing.mock_data(as_data_source_fn=lambda _, split, **options: Records(splits[split])):
        yield splits.update


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of cached whitenings."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "fobt"


@pytest.fixture
def random_datasets(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Noise in the shape of every data set."""
    monkeypatch.setattr(data, "DATASETS", RANDOM_DATASETS)
    data.load_dataset.cache_clear()
    yield
    data.load_dataset.cache_clear()
