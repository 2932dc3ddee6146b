"""What every transformation owes its users, in the manner of the table for Optax's contributed optimizers."""

import chex
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fobt

QUANTIZER = fobt.binary()
STEP = 0.05


def no_kwargs(grad_fn):
    return {}


def with_grad_fn(grad_fn):
    return {"grad_fn": grad_fn}


def with_traced_two_stage(grad_fn):
    return {"grad_fn": grad_fn, "two_stage": jnp.asarray(True)}


# One row per transformation: the transformation, its quantizer, and what its update takes besides grads and params.
ROWS = {
    "every step": (fobt.forward_backtrack(STEP, QUANTIZER), QUANTIZER, with_grad_fn),
    "period": (fobt.forward_backtrack(STEP, QUANTIZER, every=2), QUANTIZER, with_grad_fn),
    "a=1": (fobt.forward_backtrack(STEP, QUANTIZER, a=1), QUANTIZER, with_grad_fn),
    "identity": (fobt.forward_backtrack(STEP, fobt.full_precision()), fobt.full_precision(), with_grad_fn),
    "ternary": (fobt.forward_backtrack(STEP, fobt.ternary()), fobt.ternary(), with_grad_fn),
    "schedule": (
        fobt.forward_backtrack(optax.linear_schedule(STEP, 0.01, 500), QUANTIZER, every=2),
        QUANTIZER,
        with_traced_two_stage,
    ),
    "bounded and clipped": (
        fobt.forward_backtrack(STEP, QUANTIZER, weight_bounds=(-5, 5), grad_transform=optax.clip(1.0)),
        QUANTIZER,
        with_grad_fn,
    ),
    "numbers of NumPy": (
        fobt.forward_backtrack(np.float32(STEP), QUANTIZER, a=np.float32(0.6)),
        QUANTIZER,
        with_grad_fn,
    ),
    "injected": (
        optax.inject_hyperparams(fobt.forward_backtrack, static_args=("quantizer", "b1", "b2", "eps"))(STEP, QUANTIZER),
        QUANTIZER,
        with_grad_fn,
    ),
    "optimistic": (fobt.optimistic(fobt.forward_backtrack(STEP, QUANTIZER)), QUANTIZER, no_kwargs),
    "adam with bound_weights": (
        optax.chain(optax.adam(STEP), fobt.bound_weights((-5.0, 5.0), QUANTIZER)),
        QUANTIZER,
        no_kwargs,
    ),
}
DTYPES = ["bfloat16", "float32", "float64"]

# Targets that a binary tensor reaches, so that loss-aware training has a fixed point.
PROBLEMS = {
    "vector": jnp.array([1.0, -1.0, 2.0]),
    "matrix": jnp.array([[3.0, -3.0], [3.0, 3.0]]),
    "mixed": (jnp.array([1.0, -1.0, 2.0]), {"kernel": jnp.array([[1.0, 1.0], [-1.0, 1.0]])}),
    "scalar and empty": (jnp.array(1.0), jnp.zeros((0, 3)), jnp.array([[-2.0]])),
}


def make_problem(name, dtype):
    """First params and a loss with its minimum at the targets."""
    targets = jax.tree.map(lambda x: x.astype(dtype), PROBLEMS[name])
    params = jax.tree.map(lambda x: (x * 0 + 0.1 + 0.05 * jnp.arange(x.size).reshape(x.shape)).astype(dtype), targets)

    def loss_fn(weights):
        return sum(
            jnp.sum((w - t) ** 2) for w, t in zip(jax.tree.leaves(weights), jax.tree.leaves(targets), strict=True)
        )

    return params, targets, loss_fn


def make_step(row, loss_fn, **more):
    tx, quantizer, update_kwargs = ROWS[row]

    def step(params, state):
        _, grads, grad_fn = fobt.value_and_grad(loss_fn, quantizer)(params, state)
        updates, state = tx.update(grads, state, params, **update_kwargs(grad_fn), **more)
        return optax.apply_updates(params, updates), state, updates

    return step


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes_stay_and_the_second_call_compiles_nothing(row, dtype):
    with jax.enable_x64(dtype == "float64"):
        params, _, loss_fn = make_problem("mixed", dtype)
        state = ROWS[row][0].init(params)
        chex.clear_trace_counter()  # it counts by name
        step = jax.jit(chex.assert_max_traces(make_step(row, loss_fn), 1))  # a weak type would make it trace again
        new_params, new_state, updates = step(params, state)
        for new, old in ((new_params, params), (updates, params), (new_state, state)):
            chex.assert_trees_all_equal_structs(new, old)
            chex.assert_trees_all_equal_shapes_and_dtypes(new, old)
        step(*step(new_params, new_state)[:2])


@pytest.mark.parametrize("row", ROWS)
def test_unknown_keywords_are_ignored(row):
    params, _, loss_fn = make_problem("mixed", "float32")
    tx = optax.with_extra_args_support(ROWS[row][0])
    quantizer, update_kwargs = ROWS[row][1:]

    def step(params, state, **more):
        _, grads, grad_fn = fobt.value_and_grad(loss_fn, quantizer)(params, state)
        return tx.update(grads, state, params=params, **update_kwargs(grad_fn), **more)

    state = tx.init(params)
    got = jax.jit(lambda p, s: step(p, s, value=jnp.zeros(()), what_nobody_expects=1))(params, state)
    chex.assert_trees_all_equal(got, jax.jit(step)(params, state))


@pytest.mark.parametrize(
    ("row", "problem"),
    # The gradients of this table are at the current weights, those of "optimistic" belong at the trial point.
    [(row, "mixed") for row in ROWS if row != "optimistic"]
    + [("every step", "vector"), ("every step", "matrix"), ("ternary", "scalar and empty")],
)
def test_converges(row, problem):
    params, targets, loss_fn = make_problem(problem, "float32")
    tx, quantizer, _ = ROWS[row]
    step = make_step(row, loss_fn)
    first = params, tx.init(params)
    (params, state), _ = jax.jit(lambda carry: jax.lax.scan(lambda c, _: (step(*c)[:2], None), carry, length=1500))(
        first
    )
    weights = fobt.quantized_params(params, state, quantizer)
    chex.assert_trees_all_close(weights, targets, rtol=5e-2, atol=5e-2)


@pytest.mark.slow
@pytest.mark.parametrize("row", ["every step", "period", "a=1", "identity", "ternary", "schedule"])
def test_state_is_that_of_adam(row):
    params, _, loss_fn = make_problem("mixed", "float32")
    tx = ROWS[row][0]
    expected = optax.scale_by_adam().init(params)
    state = tx.init(params)
    assert isinstance(state, optax.ScaleByAdamState)
    chex.assert_trees_all_equal(state, expected)
    _, state, _ = make_step(row, loss_fn)(params, state)
    assert isinstance(state, optax.ScaleByAdamState)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, expected)
    assert state.count == 1
    numbers = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert sum(leaf.nbytes for leaf in jax.tree.leaves((state.mu, state.nu))) == 8 * numbers
    optax.tree.map_params(tx, lambda leaf: leaf, state)


@pytest.mark.parametrize("dtype", ["float32", "float64"])  # less is tested in nu_dtype_test
@pytest.mark.parametrize(
    "kwargs", [{"a": 1}, {"a": 1.0, "every": 3}, {"every": lambda count: False}, {"every": 1000}, {"b1": 0.0, "a": 1}]
)
def test_plain_steps_are_those_of_adam_to_the_last_bit(dtype, kwargs):
    with jax.enable_x64(dtype == "float64"):
        params, _, loss_fn = make_problem("mixed", dtype)
        tx = fobt.forward_backtrack(STEP, QUANTIZER, b2=0.98, eps=1e-6, **kwargs)
        adam = optax.with_extra_args_support(optax.adam(STEP, kwargs.get("b1", 0.9), 0.98, 1e-6))
        state, adam_state = tx.init(params), adam.init(params)

        def update(tx, params, state):
            grads = jax.grad(loss_fn)(fobt.quantized_params(params, state, QUANTIZER))
            return tx.update(grads, state, params, grad_fn=jax.grad(loss_fn))

        update = jax.jit(update, static_argnums=0)
        for _ in range(3):
            updates, state = update(tx, params, state)
            expected, adam_state = update(adam, params, adam_state)
            chex.assert_trees_all_equal(updates, expected)
            chex.assert_trees_all_equal(state, adam_state[0])
            params = optax.apply_updates(params, updates)


# --- Transformations of JAX ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("row", ["period", "ternary", "optimistic"])
def test_vmap_over_seeds_is_a_loop_over_them(row):
    _, _, loss_fn = make_problem("mixed", "float32")
    tx = ROWS[row][0]
    base = make_problem("mixed", "float32")[0]
    keys = jax.random.split(jax.random.key(0), 3)
    seeds = [jax.tree.map(lambda x, key=key: x + jax.random.normal(key, x.shape), base) for key in keys]

    def train(params):
        carry = params, tx.init(params)
        for _ in range(3):
            carry = make_step(row, loss_fn)(*carry)[:2]
        return carry

    together = jax.jit(jax.vmap(train))(jax.tree.map(lambda *x: jnp.stack(x), *seeds))
    for i, seed in enumerate(seeds):
        chex.assert_trees_all_close(jax.tree.map(lambda x, i=i: x[i], together), jax.jit(train)(seed), rtol=1e-5)


@pytest.mark.parametrize("row", ["every step", "period", "optimistic", "adam with bound_weights"])
def test_params_and_state_can_be_donated(row):
    params, _, loss_fn = make_problem("matrix", "float32")
    state = jax.tree.map(jnp.array, ROWS[row][0].init(params))
    expected = make_step(row, loss_fn)(params, state)[:2]
    step = jax.jit(lambda params, state: make_step(row, loss_fn)(params, state)[:2], donate_argnums=(0, 1))
    got = step(params, state)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((params, state)))
    chex.assert_trees_all_close(got, expected, rtol=1e-5)
    chex.assert_tree_all_finite(step(*got))


@pytest.mark.parametrize("row", ["period", "ternary", "optimistic"])
def test_the_whole_step_is_exported_for_all_platforms(row):
    params, _, loss_fn = make_problem("mixed", "float32")
    state = ROWS[row][0].init(params)
    step = jax.jit(make_step(row, loss_fn))
    flat, structure = jax.tree.flatten((params, state))
    flat_step = jax.jit(lambda *leaves: jax.tree.leaves(step(*jax.tree.unflatten(structure, leaves))))
    exported = jax.export.export(flat_step, platforms=["cpu", "cuda", "tpu"])(*flat)
    assert exported.platforms == ("cpu", "cuda", "tpu")
    restored = jax.export.deserialize(exported.serialize())
    chex.assert_trees_all_close(restored.call(*flat), flat_step(*flat), rtol=1e-5)


def test_ema_of_params_is_what_is_quantized():
    """An average of params is evaluated with the curvature of the state, without any bookkeeping."""
    params, _, loss_fn = make_problem("mixed", "float32")
    row = "every step"
    state, ema = ROWS[row][0].init(params), optax.ema(0.9)
    ema_state = ema.init(params)
    for _ in range(4):
        params, state, _ = make_step(row, loss_fn)(params, state)
        averaged, ema_state = ema.update(params, ema_state)
    got = fobt.quantized_params(averaged, state, QUANTIZER)[1]["kernel"]
    curvature = jnp.sqrt(state.nu[1]["kernel"]) + 1e-8
    chex.assert_trees_all_equal(got, QUANTIZER(averaged[1]["kernel"], curvature).dequantize())
