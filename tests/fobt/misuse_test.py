"""Errors of use that would train on in silence: each raises, with a sentence that says what to write."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fobt

PARAMS = {"first": jnp.array([[0.5, -1.0], [2.0, 0.1]]), "second": jnp.array([[0.3, 0.2]]), "bias": jnp.zeros(2)}
STEP = 0.1


def loss_fn(weights):
    return sum(jnp.sum((leaf - 1) ** 2) for leaf in jax.tree.leaves(weights))


def per_leaf(first, **default):
    return fobt.per_leaf(("first", first), **default)


# --- One quantizer, given twice -----------------------------------------------------------------------------------

DIFFERENT = {
    "grid": (fobt.binary(), fobt.ternary(), "first"),
    "bits": (fobt.linear(3), fobt.linear(4), "first"),
    "solver": (fobt.ternary(), fobt.ternary(solver="exact"), "first"),
    "granularity": (fobt.binary(), fobt.binary(granularity=fobt.per_channel()), "first"),
    "scales": (fobt.ternary(), fobt.ternary(scale_per_sign=True), "first"),
    "leaves": (fobt.binary(), per_leaf(fobt.binary()), "second"),
    "default": (per_leaf(fobt.binary()), per_leaf(fobt.binary(), default=fobt.linear(3)), "second"),
    "full precision in the optimizer": (fobt.full_precision(), fobt.binary(), "first"),
}
SAME = {
    "same": (fobt.binary(), fobt.binary()),
    "equal per_leaf": (per_leaf(fobt.binary()), per_leaf(fobt.binary())),
    "per_leaf that chooses what the default would": (per_leaf(fobt.binary(), default=fobt.binary()), fobt.binary()),
    "two bits are ternary": (fobt.ternary(), fobt.linear(2)),
    "weights as they are": (fobt.binary(), fobt.full_precision()),
}


def train_step(tx, quantizer, jit=False, **kwargs):
    """One step with the gradients of `quantizer`."""
    tx = optax.with_extra_args_support(tx)
    state = tx.init(PARAMS)

    def step(params, state):
        # The second moment of a new state counts for none of this.
        _, grads, grad_fn = fobt.value_and_grad(loss_fn, quantizer)(params, None)
        return tx.update(grads, state, params, grad_fn=grad_fn, **kwargs)

    return (jax.jit(step) if jit else step)(PARAMS, state)


def two_stage(quantizer):
    return fobt.forward_backtrack(STEP, quantizer)


def tracked(quantizer):
    return fobt.oscillations.track_oscillations(optax.adam(STEP), quantizer)


def frozen(quantizer):
    return fobt.oscillations.freeze_oscillations(optax.adam(STEP), quantizer, 0.1)


WRAPPED = {
    "forward_backtrack": two_stage,
    "in a chain": lambda quantizer: optax.chain(optax.clip(1.0), two_stage(quantizer)),
    "apply_if_finite": lambda quantizer: optax.apply_if_finite(two_stage(quantizer), 2),
    "tracked outside": lambda quantizer: fobt.oscillations.track_oscillations(
        two_stage(quantizer), lambda params: NO_CODES
    ),
    "tracked": tracked,
    "frozen": frozen,
}
NO_CODES = jax.tree.map(lambda leaf: jnp.sign(leaf).astype(jnp.int8), PARAMS)


@pytest.mark.slow
@pytest.mark.parametrize("case", DIFFERENT)
def test_gradients_of_another_quantizer(case):
    ours, theirs, leaf = DIFFERENT[case]
    with pytest.raises(ValueError, match=rf"quantizer must be the same .* at leaf '{leaf}' .* give it to both"):
        train_step(two_stage(ours), theirs)


@pytest.mark.parametrize("name", ["in a chain", "apply_if_finite", "tracked outside", "tracked", "frozen"])
def test_gradients_of_another_quantizer_in_a_wrapper(name):
    with pytest.raises(ValueError, match="quantizer must be the same"):
        train_step(WRAPPED[name](fobt.binary()), fobt.ternary(), jit=True)


@pytest.mark.slow
@pytest.mark.parametrize("case", SAME)
@pytest.mark.parametrize("name", ["forward_backtrack", "tracked", "frozen"])
def test_gradients_of_the_same_quantizer(name, case):
    ours, theirs = SAME[case]
    train_step(WRAPPED[name](ours), theirs)


@pytest.mark.slow
def test_functions_of_ones_own_know_no_quantizer():
    tx = two_stage(fobt.binary())
    grads = jax.grad(loss_fn)(PARAMS)
    tx.update(grads, tx.init(PARAMS), PARAMS, grad_fn=jax.grad(loss_fn))


@pytest.mark.parametrize("optimistic", [False, True])
def test_trial_params_of_another_quantizer(optimistic):
    tx = two_stage(fobt.binary())
    tx = fobt.optimistic(tx) if optimistic else tx
    state = tx.init(PARAMS)
    with pytest.raises(ValueError, match=r"at leaf 'first' .*trial_params has .*bits=2.*the optimizer .*bits=1"):
        fobt.quantized_trial_params(PARAMS, state, fobt.ternary(), tx)
    for quantizer in (fobt.binary(), fobt.full_precision()):
        fobt.quantized_trial_params(PARAMS, state, quantizer, tx)


# --- The optimistic form with two gradients -----------------------------------------------------------------------


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("wrap", [lambda tx: tx, lambda tx: fobt.oscillations.track_oscillations(tx, fobt.binary())])
def test_optimistic_with_gradients_of_the_current_point(wrap, jit):
    tx = wrap(fobt.optimistic(two_stage(fobt.binary())))
    with pytest.raises(ValueError, match=r"grads must be taken at fobt.quantized_trial_params\(.* without grad_fn"):
        train_step(tx, fobt.binary(), jit)


@pytest.mark.slow
def test_optimistic_ignores_other_gradient_functions():
    """Those of a plain step, of one's own, and of weights that the trial point has given."""
    tx = fobt.oscillations.track_oscillations(
        fobt.optimistic(two_stage(fobt.binary())), fobt.binary(), full_precision_gradient=True
    )
    state = tx.init(PARAMS)
    trial = fobt.quantized_params(PARAMS, state.inner, fobt.binary())
    _, grads, grad_fn = fobt.value_and_grad(loss_fn, fobt.full_precision())(trial, None)
    got = tx.update(grads, state, PARAMS, grad_fn=grad_fn)
    expected = tx.update(grads, state, PARAMS, grad_fn=jax.grad(loss_fn))
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    train_step(tx, fobt.binary(), two_stage=False)


# --- Arguments that would be ignored ------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [{"b1": 5.0}, {"b1": 0.8}, {"b2": 0.99}, {"eps": -3.0}, {"mu_dtype": "bfloat16"}])
def test_adams_arguments_beside_a_preconditioner(given):
    ((name, _),) = given.items()
    message = rf"{name} must be left out with a preconditioner.*adam_preconditioner\({name}=\.\.\.\)"
    with pytest.raises(ValueError, match=message):
        fobt.forward_backtrack(STEP, fobt.binary(), preconditioner=fobt.adam_preconditioner(), **given)


@pytest.mark.parametrize("given", [{}, {"b1": 0.9}, {"b1": np.float32(0.9), "b2": jnp.float32(0.999)}, {"eps": 1e-8}])
def test_defaults_beside_a_preconditioner(given):
    fobt.forward_backtrack(STEP, fobt.binary(), preconditioner=fobt.adam_preconditioner(b1=0.5), **given)


# --- What is missing, swapped, or of another optimizer ------------------------------------------------------------


def test_a_missing_grad_fn():
    tx = two_stage(fobt.binary())
    with pytest.raises(ValueError, match=r"grad_fn must be .*got NoneType\..*fobt\.value_and_grad makes: .*grad_fn ="):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS)


def test_loss_aware_quantization_needs_no_grad_fn():
    tx = fobt.forward_backtrack(STEP, fobt.binary(), a=1)
    _, state = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    assert state.count == 1


STATES = {
    r"got tuple \(ScaleByAdamState, EmptyState, .*\)\. Its part state\[0\] may be meant": optax.adamw(STEP).init(
        PARAMS
    ),
    r"got tuple \(EmptyState, tuple\)\. Its part state\[1\]\[0\] may be meant": optax.chain(
        optax.clip(1.0), optax.adamw(STEP)
    ).init(PARAMS),
    r"got MultiStepsState\. Its part state\.inner_opt_state\[0\] may be meant": optax.MultiSteps(
        optax.adam(STEP), 2
    ).init(PARAMS),
    r"ScaleByAdamState, got OptimisticState": fobt.optimistic(two_stage(fobt.binary())).init(PARAMS),
    r"ScaleByAdamState, got dict": PARAMS,
    r"ScaleByAdamState, got NoneType": None,
    r"shape \(2, 2\) at 'mu/first', got \(3,\)": two_stage(fobt.binary()).init(PARAMS | {"first": jnp.ones(3)}),
    r"of 7 leaves, got one of 9, which differs at \['mu/more', 'nu/more'\]": two_stage(fobt.binary()).init(
        PARAMS | {"more": jnp.ones(3)}
    ),
}


@pytest.mark.parametrize("message", STATES)
def test_the_state_of_something_else(message):
    with pytest.raises(ValueError, match=message) as error:
        two_stage(fobt.binary()).update(PARAMS, STATES[message], PARAMS, grad_fn=jax.grad(loss_fn))
    assert len(str(error.value)) < 300


class Layer:
    """A model that is a pytree with a function among its leaves, as those of Equinox."""

    def __init__(self, kernel, activation):
        self.kernel, self.activation = kernel, activation


jax.tree_util.register_pytree_with_keys(
    Layer,
    lambda layer: ([(jax.tree_util.GetAttrKey(name), leaf) for name, leaf in vars(layer).items()], None),
    lambda _, leaves: Layer(*leaves),
)


@pytest.mark.parametrize("leaf", [jax.nn.relu, jnp.tanh, "relu"])
def test_a_model_that_is_not_partitioned(leaf):
    model = {"layers": [Layer(jnp.ones((2, 2)), leaf)]}
    message = (
        rf"params must be .*got {type(leaf).__name__} at 'layers/0/activation'\. Partition .*eqx\.partition\(model"
    )
    for use in (
        two_stage(fobt.binary()).init,
        fobt.Training(two_stage(fobt.binary())).init,
        fobt.Training(optax.adam(STEP), fobt.binary()).init,
        lambda params: fobt.quantize(params, None, fobt.binary()),
    ):
        with pytest.raises(ValueError, match=message):
            use(model)


def test_python_numbers_are_arrays():
    two_stage(fobt.binary()).init({"kernel": jnp.ones((2, 2)), "scale": 1.0})


def test_messages_never_hold_a_whole_tree():
    state = optax.adam(STEP).init(PARAMS)
    with pytest.raises(ValueError, match=r"quantizer must be made by .*got a tuple"):
        fobt.quantized_params(PARAMS, fobt.binary(), state)
    with pytest.raises(ValueError, match="got dict"):
        fobt.oscillations.track_oscillations(
            two_stage(fobt.binary()), fobt.binary(), full_precision_gradient=True
        ).update(
            PARAMS,
            fobt.oscillations.track_oscillations(two_stage(fobt.binary()), fobt.binary()).init(PARAMS),
            PARAMS,
            grad_fn=PARAMS,
        )


def test_the_gradient_function_is_callable_like_any_other():
    _, _, grad_fn = fobt.value_and_grad(loss_fn, fobt.binary())(PARAMS, None)
    np.testing.assert_allclose(jax.jit(grad_fn)(PARAMS)["first"], 2 * (PARAMS["first"] - 1), rtol=1e-6)
    with pytest.raises(dataclasses.FrozenInstanceError):
        grad_fn.quantizer = fobt.ternary()
