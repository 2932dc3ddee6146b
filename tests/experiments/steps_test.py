"""Parts of a training run: steps, evaluation, rows, folders."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from training_cases import random_dataset, random_examples

from experiments.configs import JOBS
from experiments.core.evaluation import Evaluator
from experiments.core.losses import LOSSES, squared_hinge
from experiments.core.network import split_model
from experiments.core.programs import Programs, TrainState, flip_share
from experiments.methods.method import Hyperparameters
from experiments.methods.rows import Row
from experiments.models import NETWORKS, Network
from experiments.models.feed_forward import digits_cnn

TWO_STAGE = Row(method="forward_backtrack", grid="binary", a=0.6, every=2, every_unit="steps")


@dataclasses.dataclass(frozen=True)
class Compiled:
    """One step forward and backtrack in every second step on small images, compiled once for several tests."""

    model: Network
    programs: Programs
    batches: list


@pytest.fixture(scope="module")
def compiled() -> Compiled:
    dataset = random_dataset("digits")
    model = digits_cnn(nnx.Rngs(0), 0.25)
    batches = list(dataset.train.shuffled_batches(16, seed=0, epoch=1))
    method = TWO_STAGE.build(Hyperparameters(lambda step: 0.01))
    return Compiled(model, Programs(model, squared_hinge, dataset, method, {False, True}, batches[0]), batches)


def test_flip_share_counts_over_all_weights():
    before = [jnp.array([[1, -1], [1, 1]], jnp.int8), jnp.array([[0, 1]], jnp.int8)]
    after = [jnp.array([[1, 1], [1, -1]], jnp.int8), jnp.array([[0, -1]], jnp.int8)]
    assert flip_share(before, after) == 3 / 6
    assert flip_share([], []) == 0


def test_evaluation_divides_once_over_parts_of_unequal_size(monkeypatch: pytest.MonkeyPatch):
    model = digits_cnn(nnx.Rngs(0), 0.25)
    _, params, batch_stats = split_model(model)
    dataset = random_dataset("digits")
    examples = dataset.train.first(50)
    whole = Evaluator(model, squared_hinge, dataset.prepare)(params, batch_stats, examples)
    monkeypatch.setattr("experiments.core.evaluation.EVALUATION_BATCH", 16)
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
    model = digits_cnn(nnx.Rngs(0), 0.25)
    method = Row(method="full_precision").build(Hyperparameters(lambda step: 0.01))
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


def test_the_training_program_of_the_experiments_reuses_its_whole_state():
    config = JOBS["mnist_small_mlp"]
    dataset = random_dataset(config.dataset)
    row = Row(method="forward_backtrack", grid="binary", a=0.6, every=1, every_unit="steps")
    method = row.build(Hyperparameters(lambda count: jnp.float32(1e-3)))
    model = NETWORKS[config.network](nnx.Rngs(0), 0.1)
    batch = next(dataset.train.shuffled_batches(16, 0, 1))
    programs = Programs(model, LOSSES[config.loss], dataset, method, [True], batch)
    carry = programs.init_state(model, 0), jnp.zeros(2)
    reused = programs.steps[True].memory_analysis().alias_size_in_bytes
    assert reused == sum(leaf.nbytes for leaf in jax.tree.leaves(carry))
