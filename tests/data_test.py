"""Data sets against values worked out by hand, and the streamed ones against what they promise."""

import io
import itertools
import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
from flax import nnx
from PIL import Image
from sklearn.datasets import load_digits

from experiments import train
from experiments.data import DATASETS, Arrays, Batch, MissingDataError, cifar10, crops, whitening
from experiments.data.augmentation import crop_and_flip
from experiments.data.imagenet import imagenet, standardize
from experiments.data.streaming import Stream
from experiments.data.svhn import svhn
from experiments.losses import cross_entropy
from experiments.methods import build
from experiments.models import NETWORKS
from experiments.rows import Row
from experiments.steps import Evaluator, Programs


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


def equal(first: Batch, second: Batch) -> bool:
    return np.array_equal(first.images, second.images) and np.array_equal(first.labels, second.labels)


# In memory


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

    monkeypatch.setattr(train, "DATASETS", {"mnist": missing})
    with pytest.raises(SystemExit, match="1"):
        train.main(["mnist_lenet5"])
    error = capsys.readouterr().err
    assert error.endswith("mnist is not here\n")
    assert error.count("\n") == 1


# Contrast and whitening


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


# CIFAR-10


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


# SVHN


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


# Crops


def encode(pixels: np.ndarray, encoding: str = "PNG", mode: str | None = None, **options: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode or "RGB").save(file, encoding, **options)
    return file.getvalue()


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("height", "width", "size", "top", "left"), [(256, 300, 224, 16, 38), (300, 256, 224, 38, 16), (8, 16, 7, 0, 4)]
)
def test_the_central_crop_of_an_image_that_needs_no_resizing(height: int, width: int, size: int, top: int, left: int):
    pixels = noise(height, width)
    crop = crops.centre_crop({"image": encode(pixels)}, size=size)
    assert crop.dtype == np.uint8
    np.testing.assert_array_equal(crop, pixels[top : top + size, left : left + size])


def test_the_central_crop_resizes_the_shorter_side():
    # Stripes of 8 columns become stripes of 4; the shorter side 512 becomes 256, and the crop starts at column
    # (512 - 224)/2 = 144 of 512 and row 16 of 256.
    pixels = np.zeros((512, 1024, 3), np.uint8)
    pixels[:, np.arange(1024) // 8 % 2 == 1] = 200
    pixels[256:] //= 2
    crop = crops.centre_crop({"image": encode(pixels)}, size=224)
    expected = np.where((np.arange(224) + 144) // 4 % 2 == 1, 200, 0)
    inside = np.arange(224) % 4 % 3 != 0  # away from the edges of stripes, which are blurred
    np.testing.assert_array_equal(crop[50, inside, 0], expected[inside])
    np.testing.assert_array_equal(crop[170, inside, 0], expected[inside] // 2)


def test_random_parts_fit_and_have_the_areas_and_ratios_of_inception():
    rng = np.random.default_rng(0)
    boxes = np.array([crops.random_box(400, 300, rng) for _ in range(3000)])
    left, upper, right, lower = boxes.T
    assert left.min() == upper.min() == 0
    assert (right.max(), lower.max()) == (400, 300)
    widths, heights = right - left, lower - upper
    areas, ratios = widths * heights / (400 * 300), widths / heights
    assert 0.079 < areas.min() < 0.1
    assert 0.95 < areas.max() <= 1
    assert 3 / 4 * 0.98 < ratios.min() < 0.77
    assert 1.3 < ratios.max() < 4 / 3 * 1.02
    small = areas < 0.3  # nearly all of these fit, so nothing was drawn again
    np.testing.assert_allclose(np.log(ratios[small]).mean(), 0, atol=0.03)
    np.testing.assert_allclose((left[small] / (400 - widths[small])).mean(), 0.5, atol=0.04)


@pytest.mark.parametrize(("width", "height", "box"), [(900, 30, (430, 0, 470, 30)), (30, 900, (0, 430, 30, 470))])
def test_a_narrow_image_gives_its_centre(width: int, height: int, box: tuple):
    assert crops.random_box(width, height, np.random.default_rng(0)) == box


def test_random_resized_crops_are_parts_of_the_image_half_of_them_mirrored():
    ramp = np.repeat(np.repeat(np.arange(200, dtype=np.uint8)[None, :, None], 150, axis=0), 3, axis=2)
    record = {"image": encode(ramp)}
    rng = np.random.default_rng(0)
    mirrored = 0
    for _ in range(200):
        crop = crops.random_resized_crop(record, rng, size=16)
        assert crop.shape == (16, 16, 3)
        assert crop.dtype == np.uint8
        steps = np.diff(crop[..., 0].astype(int), axis=1)
        assert np.all(steps >= 0) or np.all(steps <= 0)
        mirrored += bool(np.all(steps <= 0))
    assert 70 <= mirrored <= 130


@pytest.mark.parametrize(
    ("encoding", "mode"), [("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "P"), ("PNG", "RGBA"), ("JPEG", "RGB")]
)
def test_images_of_every_kind_become_rgb(encoding: str, mode: str):
    grey = np.full((40, 50, 3), 102, np.uint8)  # a colour of the web palette
    image = crops.decode({"image": encode(grey, encoding, mode)})
    assert image.mode == "RGB"
    np.testing.assert_allclose(np.asarray(image), grey, atol=2)


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: b"nothing", lambda data: data[: len(data) // 2]])
def test_an_image_that_cannot_be_decoded_is_named(damage: Callable):
    data = damage(encode(noise(40, 50), "JPEG"))
    with pytest.raises(ValueError, match=r"cannot decode n01440764_18\.JPEG"):
        crops.decode({"image": data, "file_name": b"n01440764_18.JPEG"})
    with pytest.raises(ValueError, match="cannot decode an image without a name"):
        crops.decode({"image": data})


# Streams


def encoded_records(count: int) -> list[dict]:
    """JPEG images of several sizes, some of them grey; the label is the number of the record."""
    rng = np.random.default_rng(0)
    records = []
    for label in range(count):
        pixels = noise(*rng.integers(20, 60, 2), seed=label)
        records.append({"image": encode(pixels, "JPEG", "L" if label % 5 == 0 else "RGB", quality=90), "label": label})
    return records


def stream(workers: int = 0, count: int = 30) -> Stream:
    """Records 2, 3, ... of a data set."""
    views = partial(crops.random_resized_crop, size=16), partial(crops.centre_crop, size=16)
    return Stream(encoded_records(count), range(2, count), *views, workers)


def test_streamed_minibatches_are_a_function_of_seed_and_epoch_without_repetition():
    batches = list(stream().shuffled_batches(8, seed=3, epoch=2))
    assert [len(batch) for batch in batches] == 3 * [8]
    labels = np.concatenate([batch.labels for batch in batches])
    assert len(np.unique(labels)) == 24
    assert set(labels.tolist()) < set(range(2, 30))
    assert all(batch.images.shape == (8, 16, 16, 3) and batch.images.dtype == np.uint8 for batch in batches)
    assert all(batch.labels.dtype == np.int32 for batch in batches)
    assert all(map(equal, batches, stream().shuffled_batches(8, 3, 2)))
    for seed, epoch in [(3, 3), (4, 2), (2, 3)]:
        assert not np.array_equal(next(stream().shuffled_batches(8, seed, epoch)).labels, batches[0].labels)


@pytest.mark.parametrize("start", [0, 1, 2, 3])
def test_a_stream_that_starts_later_gives_the_batches_of_an_uninterrupted_one(start: int):
    batches = list(stream().shuffled_batches(8, 3, 2))
    rest = list(stream().shuffled_batches(8, 3, 2, start))
    assert len(rest) == 3 - start
    assert all(map(equal, rest, batches[start:]))


def test_the_views_of_an_image_differ_between_epochs():
    def views(epoch: int) -> dict[int, np.ndarray]:
        batches = list(stream().shuffled_batches(28, 0, epoch))
        return dict(zip(batches[0].labels.tolist(), np.asarray(batches[0].images), strict=True))

    first, second = views(1), views(2)
    assert first.keys() == second.keys() == set(range(2, 30))
    assert not any(np.array_equal(first[label], second[label]) for label in first)


def test_a_stream_is_evaluated_in_order_on_central_crops():
    batches = list(stream().first(20).batches(8))
    assert [len(batch) for batch in batches] == [8, 8, 4]
    assert np.concatenate([batch.labels for batch in batches]).tolist() == list(range(2, 22))
    expected = [crops.centre_crop(record, size=16) for record in encoded_records(22)[2:]]
    np.testing.assert_array_equal(np.concatenate([batch.images for batch in batches]), expected)
    assert len(stream().first(100)) == 28
    assert not list(stream().first(5).shuffled_batches(8, 0, 1))


def test_worker_processes_give_the_same_batches():
    parallel = list(stream(workers=2).shuffled_batches(8, 3, 2))
    assert len(parallel) == 3
    assert all(map(equal, parallel, stream().shuffled_batches(8, 3, 2)))


def test_a_stream_may_be_left_early_and_an_error_reaches_the_reader():
    batches = stream().batches(8)
    next(batches)
    batches.close()
    broken = [*encoded_records(9), {"image": b"", "label": 9, "file_name": b"broken.JPEG"}]
    views = partial(crops.random_resized_crop, size=16), partial(crops.centre_crop, size=16)
    with pytest.raises(ValueError, match=r"cannot decode broken\.JPEG"):
        list(Stream(broken, range(10), *views, workers=0).batches(4))


# ImageNet


@pytest.fixture
def small_imagenet(mock_tfds: Callable) -> Callable:
    mock_tfds({"train": encoded_records(40), "validation": encoded_records(10)})
    return partial(imagenet, size=32, validation=8, workers=0)


def test_imagenet_holds_out_the_last_training_images_and_tests_on_the_validation_images(small_imagenet: Callable):
    dataset = small_imagenet()
    for part, labels in [
        (dataset.train, range(32)),
        (dataset.validation, range(32, 40)),
        (dataset.test, range(10)),
    ]:
        (batch,) = part.batches(100)
        assert len(part) == len(labels)
        assert batch.labels.tolist() == list(labels)
        assert batch.images.shape == (len(labels), 32, 32, 3)
    (batch,) = dataset.first(5).train.shuffled_batches(5, 0, 1)
    assert sorted(batch.labels.tolist()) == [0, 1, 2, 3, 4]


def test_standardized_channels_by_hand():
    images = np.array([0, 51, 255], np.uint8).reshape(1, 1, 1, 3)
    expected = [(0 - 0.485) / 0.229, (0.2 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    np.testing.assert_allclose(jax.jit(standardize)(images).ravel(), expected, rtol=1e-5)


def test_resnet18_trains_on_imagenet(small_imagenet: Callable):
    dataset = small_imagenet()
    model = NETWORKS["resnet18"](nnx.Rngs(0), 1 / 8)
    method = build(Row(method="laq", grid="binary"), lambda step: 1e-3, (-1.0, 1.0))
    jax.config.update("jax_disable_most_optimizations", True)  # much is compiled, and little run
    try:
        batch = next(dataset.train.shuffled_batches(8, 0, 1))
        programs = Programs(model, cross_entropy, dataset, method, [False], batch)
        state, totals = programs.init_state(model, seed=0), jnp.zeros(2)
        losses = []
        for batch in dataset.train.shuffled_batches(8, seed=0, epoch=1, start=1):
            before = float(totals[0])
            state, totals = programs.steps[False](state, totals, batch)
            losses.append(float(totals[0]) - before)
        weights = programs.evaluated(state.params, state.optimizer)
        result = Evaluator(model, cross_entropy, dataset.prepare)(weights, state.batch_stats, dataset.validation)
    finally:
        jax.config.update("jax_disable_most_optimizations", False)
    assert int(state.steps) == len(losses) == 3
    np.testing.assert_allclose(losses, np.log(1000), atol=1.5)  # untrained: all classes are about equally likely
    assert np.isfinite(result.loss)
    assert 0 <= result.accuracy <= 1
