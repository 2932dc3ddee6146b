"""Wrong arguments raise at construction or at the first use, with the argument, its value and what is allowed."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fobt

PARAMS = {"kernel": jnp.array([[0.5, -1.0, 2.0], [0.1, 0.2, -0.3]]), "bias": jnp.zeros(3)}
GRADS = jax.tree.map(jnp.ones_like, PARAMS)
NAN, INF = float("nan"), float("inf")


def grad_fn(weights):
    return jax.tree.map(lambda w: w - 1, weights)


def make(learning_rate=0.1, quantizer=fobt.binary(), **kwargs):  # noqa: B008 - immutable
    return fobt.forward_backtrack(learning_rate, quantizer, **kwargs)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [("a", value, r"in \(0, 1\]") for value in (0, -0.1, 1.5, NAN, np.float32(2))]
    + [("every", value, "integer of at least 1 or a predicate") for value in (0, -2, 1.5, NAN, INF, "2", None)]
    + [("learning_rate", value, "at least 0 and finite") for value in (-1, -1e-9, NAN, INF, np.float32(-1), None, "x")]
    + [("eps", value, "at least 0 and finite") for value in (-1e-8, NAN, INF, np.float32(-1))]
    + [(name, value, r"in \[0, 1\)") for name in ("b1", "b2") for value in (-0.1, 1, 1.5, NAN, np.float32(2))]
    + [("weight_bounds", value, "two increasing numbers") for value in ((1, -1), (1, 1), 1, (1, 2, 3), (NAN, 1))]
    + [("quantizer", value, r"made by fobt\.binary") for value in (None, "binary", fobt.binary)],
)
def test_construction(name, value, allowed):
    shown = "" if callable(value) else rf".*got .*{str(value).split('(')[-1].split(')')[0]}"
    with pytest.raises(ValueError, match=rf"{name} .*{allowed}{shown}"):
        make(**{name: value})


@pytest.mark.parametrize(
    "kwargs",
    [
        {"a": 1},
        {"a": np.float32(0.5)},
        {"a": 1e-9},
        {"every": 3},
        {"every": np.int32(3)},
        {"every": lambda count: count < 3},
        {"learning_rate": 0},
        {"learning_rate": optax.constant_schedule(0.1)},
        {"learning_rate": jnp.array(0.1)},
        {"b1": 0, "b2": 0.0, "eps": 0},
        {"weight_bounds": [-1, np.float32(1)]},
        {"grad_transform": optax.clip(1.0)},
    ],
)
def test_construction_with_values_at_the_border(kwargs):
    tx = make(**kwargs)
    updates, state = tx.update(GRADS, tx.init(PARAMS), PARAMS, grad_fn=grad_fn)
    assert state.count == 1
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(updates))


@pytest.mark.parametrize("kwargs", [{"b1": 1.0}, {"b2": -1.0}, {"eps": -1.0}])
def test_preconditioner(kwargs):
    ((name, value),) = kwargs.items()
    with pytest.raises(ValueError, match=rf"{name} must be .*got {value}"):
        fobt.adam_preconditioner(**kwargs)


@pytest.mark.parametrize("value", ["int8", jnp.uint8, "eight bits", 3.0])
def test_dtype_of_the_first_moment(value):
    with pytest.raises(ValueError, match=rf"mu_dtype must be a floating dtype or None, got {re.escape(repr(value))}"):
        make(mu_dtype=value)


def test_value_and_grad_wants_a_quantizer():
    with pytest.raises(ValueError, match=r"quantizer must be made by .*got 'binary'"):
        fobt.value_and_grad(jnp.sum, "binary")


def test_explicit_rule_that_selects_nothing():
    tx = make(quantizer=fobt.per_leaf(("weights", fobt.binary())))
    with pytest.raises(ValueError, match=r"selector 'weights' selects none .*\['bias', 'kernel'\]"):
        tx.init(PARAMS)


@pytest.mark.parametrize(
    "transform", [optax.trace(0.9), optax.scale_by_adam(), optax.chain(optax.clip(1.0), optax.scale_by_schedule(abs))]
)
def test_stateful_grad_transform(transform):
    with pytest.raises(ValueError, match="grad_transform must be stateless"):
        make(grad_transform=transform).init(PARAMS)


# --- Arguments of update -------------------------------------------------------------------------------------------


def update(grads=GRADS, state=None, params=PARAMS, **kwargs):
    tx = make()
    return tx.update(grads, tx.init(PARAMS) if state is None else state, params, **{"grad_fn": grad_fn, **kwargs})


def test_missing_params():
    with pytest.raises(ValueError, match=r"params must be given: update\(grads, state, params, grad_fn=grad_fn\)"):
        update(params=None)


def test_missing_grad_fn():
    tx = make()
    with pytest.raises((TypeError, ValueError), match="grad_fn"):
        tx.update(GRADS, tx.init(PARAMS), PARAMS)


@pytest.mark.parametrize("value", [None, GRADS, 3])
def test_grad_fn_that_is_no_function(value):
    with pytest.raises(ValueError, match="grad_fn must be a function from quantized weights to gradients, got "):
        update(grad_fn=value)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda w: w["kernel"], r"grad_fn returns must have the leaves of params, \['bias', 'kernel'\], got 1"),
        (lambda w: None, "grad_fn returns must have the leaves of params, .*got 0"),
        (lambda w: (1.0, w), "grad_fn returns must have the leaves of params, .*got 3"),
        (
            lambda w: {**w, "kernel": w["kernel"].T},
            r"grad_fn returns .* shapes .* got \(3, 2\) instead of \(2, 3\) at 'kernel'",
        ),
        (lambda w: jax.tree.map(jnp.sum, w), r"grad_fn returns .* shapes .* got \(\) instead of \(3,\) at 'bias'"),
    ],
)
@pytest.mark.parametrize("jit", [False, True])
def test_grad_fn_that_returns_something_else(returned, message, jit):
    call = (lambda: jax.jit(lambda grads: update(grads, grad_fn=returned))(GRADS)) if jit else None
    with pytest.raises(ValueError, match=message):
        (call or (lambda: update(grad_fn=returned)))()


@pytest.mark.parametrize(
    ("grads", "message"),
    [
        (
            {"kernel": GRADS["kernel"]},
            r"grads must have the leaves of params, .*, got 1: \['kernel'\]",
        ),
        (
            {**GRADS, "kernel": jnp.ones((3, 2))},
            r"grads must have the shapes of params, got \(3, 2\) instead",
        ),
        ({**GRADS, "bias": optax.MaskedNode()}, "grads must have the leaves of params"),
    ],
)
def test_grads_that_do_not_match_params(grads, message):
    with pytest.raises(ValueError, match=message):
        update(grads)


@pytest.mark.parametrize(
    "params", [{"kernel": PARAMS["kernel"]}, {**PARAMS, "kernel": jnp.ones((3, 2))}, [PARAMS["kernel"]]]
)
def test_state_of_other_params(params):
    with pytest.raises(ValueError, match=r"state .*params"):
        update(state=make().init(params))


@pytest.mark.parametrize("two_stage", [True, False])
def test_state_of_another_transformation(two_stage):
    with pytest.raises(ValueError, match="state"):
        update(state=optax.adam(0.1).init(PARAMS), two_stage=two_stage)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: optax.masked(tx, {"kernel": True, "bias": False}),
        lambda tx: optax.partition({"few": tx, "full": optax.adam(0.1)}, {"kernel": "few", "bias": "full"}),
    ],
)
def test_holes(wrap):
    with pytest.raises(ValueError, match=r"MaskedNode holes.* outside of optax\.masked .*fobt\.per_leaf"):
        wrap(make()).init(PARAMS)
    holed = {**PARAMS, "bias": optax.MaskedNode()}
    with pytest.raises(ValueError, match="MaskedNode holes"):
        update(holed, params=holed)
