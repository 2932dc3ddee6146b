"""Quantized weights as a function of params and of the state of any Optax optimizer with a second moment."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fobt

QUANTIZER = fobt.ternary(solver="exact")


def make_params(seed=0):
    keys = jax.random.split(jax.random.key(seed), 3)
    return {
        "kernel": jax.random.normal(keys[0], (6, 4)),
        "bias": jax.random.normal(keys[1], (4,)),
        "out": {"kernel": jax.random.normal(keys[2], (4, 3))},
    }


def make_grads(seed):
    """Gradients whose magnitude differs by leaf and by weight, so that the curvature matters."""
    return jax.tree.map(lambda x: x * jnp.exp(2 * x), make_params(100 + seed))


def train(tx, params, steps=3, state=None):
    """State and params after a few updates."""
    state = tx.init(params) if state is None else state

    @jax.jit
    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for i in range(steps):
        params, state = step(params, state, make_grads(i))
    return params, state


def project(params, nu, quantizer=QUANTIZER):
    """The projection with curvature √nu + 1e-8, leaf by leaf."""
    return jax.tree.map(
        lambda w, v: quantizer(w, jnp.sqrt(v) + 1e-8).dequantize() if w.ndim >= 2 else w,
        params,
        nu,
    )


def adam_part(state):
    """Where optax.chain(scale_by_adam, ...) keeps Adam's state."""
    return state[0].nu


def variance(state):
    """What centred rmsprop takes the root of."""
    return jax.tree.map(lambda nu, mu: nu - mu**2, state[0].nu, state[0].mu)


WITH_SECOND_MOMENT = {
    "adam": (optax.adam(1e-2), adam_part),
    "adamw": (optax.adamw(1e-2, weight_decay=0.1), adam_part),
    "nadam": (optax.nadam(1e-2), adam_part),
    "amsgrad": (optax.amsgrad(1e-2), lambda state: state[0].nu_max),
    "rmsprop": (optax.rmsprop(1e-2), adam_part),
    "rmsprop_momentum": (optax.rmsprop(1e-2, momentum=0.9), adam_part),
    "rmsprop_centered": (optax.rmsprop(1e-2, centered=True), variance),
    "lamb": (optax.lamb(1e-2), adam_part),
    "adabelief": (optax.adabelief(1e-2), adam_part),
    "clip_and_schedule": (
        optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.linear_schedule(1e-2, 0.0, 10))),
        lambda state: state[1][0].nu,
    ),
    "chain_of_chains": (
        optax.chain(optax.chain(optax.clip(1.0), optax.scale_by_adam()), optax.add_decayed_weights(0.1)),
        lambda state: state[0][1].nu,
    ),
    "multi_steps": (optax.MultiSteps(optax.adam(1e-2), 2), lambda state: adam_part(state.inner_opt_state)),
    "inject_hyperparams": (
        optax.inject_hyperparams(optax.adam)(learning_rate=1e-2, b2=0.99),
        lambda state: adam_part(state.inner_state),
    ),
    "apply_if_finite": (optax.apply_if_finite(optax.adam(1e-2), 5), lambda state: adam_part(state.inner_state)),
    "masked_and_all_leaves_chosen": (
        optax.masked(optax.adam(1e-2), {"kernel": True, "bias": True, "out": True}),
        lambda state: adam_part(state.inner_state),
    ),
    "with_ema": (optax.chain(optax.adam(1e-2), optax.ema(0.9)), lambda state: adam_part(state[0])),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_SECOND_MOMENT)
def test_curvature_is_the_second_moment(name):
    tx, second_moment = WITH_SECOND_MOMENT[name]
    params, state = train(tx, make_params(), steps=4)
    got = fobt.quantized_params(params, state, QUANTIZER)
    chex.assert_trees_all_equal(got, project(params, second_moment(state)))
    ignoring_curvature = fobt.quantized_params(params, None, QUANTIZER)
    assert not np.array_equal(got["kernel"], ignoring_curvature["kernel"])


@pytest.mark.slow
def test_leaves_masked_out_of_the_optimizer_need_no_second_moment_where_they_are_not_quantized():
    tx = optax.masked(optax.adam(1e-2), {"kernel": True, "bias": False, "out": True})
    params, state = train(tx, make_params())
    nu = adam_part(state.inner_state)
    got = fobt.quantized_params(params, state, QUANTIZER)
    chex.assert_trees_all_equal(got, project(params, {**nu, "bias": params["bias"]}))


@pytest.mark.parametrize("inner", ["adam", "sgd"])
def test_partition(inner):
    """Two optimizers with complementary holes; a leaf of one without second moment is fine while not quantized."""
    others = {"adam": optax.adam(1e-3, b2=0.9), "sgd": optax.sgd(1e-3)}[inner]
    labels = {"kernel": "main", "bias": "others", "out": {"kernel": "others" if inner == "adam" else "main"}}
    tx = optax.partition({"main": optax.adam(1e-2), "others": others}, labels)
    params, state = train(tx, make_params())
    main = adam_part(state.inner_states["main"].inner_state)
    rest = adam_part(state.inner_states["others"].inner_state) if inner == "adam" else main
    nu = {
        "kernel": main["kernel"],
        "bias": params["bias"],
        "out": {"kernel": rest["out"]["kernel"]},
    }
    chex.assert_trees_all_equal(fobt.quantized_params(params, state, QUANTIZER), project(params, nu))


def test_quantized_leaf_in_the_hole_of_a_masked_optimizer_raises():
    tx = optax.masked(optax.adam(1e-2), {"kernel": True, "bias": True, "out": False})
    params = make_params()
    with pytest.raises(ValueError, match="second moment `nu` that fits the quantized leaf 'out/kernel', found none"):
        fobt.quantize(params, tx.init(params), QUANTIZER)


@pytest.mark.parametrize("tx", [optax.sgd(0.1), optax.sgd(0.1, momentum=0.9), optax.adafactor(0.1), optax.lion(0.1)])
def test_no_second_moment_raises(tx):
    params = make_params()
    with pytest.raises(ValueError, match=r"`nu` .* 'kernel', found none\..* or None for curvature 1"):
        fobt.quantized_params(params, tx.init(params), QUANTIZER)


def test_two_second_moments_raise():
    params = make_params()
    state = optax.chain(optax.scale_by_adam(), optax.scale_by_rms()).init(params)
    with pytest.raises(ValueError, match=r"one second moment .*'kernel', found 2\. Pass the part of the state"):
        fobt.quantize(params, state, QUANTIZER)
    fobt.quantize(params, state[0], QUANTIZER)


def test_state_of_other_params_raises():
    params = make_params()
    state = optax.adam(1e-2).init({**params, "kernel": params["kernel"].T})
    with pytest.raises(ValueError, match="'kernel', found none"):
        fobt.quantize(params, state, QUANTIZER)


@pytest.mark.parametrize("tx", [optax.adam(1e-2), optax.chain(optax.scale_by_adam(), optax.trace(0.9))])
def test_parameter_called_nu(tx):
    """A parameter group of that name, which is in mu and in nu too, is not taken for a second moment."""
    params = {"nu": {"nu": make_params()["kernel"], "mu": make_params()["out"]["kernel"]}}
    grads = jax.tree.map(lambda x: x * jnp.exp(2 * x), params)
    _, state = tx.update(grads, tx.init(params), params)
    nu = state[0].nu
    chex.assert_trees_all_equal(fobt.quantized_params(params, state, QUANTIZER), project(params, nu))


def test_single_parameter_called_nu():
    params = {"nu": make_params()["kernel"]}
    tx = optax.adam(1e-2)
    _, state = tx.update(jax.tree.map(lambda x: x**3, params), tx.init(params), params)
    chex.assert_trees_all_equal(fobt.quantized_params(params, state, QUANTIZER), project(params, state[0].nu))


def test_params_that_are_one_array():
    w = make_params()["kernel"]
    tx = optax.adam(1e-2)
    _, state = tx.update(w**3, tx.init(w), w)
    chex.assert_trees_all_equal(fobt.quantized_params(w, state, QUANTIZER), project(w, state[0].nu))


def test_no_state_and_a_new_state_mean_curvature_1():
    params = make_params()
    ones = jax.tree.map(jnp.ones_like, params)
    expected = project(params, ones)
    for state in (None, optax.adam(1e-2).init(params)):
        chex.assert_trees_all_close(fobt.quantized_params(params, state, QUANTIZER), expected, rtol=1e-6)


def test_identity_needs_no_state_and_leaves_params_untouched():
    params = make_params()
    for quantizer in (fobt.full_precision(), fobt.per_leaf()):
        for state in (None, optax.sgd(0.1).init(params), optax.adam(0.1).init(params)):
            chex.assert_trees_all_equal(fobt.quantized_params(params, state, quantizer), params)
            chex.assert_trees_all_equal(fobt.quantize(params, state, quantizer), params)


def test_quantize_holds_codes_and_scales_of_quantized_leaves_only():
    params, state = train(optax.adam(1e-2), make_params())
    quantized = fobt.quantize(params, state, QUANTIZER)
    assert isinstance(quantized["kernel"], fobt.Quantized)
    assert isinstance(quantized["out"]["kernel"], fobt.Quantized)
    assert quantized["kernel"].codes.dtype == jnp.int8
    chex.assert_trees_all_equal(quantized["bias"], params["bias"])
    weights = fobt.quantized_params(params, state, QUANTIZER)
    chex.assert_trees_all_equal(quantized["kernel"].dequantize(), weights["kernel"])
    assert len(np.unique(weights["kernel"])) == 3


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_structure_shapes_and_dtypes_stay(dtype):
    with jax.enable_x64(dtype == "float64"):
        params = jax.tree.map(lambda x: x.astype(dtype), make_params())
        params["count"] = jnp.arange(6).reshape(2, 3)
        params["empty"] = jnp.zeros((0, 4), dtype)
        state = optax.scale_by_adam().init(params)
        got = jax.jit(fobt.quantized_params, static_argnums=2)(params, state, QUANTIZER)
        chex.assert_trees_all_equal_structs(got, params)
        chex.assert_trees_all_equal_shapes_and_dtypes(got, params)
        wide = jnp.float64 if dtype == "float64" else jnp.float32
        assert fobt.quantize(params, state, QUANTIZER)["kernel"].scale.dtype == wide


def test_state_that_was_saved_and_restored():
    """Leaves and structure are all that a checkpoint keeps; NumPy arrays serve as well as those of JAX."""
    tx = optax.adamw(1e-2)
    params, state = train(tx, make_params())
    expected = fobt.quantized_params(params, state, QUANTIZER)
    saved = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
    restored = jax.tree.unflatten(jax.tree.structure(tx.init(params)), saved)
    chex.assert_trees_all_equal(fobt.quantized_params(params, restored, QUANTIZER), expected)


@pytest.mark.slow
def test_full_precision_run_continues_at_one_bit():
    """Adam's state of plain training is a state of loss-aware training and of forward_backtrack's inner state."""
    params, state = train(optax.adam(1e-2), make_params(), steps=5)
    quantizer = fobt.binary()
    chex.assert_trees_all_equal(
        fobt.quantized_params(params, state, quantizer), project(params, state[0].nu, quantizer)
    )

    tx = fobt.forward_backtrack(1e-2, quantizer)
    updates, continued = tx.update(make_grads(9), state[0], params, grad_fn=lambda weights: weights)
    assert isinstance(continued, optax.ScaleByAdamState)
    assert continued.count == 6
    chex.assert_tree_all_finite((updates, continued))


def test_ema_of_params():
    """Averaged params are quantized as they are: nothing derived from params is stored."""
    params, state = train(optax.adam(1e-2), make_params())
    ema = optax.ema(0.5, debias=False)
    averaged, _ = ema.update(params, ema.init(params))
    got = fobt.quantized_params(averaged, state, QUANTIZER)
    chex.assert_trees_all_equal(got, project(jax.tree.map(lambda x: x / 2, params), state[0].nu))
