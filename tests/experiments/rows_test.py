"""The rows of a table: their names, gradient evaluations and lengths, and the row that each is compared with."""

import dataclasses

import pytest

from experiments.configs import JOBS
from experiments.methods.rows import Row

TWO_STAGE = Row(method="forward_backtrack", grid="binary", a=0.6, every=2, every_unit="steps")


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
    rows = config.rows()
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
    (row,) = config.rows()
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
