"""Parts of a training run: steps, evaluation, rows, folders."""

import dataclasses
import json
from pathlib import Path
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from training_cases import random_dataset, random_examples, small_digits

from experiments import models
from experiments.config import MethodName
from experiments.configs import JOBS
from experiments.losses import squared_hinge
from experiments.methods import build
from experiments.rows import Row, expand
from experiments.run_folder import JobFolder
from experiments.steps import Evaluator, Programs, TrainState, flip_share, split_model

pytestmark = pytest.mark.usefixtures("compile_fast")


TWO_STAGE = Row(method="forward_backtrack", grid="binary", a=0.6, every=2, every_unit="steps")


@dataclasses.dataclass(frozen=True)
class Compiled:
    """One step forward and backtrack in every second step on small images, compiled once for several tests."""

    model: models.Network
    programs: Programs
    batches: list


@pytest.fixture(scope="module")
def compiled() -> Compiled:
    dataset = random_dataset("digits")
    model = models.digits_cnn(nnx.Rngs(0), 0.25)
    batches = list(dataset.train.shuffled_batches(16, seed=0, epoch=1))
    method = build(TWO_STAGE, lambda step: 0.01, (-1.0, 1.0))
    return Compiled(model, Programs(model, squared_hinge, dataset, method, {False, True}, batches[0]), batches)


@pytest.mark.parametrize("method", get_args(MethodName))
def test_every_method_can_store_the_first_moment_in_bfloat16(method: str):
    (row,) = expand(small_digits(methods=(method,), bits=2))
    params = jax.eval_shape(lambda: split_model(models.digits_cnn(nnx.Rngs(0), 0.25))[1])

    def dtypes(mu_dtype: str | None) -> dict[str, set]:
        built = build(row, lambda count: 0.1, (-1.0, 1.0), mu_dtype=mu_dtype, steps=8)
        state = jax.eval_shape(lambda params: built.optimizer.init(built.init(params)), params)
        found = {name: optax.tree_utils.tree_get_all_with_path(state, name) for name in ("mu", "nu")}
        return {
            name: {leaf.dtype for _, tree in trees for leaf in jax.tree.leaves(tree)} for name, trees in found.items()
        }

    assert dtypes("bfloat16") == {"mu": {jnp.dtype(jnp.bfloat16)}, "nu": {jnp.dtype(jnp.float32)}}
    assert dtypes(None) == {"mu": {jnp.dtype(jnp.float32)}, "nu": {jnp.dtype(jnp.float32)}}


def test_flip_share_counts_over_all_weights():
    before = [jnp.array([[1, -1], [1, 1]], jnp.int8), jnp.array([[0, 1]], jnp.int8)]
    after = [jnp.array([[1, 1], [1, -1]], jnp.int8), jnp.array([[0, -1]], jnp.int8)]
    assert flip_share(before, after) == 3 / 6
    assert flip_share([], []) == 0


def test_evaluation_divides_once_over_parts_of_unequal_size(monkeypatch: pytest.MonkeyPatch):
    model = models.digits_cnn(nnx.Rngs(0), 0.25)
    _, params, batch_stats = split_model(model)
    dataset = random_dataset("digits")
    examples = dataset.train.first(50)
    whole = Evaluator(model, squared_hinge, dataset.prepare)(params, batch_stats, examples)
    monkeypatch.setattr("experiments.steps.EVALUATION_BATCH", 16)
    parts = Evaluator(model, squared_hinge, dataset.prepare)(params, batch_stats, examples)
    scores = model(jnp.asarray(examples.images), training=False)
    np.testing.assert_allclose([whole.loss, parts.loss], squared_hinge(scores, examples.labels), rtol=1e-5)
    assert whole.accuracy == parts.accuracy == np.mean(np.argmax(scores, -1) == examples.labels)


def test_batch_statistics_and_flips_of_a_two_stage_step_are_those_of_its_first_pass(compiled: Compiled):
    programs, batches = compiled.programs, compiled.batches
    state, totals = programs.steps[False](programs.init_state(compiled.model, 0), jnp.zeros(2), batches[0])

    def step(two_stage: bool) -> tuple[TrainState, jax.Array]:
        return programs.steps[two_stage](*jax.tree.map(jnp.copy, (state, totals)), batches[1])

    (plain, plain_totals), (two_stage, two_stage_totals) = step(False), step(True)
    jax.tree.map(np.testing.assert_array_equal, plain.batch_stats, two_stage.batch_stats)
    np.testing.assert_array_equal(plain_totals, two_stage_totals)
    assert plain_totals[1] > 0
    difference = jax.tree.map(lambda x, y: jnp.max(jnp.abs(x - y)), plain.params, two_stage.params)
    assert all(largest > 0 for largest in jax.tree.leaves(difference))


def test_augmentation_has_a_new_key_in_every_step_and_run():
    seen = []

    def augment(images: jax.Array, key: jax.Array) -> jax.Array:
        jax.debug.callback(lambda bits: seen.append(int(bits)), jax.random.bits(key))
        return images

    dataset = dataclasses.replace(random_dataset("digits"), augment=augment)
    batch = next(dataset.train.shuffled_batches(16, seed=0, epoch=1))
    model = models.digits_cnn(nnx.Rngs(0), 0.25)
    method = build(Row(method="full_precision"), lambda step: 0.01, (-1.0, 1.0))
    programs = Programs(model, squared_hinge, dataset, method, {False}, batch)
    for seed in (0, 1):
        state, totals = programs.init_state(model, seed), jnp.zeros(2)
        for _ in range(3):
            state, totals = programs.steps[False](state, totals, batch)
    jax.effects_barrier()
    assert len(seen) == len(set(seen)) == 6


def test_batches_are_a_function_of_seed_and_epoch_without_repetition():
    examples = random_examples(50, (1, 1, 1), seed=0)

    def order(seed: int, epoch: int, start: int = 0) -> list:
        return [batch.images.ravel().tolist() for batch in examples.shuffled_batches(8, seed, epoch, start)]

    assert len(order(3, 2)) == 6
    assert len({pixel for batch in order(3, 2) for pixel in batch}) == 48
    assert order(3, 2) == order(3, 2)
    assert order(3, 2)[4:] == order(3, 2, start=4)
    assert order(3, 2) != order(3, 3)
    assert order(3, 2) != order(4, 2)


# Rows


@pytest.mark.parametrize(
    ("every", "unit", "expected"),
    [(1, "steps", [1, 2, 3, 4, 5, 6]), (2, "steps", [2, 4, 6]), (2, "epochs", [4, 5, 6]), (1, "epochs", range(1, 7))],
)
def test_periods_count_steps_or_whole_epochs_from_one(every: int, unit: str, expected: list):
    row = dataclasses.replace(TWO_STAGE, every=every, every_unit=unit)
    steps_per_epoch = 3
    two_stage = [step for step in range(1, 7) if row.gradient_evaluations((step - 1) // steps_per_epoch + 1, step) == 2]
    assert two_stage == list(expected)


def test_gradient_evaluations_of_the_controls_and_of_a_equal_to_one():
    assert Row(method="sam", grid="binary", rho=0.1).gradient_evaluations(1, 1) == 2
    assert Row(method="two_steps", grid="binary").gradient_evaluations(1, 1) == 2
    assert Row(method="laq", grid="binary").gradient_evaluations(1, 1) == 1
    assert dataclasses.replace(TWO_STAGE, a=1.0).gradient_evaluations(2, 2) == 1


def test_rows_of_a_configuration_and_their_names():
    config = dataclasses.replace(
        JOBS["mnist_lenet5"],
        methods=("forward_backtrack", "laq", "dorefa", "bwn", "sam"),
        quantizer="ternary",
        bits=2,
        solver="exact",
        scales=2,
        every=(1, 5),
    )
    rows = expand(config)
    assert [row.name for row in rows] == [
        "forward_backtrack-ternary-exact-2_scales-a0.6-every_1_steps",
        "forward_backtrack-ternary-exact-2_scales-a0.6-every_5_epochs",
        "laq-ternary-exact-2_scales",
        "dorefa-2_bits",
        "bwn",
        "sam-ternary-exact-2_scales-rho0.05",
    ]
    assert [row.label for row in rows][1:4] == [
        "forward-backtrack, ternary, exact, 2 scales, a = 0.6, every 5 epochs",
        "LAQ, ternary, exact, 2 scales",
        "DoReFa, 2 bits",
    ]


@pytest.mark.parametrize(
    ("method", "every", "epochs"),
    [("two_steps", 1, 10), ("laq", 1, 20), ("forward_backtrack", 1, 10), ("forward_backtrack", 4, 16)],
)
def test_equal_gradients_shorten_the_training(method: str, every: int, epochs: int):
    config = dataclasses.replace(JOBS["digits"], methods=(method,), every=(every,), budget="gradients")
    (row,) = expand(config)
    assert row.epochs(20) == epochs
    assert row.epochs(20) * sum(row.gradient_evaluations(1, step) for step in range(1, 21)) == 400


def test_the_laq_row_that_a_row_is_compared_with():
    binary, ternary, exact, linear = (
        Row(method="laq", grid=grid, solver=solver)
        for grid, solver in [("binary", None), ("ternary", None), ("ternary", "exact"), ("linear3", None)]
    )
    rows = [binary, ternary, exact, linear]
    expected = {
        Row(method="bwn"): binary,
        Row(method="binary_connect_stochastic"): binary,
        Row(method="dorefa", bits=1): binary,
        Row(method="twn"): ternary,
        Row(method="lsq", bits=2): ternary,
        Row(method="lsq", bits=3): linear,
        Row(method="lsq", bits=4): None,
        Row(method="two_steps", grid="ternary", solver="exact"): exact,
        Row(method="two_steps", grid="ternary", solver="alternating"): ternary,
        Row(method="full_precision"): None,
        binary: None,
    }
    assert {row: row.reference(rows) for row in expected} == expected
    assert Row(method="full_precision").reference([linear]) == linear


# Folders


def test_the_default_folder_is_new_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    folders = {JobFolder(JOBS["digits"], "digits").path for _ in range(3)}
    assert len(folders) == 3
    assert all(folder.parent == Path("runs") and folder.name.startswith("digits-") for folder in folders)


def test_a_folder_takes_new_rows_but_no_other_settings(tmp_path: Path):
    config = small_digits(output=tmp_path)
    JobFolder(config, "digits")
    JobFolder(dataclasses.replace(config, methods=("laq",), seeds=(7,), checkpoint_seconds=1.0), "digits")
    for change, message in [
        ({"epochs": 3}, "epochs = 2, not 3"),
        ({"learning_rate": 0.5}, "learning_rate = 0.01, not"),
    ]:
        with pytest.raises(ValueError, match=f"holds runs with {message}"):
            JobFolder(dataclasses.replace(config, **change), "digits")
    with pytest.raises(ValueError, match="data_name = digits, not other"):
        JobFolder(config, "other")
    assert json.loads((tmp_path / "job.json").read_text())["epochs"] == 2


def test_metrics_of_epochs_that_are_run_again_are_dropped_and_cut_lines_too(tmp_path: Path):
    folder = JobFolder(small_digits(output=tmp_path), "digits").run(TWO_STAGE, 0)
    for epoch in (1, 2, 3):
        folder.append_metrics({"epoch": epoch, "train_loss": float("inf") if epoch == 2 else 0.5})
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 4, "tra')
    folder.keep_metrics_before(3)
    lines = (folder.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"epoch": 1, "train_loss": 0.5}, {"epoch": 2, "train_loss": None}]
