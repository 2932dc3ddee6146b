"""The training step of every network is lowered for TPU and CUDA on a machine that has neither."""

import dataclasses
import functools
import re

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from training_cases import random_dataset

from experiments.configs import JOBS
from experiments.core.losses import LOSSES
from experiments.core.network import split_model
from experiments.core.programs import initial_state, train_step
from experiments.data.augmentation import crop_and_flip
from experiments.methods.method import Hyperparameters
from experiments.methods.rows import Row
from experiments.models import NETWORKS

PLATFORMS = ("cpu", "cuda", "tpu")
JOB_OF = {job.network: job for job in JOBS.values()}  # of two jobs with one network the later one, which augments
TWO_STAGE = Row(method="forward_backtrack", grid="binary", a=0.6, every=1, every_unit="steps")
# The row, and its `two_stage`: a bool is known when the program is made, None stands for a traced bool.
STEPS = {
    "loss-aware": (Row(method="laq", grid="binary"), False),
    "two-stage": (TWO_STAGE, True),
    "lax.cond": (TWO_STAGE, None),
}
OTHER_ROWS = {
    "candidates": dataclasses.replace(TWO_STAGE, grid="linear3"),
    "exact": dataclasses.replace(TWO_STAGE, grid="ternary", solver="exact"),
    "alternating": dataclasses.replace(TWO_STAGE, grid="logarithmic3", solver="alternating"),
    "two scales": dataclasses.replace(TWO_STAGE, grid="ternary", scales=2),
    "optimistic": Row(method="optimistic", grid="ternary", a=0.6),
    "freezing": Row(method="laq_freezing", grid="ternary", threshold=0.01),
    "dampening": Row(method="laq_dampening", grid="ternary", dampening=0.1),
}


def export_step(network, row, two_stage, platforms=PLATFORMS):
    """The training step, batch statistics and counted flips included, at an eighth of the width."""
    job = JOB_OF[network]
    dataset = random_dataset(job.dataset)
    if job.dataset == "cifar10_augmented":
        dataset = dataclasses.replace(dataset, augment=crop_and_flip)  # random numbers and gathers are lowered too
    graph, params, batch_stats = split_model(nnx.eval_shape(lambda: NETWORKS[network](nnx.Rngs(0), 0.125)))
    method = row.build(Hyperparameters(lambda count: jnp.float32(1e-3), steps=100))
    step = functools.partial(train_step, graph, LOSSES[job.loss], dataset, method)
    state = jax.eval_shape(functools.partial(initial_state, method), params, batch_stats, np.uint32(0))
    arguments = state, jnp.zeros(2), next(dataset.train.shuffled_batches(8, 0, 1))
    if two_stage is None:
        arguments = jnp.asarray(True), *arguments
    else:
        step = functools.partial(step, two_stage)
    return jax.export.export(jax.jit(lambda *arguments: step(*arguments)), platforms=platforms)(*arguments)


def custom_calls(exported):
    """The targets of all custom calls, those inside of branches for single platforms too."""
    return set(re.findall(r"custom_call @([\w$.]+)", exported.mlir_module()))


def test_custom_calls_are_found_on_the_platform_that_has_them():
    def export(platform):
        return jax.export.export(jax.jit(jnp.linalg.cholesky), platforms=[platform])(jnp.eye(3))

    assert custom_calls(export("cpu")) == {"lapack_spotrf_ffi"}
    assert custom_calls(export("cuda")) == {"cusolver_potrf_ffi"}


# The networks differ in their passes alone, so every kind of step of one of them will do.
@pytest.mark.parametrize(
    ("network", "step"),
    [*((network, "two-stage") for network in NETWORKS), ("digits_cnn", "loss-aware"), ("digits_cnn", "lax.cond")],
)
def test_steps_need_no_custom_call_on_any_platform(network, step):
    """One program for three platforms: what differs between them is branches of it, where calls would be found."""
    row, two_stage = STEPS[step]
    exported = export_step(network, row, two_stage)
    assert exported.platforms == PLATFORMS
    assert custom_calls(exported) == set()


@pytest.mark.parametrize("name", OTHER_ROWS)
def test_no_solver_and_no_other_method_needs_a_custom_call(name):
    assert custom_calls(export_step("digits_cnn", OTHER_ROWS[name], True)) == set()


def test_a_traced_choice_is_one_program_with_one_branch_more():
    branches = [
        export_step("digits_cnn", TWO_STAGE, two_stage, ["tpu"]).mlir_module().count("stablehlo.case")
        for two_stage in (True, None)
    ]
    assert branches == [0, 1]
