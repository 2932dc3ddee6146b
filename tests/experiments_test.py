"""The experiments: their parts against hand-computed values, and every job in its quick form."""

import dataclasses
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
from flax import nnx
from rich.console import Console

import fobt
from experiments import data, models, train
from experiments.config import TrainConfig
from experiments.configs import JOBS
from experiments.data import Dataset, Split
from experiments.losses import squared_hinge
from experiments.methods import Method, build_methods
from experiments.progress import ProgressDisplay
from experiments.run_folder import RunFolder
from experiments.schedules import LAQ_MNIST, PAPER_MNIST, CosineDecay
from experiments.steps import Evaluator, Programs, TrainState, bits_per_weight, flip_share, split_model
from experiments.summary import summarize


@pytest.fixture(scope="module", autouse=True)
def compile_fast():
    """These tests compile much and run little."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def random_split(count: int, shape: tuple[int, int, int], seed: int) -> Split:
    """Images of noise with a brighter row that gives away the label."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int32) % 10
    images = rng.uniform(-1, 0, (count, *shape)).astype(np.float32)
    images[np.arange(count), labels % shape[0]] += 1
    return Split(images, labels)


def random_mnist() -> Dataset:
    return Dataset(*(random_split(count, (28, 28, 1), seed) for seed, count in enumerate((260, 30, 30))))


@dataclasses.dataclass(frozen=True)
class Digits:
    """One step forward and backtrack in every second step on a few digits, compiled once for several tests."""

    config: TrainConfig
    method: Method
    model: models.FeedForward
    dataset: Dataset
    programs: Programs


@pytest.fixture(scope="module")
def digits() -> Digits:
    config = dataclasses.replace(
        JOBS["digits"], methods=("forward_backtrack",), every=(2,), epochs=2, batch_size=16, seeds=(0,)
    )
    (method,) = build_methods(config, lambda step: 0.01)
    model = models.digits_cnn(nnx.Rngs(0))
    dataset = jax.device_put(data.digits().first(64))
    return Digits(config, method, model, dataset, Programs(model, method, {False, True}, dataset.train, 16))


# Losses, networks, data, schedules


def test_squared_hinge_is_the_mean_over_examples_and_classes():
    scores = jnp.array([[0.5, -2.0, 0.0], [1.5, 0.25, -0.5]])
    labels = jnp.array([0, 1])
    # Margins t·s: 0.5, 2, 0 and -1.5, 0.25, 0.5; squared violations 0.25, 0, 1 and 6.25, 0.5625, 0.25.
    np.testing.assert_allclose(squared_hinge(scores, labels), (0.25 + 0 + 1 + 6.25 + 0.5625 + 0.25) / 6, rtol=1e-6)


@pytest.mark.parametrize("size", [4, 5])
def test_max_pool_has_the_values_and_gradients_of_flax(size: int):
    images = jax.random.normal(jax.random.key(0), (2, size, size, 3))
    weights = jax.random.normal(jax.random.key(1), (2, 2, 2, 3))

    def reference(images: jax.Array) -> jax.Array:
        return nnx.max_pool(images, window_shape=(2, 2), strides=(2, 2))

    np.testing.assert_array_equal(models.max_pool(images), reference(images))
    gradient, expected = (
        jax.grad(lambda x, pool=pool: jnp.sum(weights * pool(x)))(images) for pool in (models.max_pool, reference)
    )
    np.testing.assert_array_equal(gradient, expected)


@pytest.mark.parametrize(
    ("network", "weights", "units"),
    [
        ("digits_cnn", [9 * 1 * 16, 9 * 16 * 32, 2 * 2 * 32 * 64, 64 * 10], [16, 32, 64, 10]),
        ("lenet5", [9 * 1 * 20, 9 * 20 * 50, 7 * 7 * 50 * 500, 500 * 10], [20, 50, 500, 10]),
        ("mlp", [784 * 2048, 2048 * 2048, 2048 * 2048, 2048 * 10], [2048, 2048, 2048, 10]),
    ],
)
def test_networks_have_their_weights_and_a_normalisation_after_each(network: str, weights: list, units: list):
    shapes = nnx.eval_shape(lambda: models.NETWORKS[network](nnx.Rngs(0)))
    leaves = jax.tree.leaves(nnx.as_pure(nnx.state(shapes, nnx.Param)))
    assert sorted(leaf.size for leaf in leaves if leaf.ndim >= 2) == sorted(weights)
    assert sorted(leaf.size for leaf in leaves if leaf.ndim < 2) == sorted(2 * units)  # scale and shift
    averages = jax.tree.leaves(nnx.as_pure(nnx.state(shapes, nnx.BatchStat)))
    assert sorted(leaf.size for leaf in averages) == sorted(2 * units)  # mean and variance


def test_initial_weights_are_uniform_in_the_bounds_of_laq():
    model = models.digits_cnn(nnx.Rngs(0))
    for kernel, fans in [
        (model.convolutions[1].conv.kernel[...], 9 * 16 + 9 * 32),
        (model.hidden[0].dense.kernel[...], 128 + 64),
    ]:
        bound = np.sqrt(1.5 / fans)
        assert 0.99 * bound < jnp.max(jnp.abs(kernel)) <= bound
        np.testing.assert_allclose(jnp.std(kernel), bound / np.sqrt(3), rtol=0.03)


def test_digits_are_centred_stratified_and_split_without_overlap():
    dataset = data.digits()
    parts = (dataset.train, dataset.validation, dataset.test)
    assert [len(part) for part in parts] == [1000, 297, 500]
    images = np.concatenate([part.images for part in parts])
    assert images.shape == (1797, 8, 8, 1)
    assert (images.min(), images.max()) == (-1.0, 1.0)
    for part in parts:
        share = np.bincount(part.labels, minlength=10) / len(part)
        np.testing.assert_allclose(share, 0.1, atol=0.01)
    original = np.concatenate([part.images.reshape(len(part), -1) for part in parts])
    from_sklearn = data.load_digits().data / 8 - 1
    np.testing.assert_array_equal(np.sort(original.sum(1)), np.sort(from_sklearn.sum(1)))


class Records(list):
    """What tfds.data_source returns, with records from memory instead of ArrayRecord files."""

    def __getitems__(self, keys: range) -> list:
        return [self[key] for key in keys]


def test_mnist_is_centred_and_keeps_the_last_sixth_for_validation():
    def as_data_source(self: object, split: str, **kwargs: object) -> Records:
        count = {"train": 12, "test": 3}[split]
        return Records({"image": np.full((28, 28, 1), 17 * i, np.uint8), "label": i % 10} for i in range(count))

    with tfds.testing.mock_data(as_data_source_fn=as_data_source):
        dataset = data.mnist()
    assert dataset.train.labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert dataset.validation.labels.tolist() == [0, 1]
    assert dataset.test.labels.tolist() == [0, 1, 2]
    np.testing.assert_allclose(dataset.train.images[3], 51 / 127.5 - 1, rtol=1e-6)
    assert dataset.train.images.dtype == np.float32
    assert dataset.train.images.shape == (10, 28, 28, 1)


def test_schedules_are_those_of_the_paper_and_of_laq():
    def by_epoch(schedule, epochs: int, *of_interest: int) -> list[float]:
        rate = schedule.in_steps(schedule.learning_rate, epochs, steps_per_epoch=10)
        return [float(rate(10 * epoch)) for epoch in of_interest]

    np.testing.assert_allclose(by_epoch(PAPER_MNIST, 50, 0, 4, 5, 10, 19), [5e-3, 5e-3, 5e-4, 5e-5, 5e-6], rtol=1e-5)
    np.testing.assert_allclose(by_epoch(LAQ_MNIST, 50, 0, 14, 15, 24, 25), [1e-2, 1e-2, 1e-3, 1e-3, 1e-4], rtol=1e-5)
    np.testing.assert_allclose(by_epoch(CosineDecay(0.1), 40, 0, 20, 40), [0.1, 0.05, 0.0], rtol=1e-5, atol=1e-9)


# Steps and measurements


def test_flip_share_counts_over_all_weights():
    before = [jnp.array([[1, -1], [1, 1]], jnp.int8), jnp.array([[0, 1]], jnp.int8)]
    after = [jnp.array([[1, 1], [1, -1]], jnp.int8), jnp.array([[0, -1]], jnp.int8)]
    assert flip_share(before, after) == 3 / 6
    assert flip_share([], []) == 0


def test_bits_per_weight_include_scales_and_leave_vectors_out():
    tree = {"kernel": jnp.ones((8, 16)), "scale": jnp.ones(16)}
    assert bits_per_weight(fobt.quantize(tree, None, fobt.binary())) == 1 + 32 / 128
    assert bits_per_weight(fobt.quantize(tree, None, fobt.linear(3))) == 3 + 32 / 128
    assert bits_per_weight(fobt.quantize(tree, None, fobt.identity())) == 32


def test_evaluation_divides_once_over_parts_of_unequal_size(monkeypatch: pytest.MonkeyPatch):
    model = models.digits_cnn(nnx.Rngs(0))
    _, params, batch_stats = split_model(model)
    split = data.digits().train.first(50)
    whole = Evaluator(model)(params, batch_stats, split)
    monkeypatch.setattr("experiments.steps.EVALUATION_BATCH", 16)
    parts = Evaluator(model)(params, batch_stats, split)
    scores = model(jnp.asarray(split.images), training=False)
    np.testing.assert_allclose([whole.loss, parts.loss], squared_hinge(scores, split.labels), rtol=1e-5)
    assert whole.accuracy == parts.accuracy == np.mean(np.argmax(scores, -1) == split.labels)


def test_batch_statistics_and_flips_of_a_two_stage_step_are_those_of_its_first_pass(digits: Digits):
    programs, images = digits.programs, digits.dataset.train
    batches = np.arange(64, dtype=np.int32).reshape(4, 16)
    state, totals = programs.steps[False](programs.init_state(digits.model), jnp.zeros(2), images, batches[0])

    def step(two_stage: bool) -> tuple[TrainState, jax.Array]:
        return programs.steps[two_stage](*jax.tree.map(jnp.copy, (state, totals)), images, batches[1])

    (plain, plain_totals), (two_stage, two_stage_totals) = step(False), step(True)
    jax.tree.map(np.testing.assert_array_equal, plain.batch_stats, two_stage.batch_stats)
    np.testing.assert_array_equal(plain_totals, two_stage_totals)
    assert plain_totals[1] > 0
    difference = jax.tree.map(lambda x, y: jnp.max(jnp.abs(x - y)), plain.params, two_stage.params)
    assert all(largest > 0 for largest in jax.tree.leaves(difference))


@pytest.mark.parametrize(
    ("every", "unit", "expected"),
    [(1, "steps", [1, 2, 3, 4, 5, 6]), (2, "steps", [2, 4, 6]), (2, "epochs", [4, 5, 6]), (1, "epochs", range(1, 7))],
)
def test_periods_count_steps_or_whole_epochs_from_one(every: int, unit: str, expected: list):
    config = dataclasses.replace(JOBS["digits"], methods=("forward_backtrack",), every=(every,), every_unit=unit)
    (method,) = build_methods(config, lambda step: 0.01)
    steps_per_epoch = 3
    two_stage = [step for step in range(1, 7) if method.is_two_stage((step - 1) // steps_per_epoch + 1, step)]
    assert two_stage == list(expected)


def test_several_periods_are_rows_of_one_table():
    config = dataclasses.replace(JOBS["mnist_lenet5"], methods=("forward_backtrack", "laq"), every=(1, 5))
    methods = build_methods(config, lambda step: 0.01)
    assert [method.label for method in methods] == [
        "forward-backtrack, every step",
        "forward-backtrack, every 5 epochs",
        "LAQ",
    ]


def test_batches_are_a_function_of_seed_and_epoch_without_repetition():
    order = train.batch_order(seed=3, epoch=2, examples=50, batch_size=8)
    assert order.shape == (6, 8)
    assert len(np.unique(order)) == 48
    np.testing.assert_array_equal(order, train.batch_order(3, 2, 50, 8))
    assert not np.array_equal(order, train.batch_order(3, 3, 50, 8))
    assert not np.array_equal(order, train.batch_order(4, 2, 50, 8))


def test_summary_has_mean_and_sample_deviation_per_method():
    result = {"method": "laq", "label": "LAQ", "train_loss": 0.5, "gradient_evaluations": 10, "bits_per_weight": 1.0}
    runs = [result | {"test_accuracy": accuracy, "seconds": 2 * accuracy} for accuracy in (0.9, 0.8)]
    (row,) = summarize(runs)
    assert row["seeds"] == 2
    np.testing.assert_allclose(row["test_accuracy_mean"], 0.85)
    np.testing.assert_allclose(row["test_accuracy_std"], np.sqrt(0.005))
    np.testing.assert_allclose(row["seconds"], 1.7)
    (single,) = summarize(runs[:1])
    assert single["test_accuracy_std"] is None


# Whole jobs


def test_the_same_seed_gives_the_same_result_and_another_seed_another(digits: Digits, tmp_path: Path):
    def results(seed: int, name: str) -> list[dict]:
        folder = RunFolder(dataclasses.replace(digits.config, output=tmp_path / name))
        display = ProgressDisplay(Console(file=io.StringIO()), runs=1, epochs=2, steps_per_epoch=4)
        evaluator = Evaluator(digits.model)
        result = train.train_run(
            digits.config, digits.method, seed, digits.programs, evaluator, digits.dataset, folder, display
        )
        return [{k: v for k, v in record.items() if k != "seconds"} for record in [result, *folder.read_metrics()]]

    first = results(5, "first")
    assert first == results(5, "again")
    assert first[0]["train_loss"] != results(6, "other")[0]["train_loss"]
    assert first[0]["gradient_evaluations"] == 8 + 4


@pytest.mark.parametrize(
    ("argv", "labels"),
    [
        ("digits", ["full precision", "LAQ", "forward-backtrack, every step"]),
        ("mnist_lenet5 --methods forward_backtrack", ["forward-backtrack, every 2 epochs"]),
        ("mnist_mlp --methods forward_backtrack", ["forward-backtrack, every 2 epochs"]),
        ("digits --methods laq --quantizer logarithmic --bits 3", ["LAQ"]),
    ],
)
def test_the_quick_form_of_every_job_runs_and_leaves_its_folder(
    argv: str, labels: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(train, "DATASETS", {"digits": data.digits, "mnist": random_mnist})
    folder = tmp_path / "results"
    train.main([*argv.split(), "--quick", "--output", str(folder)])

    files = {path.name for path in folder.iterdir()}
    assert files == {"config.json", "metrics.jsonl", "summary.json", "summary.md", "loss_and_flips.png"}
    saved = json.loads((folder / "config.json").read_text())
    assert saved["config"]["job"] == argv.split()[0]
    assert saved["config"]["epochs"] == 2
    assert saved["environment"]["versions"]["jax"] == jax.__version__

    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(line["label"], line["epoch"]) for line in metrics] == [(label, n) for label in labels for n in (1, 2)]
    for line in metrics:
        assert (line["flip_share"] is None) == (line["label"] == "full precision")

    summary = json.loads((folder / "summary.json").read_text())
    steps = metrics[-1]["steps"]
    costs = {"full precision": steps, "LAQ": steps, "forward-backtrack, every step": 2 * steps}
    bits = {"full precision": 32} if "--bits 3" not in argv else {"LAQ": 3}
    for row, label in zip(summary["table"], labels, strict=True):
        assert row["label"] == label
        assert row["gradient_evaluations"] == costs.get(label, 1.5 * steps)  # half of the steps are two-stage
        assert row["bits_per_weight"] == pytest.approx(bits.get(label, 1), abs=0.01)
    assert all(0 <= run["test_accuracy"] <= 1 for run in summary["runs"])
    printed = capsys.readouterr().out
    assert all(label in printed and f"| {label} " in (folder / "summary.md").read_text() for label in labels)
    assert (folder / "loss_and_flips.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "quantizer"),
    [
        ({}, fobt.binary()),
        ({"bits": 1}, fobt.binary()),
        ({"quantizer": "ternary"}, fobt.ternary()),
        ({"bits": 2}, fobt.linear(2)),
        ({"bits": 4, "quantizer": "logarithmic"}, fobt.logarithmic(4)),
    ],
)
def test_quantizer_and_bits_choose_the_grid(options: dict, quantizer: fobt.Quantizer):
    assert dataclasses.replace(JOBS["digits"], **options).make_quantizer() == quantizer


def test_an_interrupted_job_keeps_its_finished_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    train_run: Callable[..., dict] = train.train_run

    def interrupted_run(config: TrainConfig, method: object, seed: int, *rest: object) -> dict:
        if seed == 1:
            raise KeyboardInterrupt
        return train_run(config, method, seed, *rest)

    monkeypatch.setattr(train, "train_run", interrupted_run)
    with pytest.raises(SystemExit) as exit_info:
        train.main(["--methods", "full_precision", "--epochs", "1", "--limit", "64", "--output", str(tmp_path)])
    assert exit_info.value.code == 130
    assert str(tmp_path) in capsys.readouterr().err
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [run["seed"] for run in summary["runs"]] == [0]


def test_the_default_folder_is_new_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    folders = {RunFolder(JOBS["digits"]).path for _ in range(3)}
    assert len(folders) == 3
    assert all(folder.parent == Path("runs") and folder.name.startswith("digits-") for folder in folders)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("digit", "unknown job 'digit': choose one of digits, mnist_lenet5, mnist_mlp"),
        ("--bitz 3", "--bitz"),
        ("--bits two", "--bits"),
        ("--bits 9", "bits must be .*2 to 8, got 9"),
        ("--bits 2 --quantizer binary", "--bits must be 1 for binary weights, got 2"),
        ("--quantizer linear", "--bits must be given for linear weights"),
        ("--methods laq momentum", "momentum"),
        ("--methods laq laq", "--methods must be one or more different values"),
        ("--a 0", r"--a must be in \(0, 1\], got 0"),
        ("--every 0", "--every must be at least 1, got 0"),
        ("--every-unit batches", "batches"),
        ("--epochs 0", "--epochs must be at least 1, got 0"),
        ("--epochs", "--epochs"),
        ("--batch-size 5000", "--batch-size must be at most 1000, the training images, got 5000"),
        ("--seeds -1", "--seeds must be at least 0, got -1"),
        ("--learning-rate nan", "--learning-rate must be positive and finite, got nan"),
        ("--weight-bounds 1 -1", "--weight-bounds must be two increasing numbers"),
        ("--schedule paper", "--schedule must be one of cosine, got paper"),
        ("mnist_mlp --schedule cosine", "--schedule must be one of paper, laq, got cosine"),
        ("--output a_file", "cannot write results to a_file"),
        ("--output a_file/below", "cannot write results to a_file"),
        ("--output full_folder", "cannot write results to full_folder: it is not empty"),
    ],
)
def test_a_mistake_gives_one_line_and_code_two(
    argv: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    Path("a_file").write_text("kept")
    Path("full_folder").mkdir()
    Path("full_folder", "config.json").write_text("kept")
    with pytest.raises(SystemExit, match="2"):
        train.main(argv.split())
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("python -m experiments.train: ")
    assert re.search(message, error)
    assert Path("a_file").read_text() == Path("full_folder", "config.json").read_text() == "kept"


def test_a_missing_data_set_gives_one_line_that_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    find = tfds.data_source
    monkeypatch.setattr(tfds, "data_source", lambda name, **options: find(name, data_dir=tmp_path, **options))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(SystemExit, match="1"):
        train.main(["mnist_lenet5"])
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"mnist is not in {tmp_path}" in error
    assert "tfds build mnist --file_format=array_record" in error


def test_help_lists_the_jobs(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="0"):
        train.main(["--help"])
    printed = capsys.readouterr().out
    assert all(job in printed for job in JOBS)
