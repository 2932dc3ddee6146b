"""The registry of methods: what one decorated function gives to every comparison."""

import dataclasses

import optax
import pytest
from training_cases import small_digits

import fobt
from experiments.costs.steps import compared
from experiments.methods.method import Hyperparameters, Method
from experiments.methods.registry import METHODS, register
from experiments.methods.rows import Row
from experiments.studies.comparison import offered


@pytest.fixture
def halved():
    """A method with an option, registered for one test."""

    @register("halved", gradients=2, tuned={"halved, a = 0.5": {"a": 0.5}}, step_costs="halved")
    def halved(hyper: Hyperparameters, quantizer: fobt.Quantizer, *, a: float) -> Method:
        return Method(optax.chain(hyper.bounded_adam(quantizer), optax.scale(a)), quantizer)

    yield
    del METHODS["halved"]


@pytest.mark.usefixtures("halved")
def test_a_registered_method_is_in_every_comparison():
    (row,) = small_digits(methods=("halved",), a=0.3, quantizer="ternary").rows()
    assert (row.name, row.label) == ("halved-ternary-a0.3", "halved, ternary, a = 0.3")
    assert row.gradient_evaluations(1, 1) == 2
    assert row.build(Hyperparameters(0.1)).quantizer == fobt.ternary()
    assert offered("ternary")["halved, a = 0.5"] == (METHODS["halved"], {"a": 0.5})
    assert {"halved, binary", "halved, linear(2)"} <= compared("step_costs").keys()


def test_every_method_has_a_place_and_options_that_rows_have():
    fields = {field.name for field in dataclasses.fields(Row)}
    for name, entry in METHODS.items():
        assert entry.title or entry.tuned, name
        assert entry.make.__doc__, name
        if entry.title:
            assert set(entry.options) <= fields, name
        for options in entry.tuned.values():
            required = set(entry.options) - ({"bits"} if entry.bits else set())
            assert required <= set(options) <= set(entry.all_options), name


def test_options_with_a_default_are_for_studies_alone():
    assert (METHODS["cage"].options, METHODS["cage"].all_options) == ((), ("strength", "silent"))
    assert METHODS["optimistic"].options == METHODS["optimistic"].all_options == ("a",)


def test_a_grid_is_offered_the_methods_that_have_it():
    binary, ternary = offered("binary"), offered("ternary")
    assert {"LAQ", "two LAQ steps", "DoReFa"} <= binary.keys() & ternary.keys()
    assert {"BinaryConnect"} <= binary.keys() - ternary.keys()
    assert {"TWN", "LSQ"} <= ternary.keys() - binary.keys()
