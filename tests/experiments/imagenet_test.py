"""ImageNet: crops and streamed minibatches, against what they promise."""

import io
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from training_cases import equal

from experiments.core.evaluation import Evaluator
from experiments.core.losses import cross_entropy
from experiments.core.programs import Programs
from experiments.data import crops
from experiments.data.imagenet import imagenet, standardize
from experiments.data.streaming import Stream
from experiments.methods.method import Hyperparameters
from experiments.methods.rows import Row
from experiments.models import NETWORKS


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
    method = Row(method="laq", grid="binary").build(Hyperparameters(lambda step: 1e-3))
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
