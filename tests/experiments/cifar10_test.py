"""CIFAR-10: its copies, contrast normalisation, whitening and augmentation, against values worked out by hand."""

import itertools
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.data import DATASETS, cifar10, whitening
from experiments.data.augmentation import crop_and_flip


def test_normalized_images_have_mean_zero_norm_55_and_forget_brightness_and_contrast():
    images = np.random.default_rng(0).integers(0, 80, (6, 4, 4, 3)).astype(np.uint8)
    normalized = whitening.normalize_contrast(images)
    assert normalized.dtype == np.float32
    vectors = normalized.reshape(6, -1).astype(np.float64)
    np.testing.assert_allclose(vectors.mean(axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 55, rtol=1e-5)
    np.testing.assert_allclose(whitening.normalize_contrast(2 * images + 30), normalized, atol=1e-4)
    np.testing.assert_array_equal(whitening.normalize_contrast(np.full((1, 4, 4, 3), 7, np.uint8)), 0)


def test_whitening_of_two_pixels_by_hand():
    # Two images of two pixels, (3, 1) and (1, -1): μ = (2, 0), C = [[1, 1], [1, 1]], eigenvalue 2 along (1, 1)/√2 and 0
    # along (1, -1)/√2.
    images = np.float32([[3, 1], [1, -1]]).reshape(2, 1, 2, 1)
    fitted = whitening.fit_whitening(images)
    along, across = 1 / np.sqrt(2.1), 1 / np.sqrt(0.1)
    np.testing.assert_allclose(fitted.mean, [2, 0])
    expected = np.array([[along + across, along - across], [along - across, along + across]]) / 2
    np.testing.assert_allclose(fitted.matrix, expected, rtol=1e-6)
    np.testing.assert_allclose(fitted(images).reshape(2, 2), [[along, along], [-along, -along]], rtol=1e-5)


def test_whitened_images_have_the_covariance_of_the_formula(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(whitening, "CHUNK", 128)  # the last of several chunks is smaller
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(18, 18)) * np.geomspace(0.01, 3, 18)
    vectors = (rng.normal(size=(500, 18)) @ mixing.T + rng.normal(size=18)).astype(np.float32)
    images = vectors.reshape(500, 3, 2, 3)
    whitened = whitening.fit_whitening(images)(images)
    assert whitened.shape == images.shape
    assert whitened.dtype == np.float32
    eigenvalues, U = np.linalg.eigh(np.cov(vectors.astype(np.float64), rowvar=False, bias=True))
    expected = U @ np.diag(eigenvalues / (eigenvalues + 0.1)) @ U.T
    np.testing.assert_allclose(np.cov(whitened.reshape(500, -1), rowvar=False, bias=True), expected, atol=1e-4)
    np.testing.assert_allclose(whitened.mean(axis=0), 0, atol=1e-5)


def test_the_whitening_is_read_from_its_file_for_the_same_images_only(cache: Path, monkeypatch: pytest.MonkeyPatch):
    fits: list[int] = []
    fit = whitening.fit_whitening
    monkeypatch.setattr(whitening, "fit_whitening", lambda images: fits.append(len(images)) or fit(images))
    images = np.random.default_rng(0).normal(size=(20, 2, 2, 1)).astype(np.float32)
    first, second = whitening.cached_whitening(images), whitening.cached_whitening(images)
    assert fits == [20]
    np.testing.assert_array_equal(first.matrix, second.matrix)
    np.testing.assert_array_equal(first.mean, second.mean)
    changed = images.copy()
    changed[7, 0, 1] += 1e-3
    for other in (changed, images[:19], images.reshape(10, 4, 2, 1)):
        whitening.cached_whitening(other)
    assert fits == [20, 20, 19, 10]
    assert len(list(cache.iterdir())) == 4


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: b"not a zip file", lambda data: data[:-40]])
def test_a_damaged_file_is_computed_again(damage: Callable, cache: Path):
    images = np.random.default_rng(0).normal(size=(20, 2, 2, 1)).astype(np.float32)
    first = whitening.cached_whitening(images)
    (path,) = cache.iterdir()
    written = path.read_bytes()
    path.write_bytes(damage(written))
    np.testing.assert_array_equal(whitening.cached_whitening(images).matrix, first.matrix)
    assert list(cache.iterdir()) == [path]
    with np.load(path) as arrays:
        np.testing.assert_array_equal(arrays["matrix"], first.matrix)


def test_a_cache_that_cannot_be_written_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "fobt").write_text("a file where the folder would be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    images = np.random.default_rng(0).normal(size=(20, 2, 2, 1)).astype(np.float32)
    with caplog.at_level(logging.WARNING):
        fitted = whitening.cached_whitening(images)
    np.testing.assert_array_equal(fitted.matrix, whitening.fit_whitening(images).matrix)
    assert "cannot write" in caplog.text


def cifar10_records(seed: int = 0) -> dict[str, list]:
    """20 training and 4 test images; the training images in another order than that of their ids, which are labels."""
    rng = np.random.default_rng(seed)
    return {
        split: [
            {
                "image": rng.integers(0, 256, (4, 4, 3), dtype=np.uint8),
                "label": number,
                "id": f"{split}_{number:05d}".encode(),
            }
            for number in rng.permutation(count).tolist()
        ]
        for split, count in {"train": 20, "test": 4}.items()
    }


def test_cifar10_keeps_the_last_tenth_in_original_order_for_validation(mock_tfds: Callable):
    records = cifar10_records()
    mock_tfds(records)
    dataset = DATASETS["cifar10_augmented"]()
    assert dataset.train.labels.tolist() == list(range(18))
    assert dataset.validation.labels.tolist() == [18, 19]
    assert len(dataset.test) == 4
    stored = {record["label"]: record["image"] for record in records["train"]}
    np.testing.assert_array_equal(dataset.train.images, [stored[label] for label in range(18)])
    assert dataset.augment is crop_and_flip
    np.testing.assert_allclose(
        dataset.prepare(dataset.train.images), dataset.train.images / 127.5 - 1, rtol=1e-5, atol=1e-6
    )


def test_cifar10_says_which_copy_it_is(mock_tfds: Callable, monkeypatch: pytest.MonkeyPatch, cache: Path):
    records = cifar10_records()
    mock_tfds(records)
    assert DATASETS["cifar10_augmented"]().name == "CIFAR-10 (altered pixels), augmented"
    sums = tuple(sum(int(record["image"][..., channel].sum()) for record in records["train"]) for channel in range(3))
    monkeypatch.setattr(cifar10, "COPIES", {sums: "CIFAR-10 (JPEG copy)"})
    assert DATASETS["cifar10_augmented"]().name == "CIFAR-10 (JPEG copy), augmented"
    assert DATASETS["cifar10_whitened"]().name == "CIFAR-10 (JPEG copy), whitened"
    records["train"][3]["image"][0, 0, 0] ^= 1
    assert DATASETS["cifar10_augmented"]().name == "CIFAR-10 (altered pixels), augmented"


def test_the_original_cifar10_is_known_by_the_channel_means_that_everybody_quotes():
    (original,) = [sums for sums, name in cifar10.COPIES.items() if name == "CIFAR-10"]
    means = np.array(original) / (255 * 50_000 * 32**2)
    np.testing.assert_allclose(means, [0.49139968, 0.48215841, 0.44653091], atol=5e-9)


def test_the_whitening_of_cifar10_is_fitted_on_the_training_part_alone(mock_tfds: Callable, cache: Path):
    records = cifar10_records()
    mock_tfds(records)
    dataset = DATASETS["cifar10_whitened"]()
    original = sorted(records["train"], key=lambda record: record["id"])
    normalized = whitening.normalize_contrast(np.stack([record["image"] for record in original]))
    whiten = whitening.fit_whitening(normalized[:18])
    for part, images in [
        (dataset.train, normalized[:18]),
        (dataset.validation, normalized[18:]),
        (dataset.test, whitening.normalize_contrast(np.stack([record["image"] for record in records["test"]]))),
    ]:
        assert part.images.dtype == np.float32
        # Fewer images than pixels: directions in which no training image varies are divided by √0.1.
        np.testing.assert_allclose(part.images, whiten(images), atol=1e-3)
        np.testing.assert_array_equal(dataset.prepare(part.images), part.images)
    assert dataset.augment is None


def test_crops_and_flips_are_those_of_numpy_and_every_one_occurs():
    padding, size = 2, 3
    images = np.random.default_rng(0).uniform(0.5, 1, (1500, size, size, 2)).astype(np.float32)
    results = np.asarray(jax.jit(partial(crop_and_flip, padding=padding))(images, jax.random.key(0)))
    np.testing.assert_array_equal(results, crop_and_flip(jnp.asarray(images), jax.random.key(0), padding))
    assert not np.array_equal(results, crop_and_flip(jnp.asarray(images), jax.random.key(1), padding))
    padded = np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    counts = {}
    for top, left, flip in itertools.product(range(2 * padding + 1), range(2 * padding + 1), (1, -1)):
        expected = padded[:, top : top + size, left : left + size][:, :, ::flip]
        counts[top, left, flip] = int(np.sum(np.all(results == expected, axis=(1, 2, 3))))
    assert sum(counts.values()) == 1500  # each image is exactly one of the 50
    assert 10 <= min(counts.values()) <= max(counts.values()) <= 60  # 30 on average
    assert abs(sum(count for (_, _, flip), count in counts.items() if flip == -1) - 750) < 80
