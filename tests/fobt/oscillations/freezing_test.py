"""Freezing against a NumPy loop over the codes that were seen, in closed form, and through a checkpoint."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import fobt

MOMENTUM, THRESHOLD = 0.3, 0.35


def given_steps(nu=1.0):
    """An optimizer whose updates are what it is given, with a constant second moment."""

    def init(params):
        return optax.ScaleByAdamState(
            jnp.zeros((), jnp.int32), None, jax.tree.map(lambda w: jnp.full_like(w, nu), params)
        )

    return optax.GradientTransformation(init, lambda updates, state, params=None: (updates, state))


def walk(quantizer, params, steps, threshold=THRESHOLD, decay=1 - MOMENTUM):
    """Codes of every forward pass, and after each update the latents, frequencies, frozen codes and frozen weights."""
    tx = fobt.oscillations.freeze_oscillations(given_steps(), quantizer, threshold, decay=decay)
    state = tx.init(params)

    @jax.jit
    def update(step, params, state):
        codes = fobt.quantize(params, state, quantizer).codes
        updates, state = tx.update(step, state, params)
        return codes, optax.apply_updates(params, updates), state

    history = []
    for step in steps:
        codes, params, state = update(step, params, state)
        frozen = fobt.oscillations.is_frozen(state)
        history.append(jax.device_get((codes, params, state.changes.frequency, state.frozen_codes, frozen)))
    return history, params, state


@pytest.mark.parametrize("name", ["binary", "ternary", "linear"])
def test_follows_the_definition(name):
    """Frequencies, frozen codes and held codes on random walks agree with a loop over single weights."""
    quantizer = {
        "binary": fobt.binary(),
        "ternary": fobt.ternary(solver="exact"),
        "linear": fobt.linear(3, solver="exact"),
    }[name]
    rng = np.random.default_rng(0)
    params = jnp.asarray(rng.normal(size=(5, 8)), jnp.float32)
    steps = jnp.asarray(rng.normal(size=(60, 5, 8)) * np.where(np.arange(8) < 4, 0.6, 0.02), jnp.float32)
    history, _, _ = walk(quantizer, params, steps)

    first = np.asarray(fobt.quantize(params, None, quantizer).codes)
    for index in np.ndindex(*first.shape):
        last, direction, f, mean, frozen = int(first[index]), 0, 0.0, float(first[index]), None
        for codes, _, frequency, frozen_codes, is_frozen in history:
            code = int(codes[index])
            if frozen is not None:
                assert code == frozen  # it is held in every later forward pass
            oscillated = code != last and direction != 0 and np.sign(code - last) == -direction
            direction = np.sign(code - last) if code != last else direction
            last, f, mean = code, MOMENTUM * oscillated + (1 - MOMENTUM) * f, MOMENTUM * code + (1 - MOMENTUM) * mean
            if frozen is None and f > THRESHOLD:
                frozen = (-1 if mean < 0 else 1) if name == "binary" else round(mean)
            assert frequency[index] == pytest.approx(f, abs=1e-5)
            assert bool(is_frozen[index]) == (frozen is not None)
            if frozen is not None:
                assert frozen_codes[index] == frozen
    frozen = history[-1][4]
    assert frozen[:, :4].sum() > 0  # those that walk in long steps
    assert not frozen[:, 4:].all()


def test_the_scale_is_that_of_the_weights_that_still_train():
    """Two of four binary weights are frozen; the scale follows mean|w| of the others, which go on growing."""
    params = jnp.array([[0.1, -0.1, 1.0, -1.0]])
    there_and_back = [jnp.array([[0.2, -0.2, 0, 0]]) * sign for sign in (-1, 1, -1, 1, -1, 1)]
    growing = [jnp.array([[0.5, 0.5, 0.25, -0.25]])] * 8
    _, params, state = walk(fobt.binary(), params, there_and_back + growing)
    assert fobt.oscillations.is_frozen(state).tolist() == [[True, True, False, False]]
    np.testing.assert_allclose(fobt.quantize(params, state, fobt.binary()).scale, 3.0, rtol=1e-5)
    np.testing.assert_allclose(np.abs(params), 3.0, rtol=1e-5)


def test_a_binary_weight_keeps_its_sign_where_all_others_are_zero():
    params = jnp.array([[0.1, 0.0]])
    steps = [jnp.array([[0.2, 0.0]]) * sign for sign in (-1, 1, -1, 1, -1, 1)]
    steps += [jnp.array([[1.0, 0.0]])] * 3
    history, _, state = walk(fobt.binary(), params, steps)
    assert fobt.oscillations.is_frozen(state).tolist() == [[True, False]]
    frozen_code = state.frozen_codes[0, 0]
    assert [codes[0, 0] for codes, *_ in history[-3:]] == [frozen_code] * 3


def test_nothing_freezes_while_the_threshold_is_1():
    params, steps = jnp.array([[0.1, 1.0]]), [jnp.array([[0.2, 0]]) * (-1) ** n for n in range(1, 13)]
    quarter = optax.join_schedules([optax.constant_schedule(1.0), optax.constant_schedule(THRESHOLD)], [8])
    history, _, _ = walk(fobt.binary(), params, steps, quarter)
    frozen = [bool(is_frozen[0, 0]) for *_, is_frozen in history]
    assert frozen == [False] * 8 + [True] * 4


def test_a_frequency_at_the_threshold_freezes_nothing():
    """The codes are 1, -1, 1, -1: the third is the first oscillation, f = 1/2, and the fourth the next, f = 3/4."""
    steps = [jnp.array([[0.2, 0]]) * (-1) ** n for n in range(1, 5)]
    history, _, _ = walk(fobt.binary(), jnp.array([[0.1, 1.0]]), steps, threshold=0.5, decay=0.5)
    assert [(float(f[0, 0]), bool(is_frozen[0, 0])) for _, _, f, _, is_frozen in history] == [
        (0, False),
        (0, False),
        (0.5, False),
        (0.75, True),
    ]


def test_a_binary_weight_whose_codes_have_the_mean_0_is_frozen_at_1():
    """From -1 to 1, which stays until the mean of the codes is 1 in float32, and back: -1/2 + 1/2 = 0."""
    moves = {1: 0.2, 31: -0.2}
    steps = [jnp.array([[moves.get(n, 0.0), 0.0]]) for n in range(33)]
    history, _, state = walk(fobt.binary(), jnp.array([[-0.1, 1.0]]), steps, threshold=0.4, decay=0.5)
    assert [int(codes[0, 0]) for codes, *_ in history] == [-1] * 2 + [1] * 30 + [-1]
    assert state.mean_codes[0, 0] == 0
    assert state.frozen_codes[0, 0] == 1


def toy(tx, quantizer):
    """The third weight has its target between two levels."""
    targets = jnp.array([[2.0, -2.0, 0.7]])

    @functools.partial(jax.jit, static_argnums=1)
    def run(carry, length):
        def step(carry, _):
            params, state = carry
            _, grads, grad_fn = fobt.value_and_grad(lambda w: jnp.sum((w - targets) ** 2), quantizer)(params, state)
            updates, state = tx.update(grads, state, params, grad_fn=grad_fn)
            return (optax.apply_updates(params, updates), state), fobt.quantize(params, state.inner, quantizer).codes

        return jax.lax.scan(step, carry, length=length)

    params = jnp.array([[1.0, -1.0, 0.2]])
    return run, (params, tx.init(params))


@pytest.mark.slow
def test_frozen_weights_stay_frozen_through_a_checkpoint(tmp_path):
    quantizer = fobt.ternary()
    tx = fobt.oscillations.freeze_oscillations(
        optax.with_extra_args_support(optax.adam(0.05)), quantizer, threshold=0.1
    )
    run, start = toy(tx, quantizer)
    middle, _ = run(start, 300)
    assert fobt.oscillations.is_frozen(middle[1]).tolist() == [[False, False, True]]
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", middle)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", jax.tree.map(jnp.zeros_like, middle))
    ends, codes = zip(*(run(carry, 100) for carry in (middle, restored)), strict=True)
    jax.tree.map(np.testing.assert_array_equal, *ends)
    assert np.unique(codes[1][:, 0, 2]).size == 1


@pytest.mark.slow
def test_wraps_the_two_stage_method():
    """The method alone may flip; wrapped, the third weight ends frozen, and `grad_fn` is handed on."""
    quantizer = fobt.ternary()
    tx = fobt.oscillations.freeze_oscillations(
        fobt.forward_backtrack(0.05, quantizer, a=0.95), quantizer, threshold=0.05
    )
    run, start = toy(tx, quantizer)
    (_, state), codes = run(start, 400)
    assert fobt.oscillations.is_frozen(state).tolist() == [[False, False, True]]
    assert np.unique(codes[-100:, 0, 2]).size == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": -0.1}, "threshold must be at least 0, or a schedule, got -0.1"),
        ({"threshold": 0.1, "decay": 1.0}, r"decay must be in \[0, 1\), got 1.0"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        fobt.oscillations.freeze_oscillations(optax.adam(0.1), fobt.binary(), **options)


def test_params_are_needed():
    tx = fobt.oscillations.freeze_oscillations(optax.adam(0.1), fobt.binary(), 0.1)
    params = jnp.ones((1, 2))
    with pytest.raises(ValueError, match=r"params must be given: update\(updates, state, params\), got None"):
        tx.update(params, tx.init(params))
