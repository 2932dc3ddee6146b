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
from experiments.studies.tuning import offered


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
    assert offered("methods")["halved, a = 0.5"] == (METHODS["halved"], {"a": 0.5})
    assert "halved, a = 0.5" in offered("all")
    assert {"halved, binary", "halved, linear(2)"} <= compared("step_costs").keys()


def test_every_method_has_a_place_and_options_that_rows_have():
    fields = {field.name for field in dataclasses.fields(Row)}
    for name, entry in METHODS.items():
        assert entry.title or entry.tuned or entry.variants, name
        assert entry.make.__doc__, name
        if entry.title:
            assert set(entry.options) <= fields, name
        for options in (*entry.tuned.values(), *entry.variants.values()):
            assert set(entry.options) <= set(options) <= set(entry.all_options), name


def test_options_with_a_default_are_for_studies_alone():
    assert (METHODS["cage"].options, METHODS["cage"].all_options) == ((), ("strength", "silent"))
    assert METHODS["optimistic"].options == METHODS["optimistic"].all_options == ("a",)


def test_labels_of_the_study_of_tuned_methods_are_those_of_the_stored_results():
    assert list(offered("methods"))[:3] == ["LAQ", "Adam, straight-through, curvature 1", "LAQ with NAdam"]
    assert len(offered("methods")) == 26
    assert len(offered("variants")) == 10
    assert offered("all") == offered("methods") | offered("variants")
