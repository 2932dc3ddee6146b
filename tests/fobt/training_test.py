"""The facade: what it does is what the functions below it do, and what cannot be right is said at once."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fobt

BINARY = fobt.binary()
RATE = 0.05


def params():
    first, second = jax.random.split(jax.random.key(0))
    return {"kernel": jax.random.normal(first, (4, 3)), "bias": jax.random.normal(second, (3,))}


def loss_fn(weights, x, y):
    scores = jnp.tanh(x @ weights["kernel"] + weights["bias"][None])
    return jnp.mean(jnp.square(scores - y)), scores


X, Y = jax.random.normal(jax.random.key(1), (8, 4)), jax.random.normal(jax.random.key(2), (8, 3))


def by_hand(tx, *, ahead: bool = False, steps: int = 4, **keywords):
    """The loop of those who use the functions."""
    weights, state = params(), tx.init(params())
    for _ in range(steps):
        if ahead:
            at = fobt.quantized_trial_params(weights, state, BINARY, tx)
            (value, _), grads = jax.value_and_grad(loss_fn, has_aux=True)(at, X, Y)
            updates, state = tx.update(grads, state, weights)
        else:
            (value, _), grads, grad_fn = fobt.value_and_grad(loss_fn, BINARY, has_aux=True)(weights, state, X, Y)
            updates, state = optax.with_extra_args_support(tx).update(
                grads, state, weights, grad_fn=grad_fn, **keywords
            )
        weights = optax.apply_updates(weights, updates)
    return value, fobt.quantized_params(weights, state, BINARY)


METHOD = fobt.forward_backtrack(RATE, BINARY, a=0.6)
CASES = {
    "loss-aware": (fobt.Training(optax.adam(RATE), BINARY), lambda: by_hand(optax.adam(RATE))),
    "two gradients": (fobt.Training(METHOD), lambda: by_hand(METHOD)),
    "optimistic": (fobt.Training(fobt.optimistic(METHOD)), lambda: by_hand(fobt.optimistic(METHOD), ahead=True)),
    "Nesterov": (
        fobt.Training(optax.adam(RATE), BINARY, look_ahead=True),
        lambda: by_hand(optax.adam(RATE), ahead=True),
    ),
    "a chain": (
        fobt.Training(optax.chain(optax.clip(0.01), METHOD), BINARY),
        lambda: by_hand(optax.chain(optax.clip(0.01), METHOD)),
    ),
    "tracked": (fobt.Training(fobt.oscillations.track_oscillations(METHOD, BINARY)), lambda: by_hand(METHOD)),
    "tracked, one gradient": (
        fobt.Training(fobt.oscillations.track_oscillations(fobt.optimistic(METHOD), BINARY)),
        lambda: by_hand(fobt.optimistic(METHOD), ahead=True),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_loop_of_steps_is_the_loop_by_hand(name: str):
    training, expected = CASES[name]
    weights, state = params(), training.init(params())
    step = jax.jit(training.step(loss_fn, has_aux=True))
    for _ in range(4):
        weights, state, (value, scores) = step(weights, state, X, Y)
    right_value, right = expected()
    assert scores.shape == Y.shape
    np.testing.assert_allclose(value, right_value, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), training.weights(weights, state), right
    )
    codes = training.quantize(weights, state)
    np.testing.assert_array_equal(codes["kernel"].codes, np.sign(right["kernel"]))
    assert step._cache_size() == 1


@pytest.mark.slow
def test_gradient_and_update_are_those_of_the_step():
    training = fobt.Training(METHOD)
    weights, state = params(), training.init(params())
    _, grads, grad_fn = training.value_and_grad(loss_fn, has_aux=True)(weights, state, X, Y)
    updates, _ = training.update(grads, state, weights, grad_fn=grad_fn)
    stepped, _, _ = training.step(loss_fn, has_aux=True)(weights, state, X, Y)
    jax.tree.map(np.testing.assert_array_equal, optax.apply_updates(weights, updates), stepped)


def test_gradients_at_the_latents_are_refused_unless_it_is_said_where_they_were_taken():
    training = fobt.Training(optax.adam(1e-2), fobt.binary())
    weights, state = params(), training.init(params())
    grads = jax.grad(lambda weights: loss_fn(weights, X, Y)[0])(weights)
    with pytest.raises(ValueError, match=r"(?s)grad_fn must be the third value of training\.value_and_grad.*latents"):
        training.update(grads, state, weights)
    grads = jax.grad(lambda weights: loss_fn(weights, X, Y)[0])(training.gradient_weights(weights, state))
    updates, _ = training.update(grads, state, weights, grad_fn=None)
    stepped, _, _ = training.step(loss_fn, has_aux=True)(weights, state, X, Y)
    jax.tree.map(np.testing.assert_array_equal, optax.apply_updates(weights, updates), stepped)


def test_keywords_reach_the_optimizer():
    plain = fobt.Training(METHOD).step(loss_fn, has_aux=True, two_stage=False)
    adam = fobt.Training(optax.adam(RATE), BINARY)
    weights, state = params(), adam.init(params())
    ours, _, _ = plain(weights, fobt.Training(METHOD).init(weights), X, Y)
    theirs, _, _ = adam.step(loss_fn, has_aux=True)(weights, state, X, Y)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ours, theirs)


def test_what_is_missing_or_contradicts_itself_is_said():
    with pytest.raises(ValueError, match=r"quantizer must be given, as in fobt.Training\(optax.adam"):
        fobt.Training(optax.adam(RATE))
    with pytest.raises(ValueError, match="quantizer must be given"):
        fobt.Training(optax.chain(METHOD))
    with pytest.raises(ValueError, match=r"quantizer must be made by fobt\.binary"):
        fobt.Training(optax.adam(RATE), "binary")
    with pytest.raises(ValueError, match="at leaf 'kernel' the optimizer has Quantizer"):
        fobt.Training(METHOD, fobt.ternary()).init(params())
    fobt.Training(METHOD, fobt.per_leaf(("kernel", fobt.binary()))).init(params())  # the same choices
    with pytest.raises(ValueError, match="state must hold a second moment `nu`"):
        fobt.Training(optax.sgd(RATE), BINARY).init(params())


def matrices(tree):
    return jax.tree.map(lambda leaf: leaf.ndim > 1, tree)


def kernels(tree):
    """By path, so that a leaf without a name belongs to the biases."""
    return jax.tree_util.tree_map_with_path(lambda path, _: "kernel" if "kernel" in str(path) else "bias", tree)


LARGEST_MAGNITUDE = {
    "adamax": optax.adamax(RATE),
    "adamaxw": optax.adamaxw(RATE),
    "behind clipping": optax.chain(optax.clip_by_global_norm(0.1), optax.adamax(RATE)),
    "with a rate in the state": optax.inject_hyperparams(optax.adamax)(RATE),
    "of matrices": optax.masked(optax.adamax(RATE), matrices),
    "tracked": fobt.oscillations.track_oscillations(optax.adamax(RATE), BINARY),
}


@pytest.mark.parametrize("name", LARGEST_MAGNITUDE)
def test_a_largest_magnitude_is_no_second_moment(name: str):
    with pytest.raises(ValueError, match=r"optimizer must keep the mean of squared.*doubles.*Use optax\.adam, adamw"):
        fobt.Training(LARGEST_MAGNITUDE[name], BINARY)


SECOND_MOMENT = {
    "adam": optax.adam(RATE),
    "rmsprop": optax.rmsprop(RATE),
    "rmsprop from 1": optax.rmsprop(RATE, initial_scale=1.0),
    "rmsprop, centred": optax.rmsprop(RATE, centered=True),
    "adabelief": optax.adabelief(RATE),
    "yogi": optax.yogi(RATE),
    "amsgrad": optax.amsgrad(RATE),
    "lamb": optax.lamb(RATE),
    "behind clipping": optax.chain(optax.clip_by_global_norm(1e-4), optax.adamw(RATE)),
    "once in two steps": optax.MultiSteps(optax.adam(RATE), 2),
    "of a name": optax.masked(optax.adam(RATE), {"kernel": True, "bias": False}),
    "adamax of biases": optax.partition({"kernel": optax.adam(RATE), "bias": optax.adamax(RATE)}, kernels),
    "adamax of vectors": optax.partition({True: optax.adam(RATE), False: optax.adamax(RATE)}, matrices),
}


@pytest.mark.parametrize("name", SECOND_MOMENT)
def test_second_moments_and_what_cannot_be_probed_are_taken(name: str):
    training = fobt.Training(SECOND_MOMENT[name], BINARY)
    training.init(params())


def test_a_training_is_made_within_a_traced_function():
    with pytest.raises(ValueError, match="optimizer must keep the mean of squared gradients"):
        jax.eval_shape(lambda: fobt.Training(optax.adamax(RATE), BINARY).init(params()))


def test_an_optimizer_that_knows_its_quantizer_is_an_optax_transformation():
    assert isinstance(METHOD, optax.GradientTransformationExtraArgs)
    init, update = METHOD
    assert callable(init)
    assert callable(update)
    assert fobt.Training(METHOD).optimizer.update is METHOD.update
