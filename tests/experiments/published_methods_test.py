"""Published methods against their formulas in NumPy, and the limit cases in which they are loss-aware quantization."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import published_methods
import pytest
import reference

import fobt
from experiments.methods import averages, cage, given_scale, lotion, parq, quest
from experiments.methods.method import Hyperparameters, Method, make_quantizer

STEPS = 20
HYPER = Hyperparameters(optax.cosine_decay_schedule(0.05, STEPS), 0.8, 0.95, steps=STEPS)
# Published by the authors of QuEST in their code, for 1 bit and for 3 levels.
PUBLISHED_SCALES = {"binary": 0.7978845587140913, "ternary": 1.2240089519030855}


@pytest.fixture(params=["binary", "ternary"])
def grid(request):
    return request.param


def tree(shape=(6, 4), seed=0):
    rng = np.random.default_rng(seed)
    return {"kernel": jnp.asarray(rng.normal(scale=0.5, size=shape), jnp.float32), "bias": jnp.ones(3)}


def run(method: Method, steps: int = STEPS, params=None):
    """Latents after each step on a quadratic, and the last state."""
    target = tree(seed=1)
    params = tree() if params is None else params
    state = method.optimizer.init(params)

    @jax.jit
    def step(params, state):
        weights = method.gradient_point(params, state)
        grads = jax.tree.map(lambda w, to: w - to, weights, target)
        updates, state = method.optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    path = [params]
    for _ in range(steps):
        params, state = step(params, state)
        path.append(params)
    return path, state


def laq(grid: str) -> Method:
    quantizer = make_quantizer(grid)
    return Method(HYPER.bounded_adam(quantizer), quantizer)


def assert_same_path(first, second):
    for one, other in zip(first, second, strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), one, other)


# BitNet b1.58


def test_bitnet_rounds_and_clips_weights_in_units_of_their_mean_magnitude():
    # mean|w| = 0.4: w/γ = 0.25, -0.75, 2, -1 rounds and clips to 0, -1, 1, -1.
    weights = {"kernel": jnp.array([[0.1, -0.3], [0.8, -0.4]]), "bias": jnp.array([5.0])}
    method = given_scale.absmean(HYPER, fobt.ternary())
    np.testing.assert_allclose(method.evaluated(weights, None)["kernel"], [[0, -0.4], [0.4, -0.4]], rtol=1e-6)
    np.testing.assert_array_equal(method.evaluated(weights, None)["bias"], [5.0])
    w = np.random.default_rng(0).normal(size=(20, 30)).astype(np.float32)
    gamma = np.mean(np.abs(w))
    expected = gamma * np.round(np.clip(w / gamma, -1, 1))
    np.testing.assert_allclose(method.evaluated({"kernel": jnp.asarray(w)}, None)["kernel"], expected, rtol=1e-5)


def test_the_mean_magnitude_on_the_binary_grid_is_bwn():
    quantizer = fobt.binary()
    bwn = Method(HYPER.bounded_adam(quantizer), quantizer, weighted=False)
    assert_same_path(run(given_scale.absmean(HYPER, quantizer))[0], run(bwn)[0])


# QuEST


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_the_gaussian_scale_is_the_best_one(bits):
    quantizer = fobt.binary() if bits == 1 else fobt.linear(bits)
    levels = reference.levels("binary" if bits == 1 else "linear", bits)
    np.testing.assert_allclose(quest.gaussian_scale(quantizer), published_methods.gaussian_scale(levels), atol=0.004)


def test_the_gaussian_scale_is_the_published_one(grid):
    assert quest.gaussian_scale(make_quantizer(grid)) == pytest.approx(PUBLISHED_SCALES[grid], rel=1e-5)


def test_quest_trusts_weights_that_move_by_half_a_step(grid):
    params, grads = tree((12, 9)), tree((12, 9), seed=1)
    w, g = (np.asarray(x["kernel"], np.float64) for x in (params, grads))
    levels = reference.levels(grid)
    scale = PUBLISHED_SCALES[grid] * np.sqrt(np.mean(w**2))
    quantizer = make_quantizer(grid)
    method = quest.quest(HYPER, quantizer)
    np.testing.assert_allclose(
        method.evaluated(params, None)["kernel"], published_methods.nearest(w, scale * levels), rtol=1e-5, atol=1e-7
    )
    expected = published_methods.trusted(w, g, scale, levels)
    mask = quest.trust_mask(quantizer)
    got, _ = mask.update(grads, mask.init(params), params)
    assert 0 < np.count_nonzero(expected == 0) < w.size / 4
    np.testing.assert_allclose(got["kernel"], expected, rtol=1e-6)
    np.testing.assert_array_equal(got["bias"], grads["bias"])


@pytest.mark.parametrize(("shape", "block"), [((24, 5), 8), ((3, 3, 4, 5), 4), ((256, 2), 128), ((3, 3, 1, 5), 1)])
def test_the_rotation_is_that_of_sylvester_in_blocks_of_inputs(shape, block):
    w = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    rows = w.reshape(-1, block, shape[-1])
    expected = np.stack([published_methods.hadamard(block) @ row for row in rows]).reshape(shape)
    rotated = quest.rotate(jnp.asarray(w))
    np.testing.assert_allclose(rotated, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(quest.rotate(rotated), w, rtol=1e-4, atol=1e-5)


def test_quest_with_rotation_quantizes_and_masks_in_the_rotated_basis(grid):
    params, grads = tree((8, 9)), tree((8, 9), seed=1)
    turn, levels = published_methods.hadamard(8), reference.levels(grid)
    w, g = (turn @ np.asarray(x["kernel"], np.float64) for x in (params, grads))
    scale = PUBLISHED_SCALES[grid] * np.sqrt(np.mean(w**2))
    quantizer = make_quantizer(grid)
    method = quest.quest_hadamard(HYPER, quantizer)
    expected = published_methods.nearest(w, scale * levels)
    np.testing.assert_allclose(method.evaluated(params, None)["kernel"], turn.T @ expected, rtol=1e-4, atol=1e-5)
    (codes,) = method.codes(params, None, jax.random.key(0))
    np.testing.assert_array_equal(codes, np.round(expected / scale))
    mask = quest.trust_mask(quantizer, quest.rotate)
    got, _ = mask.update(grads, mask.init(params), params)
    trusted = published_methods.trusted(w, g, scale, levels)
    assert np.any(trusted == 0)
    np.testing.assert_allclose(got["kernel"], turn.T @ trusted, rtol=1e-4, atol=1e-5)


# CAGE


@pytest.mark.parametrize("rate", [HYPER.learning_rate, 0.05])
def test_cage_adds_the_decoupled_correction(grid, rate):
    """A step is that of the optimizer and -η λ (w - ŵ), with λ from 0 at half of the training to 3 at its end."""
    quantizer = make_quantizer(grid)
    adam = optax.adam(HYPER.learning_rate, b1=0.8, b2=0.95)
    corrected = cage.corrected(adam, quantizer, rate, cage.linear_ramp(STEPS, 3.0, 0.5))
    params = tree()
    state, plain = corrected.init(params), adam.init(params)
    for number in range(STEPS):
        grads = jax.tree.map(lambda x: 0.1 * x, tree(seed=number + 5))
        eta = rate if isinstance(rate, float) else float(rate(number))
        factor = eta * 3.0 * max(0, (number - STEPS / 2) / (STEPS / 2))
        w_hat = fobt.quantized_params(params, plain, quantizer)
        updates, plain = adam.update(grads, plain)
        got, state = corrected.update(grads, state, params, grad_fn=None)
        expected = jax.tree.map(lambda u, w, q, f=factor: u - f * (w - q), updates, params, w_hat)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), got, expected)
        params = optax.apply_updates(params, got)
    jax.tree.map(np.testing.assert_allclose, state.inner[0].nu, plain[0].nu)


def test_cage_is_silent_in_the_first_share_of_the_training(grid):
    path, plain = run(cage.cage(HYPER, make_quantizer(grid)))[0], run(laq(grid))[0]
    silent = round(0.8 * STEPS) + 1  # and the first step of the ramp has λ = 0
    assert_same_path(path[: silent + 1], plain[: silent + 1])
    assert not np.allclose(path[silent + 1]["kernel"], plain[silent + 1]["kernel"], rtol=1e-5)


# PARQ


@pytest.mark.parametrize("anneal", ["cosine", "sigmoid"])
def test_parq_goes_from_the_latents_to_their_projection(grid, anneal):
    """In three quarters of the steps."""
    method = parq.parq(HYPER, make_quantizer(grid), anneal=anneal, share=0.75)
    params = tree()
    state = method.optimizer.init(params)
    update = jax.jit(method.optimizer.update)
    for number in range(STEPS + 1):
        point = method.gradient_point(params, state)["kernel"]
        share = min(number / (0.75 * STEPS), 1)
        if anneal == "cosine":
            rho = (1 + np.cos(np.pi * share)) / 2
        else:
            low, high = (1 / (1 + np.exp(sign * 5)) for sign in (1, -1))
            rho = (1 / (1 + np.exp(10 * (share - 0.5))) - low) / (high - low)
        levels = np.asarray(fobt.quantize(params, state, method.quantizer)["kernel"].scale) * reference.levels(grid)
        latents = np.asarray(params["kernel"], np.float64)
        expected = published_methods.annealed(latents, levels, max(rho, 1e-9))
        np.testing.assert_allclose(point, expected, rtol=1e-3, atol=1e-4)
        updates, state = update(jax.tree.map(lambda x: 0.1 * x, tree(seed=number + 5)), state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_array_equal(
        method.evaluated(params, state)["kernel"], fobt.quantized_params(params, state, method.quantizer)["kernel"]
    )


# LOTION


def test_the_regularizer_is_the_variance_of_randomized_rounding(grid):
    """Its gradient, by differences of the variance of the two outcomes of rounding."""
    rng = np.random.default_rng(0)
    w, second = rng.normal(size=(5, 6)), rng.uniform(0.1, 2, size=(5, 6))
    with jax.enable_x64(True):
        quantized = make_quantizer(grid)(jnp.asarray(w))
        got = lotion.regularizer_gradient(jnp.asarray(w), jnp.asarray(second), quantized)
        levels = float(quantized.scale) * reference.levels(grid)
    for index in np.ndindex(*w.shape):
        around = [published_methods.rounding_variance(w[index] + d, levels) for d in (1e-6, -1e-6)]
        np.testing.assert_allclose(got[index], second[index] / 2 * (around[0] - around[1]) / 2e-6, atol=1e-6)


def test_the_regularizer_with_a_scale_for_each_sign():
    quantized = fobt.ternary(scale_per_sign=True)(jnp.array([[4.0, -1.0]]))  # levels -1, 0 and 4
    got = lotion.regularizer_gradient(jnp.array([[1.0, -0.25, 5.0, -2.0]]), jnp.full((1, 4), 2.0), quantized)
    np.testing.assert_allclose(got, [[2, -0.5, 0, 0]])  # lower + upper - 2w


def test_lotion_feeds_the_optimizer_with_the_gradient_of_the_smoothed_loss(grid):
    quantizer, decay, strength = make_quantizer(grid), 0.9, 30.0
    adam = optax.adam(0.05)
    smoothed = lotion.smoothed(adam, quantizer, decay, strength)
    params = tree()
    state, inner = smoothed.init(params), adam.init(params)
    second = np.zeros((6, 4))
    for number in range(5):
        grads = jax.tree.map(lambda x: 0.1 * x, tree(seed=number + 5))
        g, w = (np.asarray(x["kernel"], np.float64) for x in (grads, params))
        second = decay * second + (1 - decay) * g**2
        levels = float(fobt.quantize(params, inner, quantizer)["kernel"].scale) * reference.levels(grid)
        total = g.copy()
        for index in np.ndindex(*w.shape):
            if (pair := published_methods.neighbours(w[index], levels)) is not None:
                step, lower = pair[1] - pair[0], pair[0]
                share = (w[index] - lower) / step
                fisher = second[index] / (1 - decay ** (number + 1))
                total[index] += strength * fisher * step * (1 - 2 * share) / 2
        expected, inner = adam.update({"kernel": jnp.asarray(total, jnp.float32), "bias": grads["bias"]}, inner)
        got, state = smoothed.update(grads, state, params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), got, expected)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), state.inner[0].nu, inner[0].nu)
        params = optax.apply_updates(params, got)


def test_lotion_takes_its_gradient_at_the_latents_and_evaluates_the_projection(grid):
    method, params = lotion.lotion(HYPER, make_quantizer(grid)), tree()
    state = method.optimizer.init(params)
    assert method.gradient_point(params, state) is params
    np.testing.assert_array_equal(
        method.evaluated(params, state)["kernel"], fobt.quantized_params(params, state, method.quantizer)["kernel"]
    )


# Averages


def mean_of(path, decay):
    """The weights of an exponential average over the latents after each step sum to 1."""
    weights = np.array([decay**age for age in range(len(path) - 1)])[::-1]
    latents = np.stack([np.asarray(params["kernel"], np.float64) for params in path[1:]])
    return np.tensordot(weights / weights.sum(), latents, 1)


def test_the_average_is_evaluated_and_training_is_that_of_laq(grid):
    method = averages.average_evaluated(HYPER, make_quantizer(grid), decay=0.7)
    path, state = run(method)
    plain, plain_state = run(laq(grid))
    assert_same_path(path, plain)
    average = {"kernel": jnp.asarray(mean_of(plain, 0.7), jnp.float32), "bias": jnp.ones(3)}
    expected = fobt.quantized_params(average, plain_state, method.quantizer)["kernel"]
    np.testing.assert_allclose(method.evaluated(path[-1], state)["kernel"], expected, rtol=1e-4)
    last = fobt.quantized_params(plain[-1], plain_state, method.quantizer)["kernel"]
    assert not np.allclose(expected, last, rtol=1e-3)


def test_gradients_are_taken_at_the_average_that_is_evaluated(grid):
    method = averages.average_trained(HYPER, make_quantizer(grid), decay=0.7)
    path, state = run(method)
    average = {"kernel": jnp.asarray(mean_of(path, 0.7), jnp.float32), "bias": jnp.ones(3)}
    expected = fobt.quantized_params(average, state, method.quantizer)["kernel"]
    for point in (method.evaluated(path[-1], state), method.gradient_point(path[-1], state)):
        np.testing.assert_allclose(point["kernel"], expected, rtol=1e-4)
    assert not np.allclose(path[-1]["kernel"], run(laq(grid))[0][-1]["kernel"], rtol=1e-3)


@pytest.mark.parametrize("make", [averages.average_evaluated, averages.average_trained])
def test_without_memory_the_average_is_the_present(grid, make):
    path, state = run(make(HYPER, make_quantizer(grid), decay=0.0))
    plain, plain_state = run(laq(grid))
    assert_same_path(path, plain)
    method = laq(grid)
    np.testing.assert_allclose(
        make(HYPER, method.quantizer, decay=0.0).evaluated(path[-1], state)["kernel"],
        method.evaluated(plain[-1], plain_state)["kernel"],
        rtol=1e-5,
    )


# All


@pytest.mark.parametrize(
    "make",
    [
        given_scale.absmean,
        quest.quest,
        quest.quest_hadamard,
        cage.cage,
        parq.parq,
        lotion.lotion,
        averages.average_evaluated,
        averages.average_trained,
    ],
)
def test_trainings_of_several_models_at_once_are_those_of_each(make):
    """Hyperparameters are traced, and each model has its own."""
    rates, b2 = jnp.array([0.02, 0.05]), jnp.array([0.9, 0.99])
    target = tree(seed=1)
    models = jax.tree.map(lambda *x: jnp.stack(x), tree(), tree(seed=2))

    def train(params, rate, b2):
        hyper = Hyperparameters(lambda count: rate * optax.cosine_decay_schedule(1.0, 6)(count), 0.9, b2, steps=6)
        method = make(hyper, fobt.ternary())

        def step(carry, _):
            params, state = carry
            grads = jax.tree.map(lambda w, to: w - to, method.gradient_point(params, state), target)
            updates, state = method.optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        (params, state), _ = jax.lax.scan(step, (params, method.optimizer.init(params)), length=6)
        return method.evaluated(params, state)

    together = jax.jit(jax.vmap(train))(models, rates, b2)
    for i in range(2):
        alone = jax.jit(train)(jax.tree.map(lambda x, i=i: x[i], models), rates[i], b2[i])
        np.testing.assert_allclose(together["kernel"][i], alone["kernel"], rtol=1e-4, atol=1e-5)
