"""Data sets against values worked out by hand: minibatches, digits, MNIST, SVHN, and one that is missing."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from sklearn.datasets import load_digits
from training_cases import equal

from experiments import data, train
from experiments.data import DATASETS, Arrays, MissingDataError, load_dataset
from experiments.data.svhn import svhn


def test_minibatches_are_a_function_of_seed_and_epoch_without_repetition():
    arrays = Arrays(np.arange(50).reshape(50, 1, 1, 1), np.arange(50))
    batches = list(arrays.shuffled_batches(8, seed=3, epoch=2))
    labels = np.concatenate([batch.labels for batch in batches])
    assert [len(batch) for batch in batches] == 6 * [8]
    assert len(np.unique(labels)) == 48
    assert all(np.array_equal(batch.images.ravel(), batch.labels) for batch in batches)
    for start in (0, 4, 6):
        rest = list(arrays.shuffled_batches(8, 3, 2, start))
        assert len(rest) == 6 - start
        assert all(map(equal, rest, batches[start:]))
    for seed, epoch in [(3, 3), (4, 2)]:
        assert not equal(batches[0], next(arrays.shuffled_batches(8, seed, epoch)))


def test_digits_are_centred_stratified_and_split_without_overlap():
    dataset = DATASETS["digits"]()
    parts = (dataset.train, dataset.validation, dataset.test)
    assert [len(part) for part in parts] == [1000, 297, 500]
    images = np.concatenate([part.images for part in parts])
    assert images.shape == (1797, 8, 8, 1)
    assert (images.min(), images.max()) == (-1.0, 1.0)
    for part in parts:
        np.testing.assert_allclose(np.bincount(part.labels, minlength=10) / len(part), 0.1, atol=0.01)
    from_sklearn = load_digits().data / 8 - 1
    np.testing.assert_array_equal(np.sort(images.reshape(1797, -1).sum(1)), np.sort(from_sklearn.sum(1)))


def test_mnist_keeps_the_last_sixth_for_validation_and_is_centred_on_the_device(mock_tfds: Callable):
    mock_tfds(
        {
            split: [{"image": np.full((28, 28, 1), 17 * i, np.uint8), "label": i % 10} for i in range(count)]
            for split, count in {"train": 12, "test": 3}.items()
        }
    )
    dataset = DATASETS["mnist"]()
    assert dataset.train.labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert dataset.validation.labels.tolist() == [0, 1]
    assert dataset.test.labels.tolist() == [0, 1, 2]
    assert dataset.train.images.dtype == np.uint8
    prepared = dataset.prepare(dataset.train.images)
    assert prepared.shape == (10, 28, 28, 1)
    np.testing.assert_allclose(prepared[3], 51 / 127.5 - 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("mnist", "mnist"),
        ("cifar10_whitened", "cifar10"),
        ("cifar10_augmented", "cifar10"),
        ("svhn", "svhn_cropped"),
        ("imagenet", "imagenet2012"),
    ],
)
def test_a_missing_data_set_gives_one_line_that_says_how_to_get_it(
    key: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    find = tfds.data_source
    monkeypatch.setattr(tfds, "data_source", lambda name, **options: find(name, data_dir=tmp_path, **options))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(MissingDataError) as exit_info:
        DATASETS[key]()
    message = str(exit_info.value)
    assert "\n" not in message
    assert f"{name} is not in {tmp_path}" in message
    assert f"tfds build {name} --file_format=array_record" in message
    assert ("by hand from image-net.org" in message and "--manual_dir" in message) == (key == "imagenet")


def test_the_command_line_reports_a_missing_data_set(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    def missing() -> None:
        raise MissingDataError("mnist is not here")

    monkeypatch.setattr(data, "DATASETS", {"mnist": missing})
    load_dataset.cache_clear()
    with pytest.raises(SystemExit, match="1"):
        train.main(["mnist_lenet5"])
    error = capsys.readouterr().err
    assert error.endswith("mnist is not here\n")
    assert error.count("\n") == 1


def test_svhn_holds_out_a_balanced_part_of_both_splits(mock_tfds: Callable):
    rng = np.random.default_rng(0)

    def records(start: int, count: int) -> list[dict]:
        """Six images of each class and more of class 1; two pixels hold the number of the image."""
        labels = rng.permutation(np.concatenate([np.arange(10).repeat(6), np.full(count - 60, 1)]))
        images = np.zeros((count, 4, 4, 3), np.uint8)
        images[:, 0, 0, 0], images[:, 1, 1, 0] = divmod(np.arange(start, start + count), 256)
        return [{"image": image, "label": int(label)} for image, label in zip(images, labels, strict=True)]

    splits = {"train": records(0, 100), "extra": records(100, 300), "test": records(400, 70)}
    mock_tfds(splits)
    dataset = svhn(per_class=(4, 2))
    assert [len(part) for part in (dataset.train, dataset.validation, dataset.test)] == [400 - 60, 60, 70]
    assert np.bincount(dataset.validation.labels).tolist() == 10 * [6]
    assert dataset.train.images.dtype == np.uint8

    def identify(part: Arrays) -> dict[int, int]:
        """From number to label."""
        return {
            256 * int(image[0, 0, 0]) + int(image[1, 1, 0]): int(label)
            for image, label in zip(part.images, part.labels, strict=True)
        }

    trained, held_out = identify(dataset.train), identify(dataset.validation)
    assert not trained.keys() & held_out.keys()
    everything = [record["label"] for record in splits["train"] + splits["extra"]]
    assert trained | held_out == dict(enumerate(everything))
    assert sum(number < 100 for number in held_out) == 40
    for label in range(10):  # the last ones of the class
        assert [n for n in sorted(held_out) if held_out[n] == label and n < 100] == [
            n for n in range(100) if everything[n] == label
        ][-4:]
    again = svhn(per_class=(4, 2))
    assert equal(again.train, dataset.train)
    assert equal(again.validation, dataset.validation)
