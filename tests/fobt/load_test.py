"""Training under load: random small configurations, and many steps, without a recompilation, a NaN or a leak."""

import dataclasses
import functools
import gc
import math

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import fobt

AXES = {"x": 4, "y": 2}
STEPS = 3
GRIDS = {
    "binary": fobt.binary,
    "ternary": fobt.ternary,
    "two scales": functools.partial(fobt.ternary, scale_per_sign=True),
    "linear4": functools.partial(fobt.linear, 4),
    "logarithmic3": functools.partial(fobt.logarithmic, 3),
    "alternating": functools.partial(fobt.linear, 3, solver="alternating"),
}
# Each makes a granularity for tensors of some number of axes.
GRANULARITIES = {
    "tensor": lambda ndim: fobt.per_tensor(),
    "channel": lambda ndim: fobt.per_channel(),
    "first channel": lambda ndim: fobt.per_channel(0),
    "block": lambda ndim: fobt.per_block(3, axis=ndim - 1),
    "even block": lambda ndim: fobt.per_block(2, axis=0),
}
METHODS = ("loss-aware", "two-stage", "lax.cond", "optimistic")


@dataclasses.dataclass(frozen=True)
class Configuration:
    """What is trained, on which devices, and how."""

    shape: tuple[int, ...]
    spec: P | None  # None is one device
    explicit: bool
    dtype: str
    grid: str
    granularity: str
    method: str


@st.composite
def configurations(draw):
    shape = tuple(draw(st.lists(st.sampled_from([0, 1, 2, 3, 4, 8]), min_size=1, max_size=4)))
    explicit, granularity = draw(st.booleans()), draw(st.sampled_from(sorted(GRANULARITIES)))
    spec = None
    if math.prod(shape) and draw(st.booleans()):  # XLA does not keep what is empty spread over devices
        places = [
            (axes, i) for axes in (("x",), ("y",), ("x", "y")) for i in range(len(shape)) if divides(axes, shape[i])
        ]
        spread, free = {}, set(AXES)
        for axes, i in draw(st.permutations(places))[:2]:
            # JAX does not split an explicitly spread axis into blocks of which some lie on two devices.
            if i not in spread and free.issuperset(axes) and not (explicit and "block" in granularity):
                spread[i] = axes
                free -= set(axes)
        spec = P(*(spread.get(i) for i in range(len(shape))))
    return Configuration(
        shape,
        spec,
        explicit,
        draw(st.sampled_from(["float32", "bfloat16", "float16"])),
        draw(st.sampled_from(sorted(GRIDS))),
        granularity,
        draw(st.sampled_from(METHODS)),
    )


def divides(axes, size):
    return size % math.prod(AXES[axis] for axis in axes) == 0


def make_optimizer(method, quantizer, eps):
    """The optimizer, and whether its gradient is taken one step ahead."""
    if method == "loss-aware":
        return optax.with_extra_args_support(optax.adam(0.05, eps=eps)), False
    two_stage = fobt.forward_backtrack(0.05, quantizer, every=2 if method == "lax.cond" else 1, eps=eps)
    return (fobt.optimistic(two_stage), True) if method == "optimistic" else (two_stage, False)


def make_step(optimizer, ahead, quantizer, loss_fn):
    def step(params, state):
        if ahead:
            grads = jax.grad(loss_fn)(fobt.quantized_trial_params(params, state, quantizer, optimizer))
            updates, state = optimizer.update(grads, state, params)
        else:
            _, grads, grad_fn = fobt.value_and_grad(loss_fn, quantizer)(params, state)
            updates, state = optimizer.update(grads, state, params, grad_fn=grad_fn)
        return optax.apply_updates(params, updates), state

    return step


@pytest.fixture(scope="module")
def compilations():
    """A list that grows with every program that XLA compiles."""
    durations = []

    def listen(name, duration, **_):
        if name == "/jax/core/compile/backend_compile_duration":
            durations.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield durations
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.slow
@hypothesis.settings(max_examples=20)
@hypothesis.given(configurations())
def test_any_configuration_trains_in_one_program(compilations, configuration):
    c = configuration
    quantizer = fobt.per_leaf(("kernel", GRIDS[c.grid](granularity=GRANULARITIES[c.granularity](len(c.shape)))))
    rng = np.random.default_rng(0)
    params = {"kernel": rng.normal(size=c.shape), "bias": rng.normal(size=3)}
    params = jax.tree.map(lambda w: jnp.asarray(w, c.dtype), params)
    target = jnp.asarray(rng.normal(size=c.shape), c.dtype)
    # ε has to be a number of the dtype; that of Adam is 0 in float16.
    optimizer, ahead = make_optimizer(c.method, quantizer, 1e-4 if c.dtype == "float16" else 1e-8)
    if c.spec is not None:
        kind = AxisType.Explicit if c.explicit else AxisType.Auto
        mesh = jax.make_mesh(tuple(AXES.values()), tuple(AXES), axis_types=(kind,) * 2)
        everywhere, spread = NamedSharding(mesh, P()), NamedSharding(mesh, c.spec)
        params = jax.device_put(params, {"kernel": spread, "bias": everywhere})
        target = jax.device_put(target, spread)
    state = optimizer.init(params)
    if c.spec is not None:  # the step count too
        state = jax.tree.map(lambda leaf: leaf if leaf.ndim else jax.device_put(leaf, everywhere), state)

    def loss_fn(weights):
        return jnp.sum((weights["kernel"] - target).astype(jnp.float32) ** 2) + jnp.sum(weights["bias"] ** 2)

    step = jax.jit(make_step(optimizer, ahead, quantizer, loss_fn), donate_argnums=(0, 1))
    carry = params, state
    forms = [(leaf.shape, leaf.dtype, leaf.sharding) for leaf in jax.tree.leaves(carry)]
    structure, compiled = jax.tree.structure(carry), []
    for _ in range(STEPS):
        before = len(compilations)
        carry = jax.block_until_ready(step(*carry))
        compiled.append(len(compilations) - before)
        assert jax.tree.structure(carry) == structure
        for leaf, (shape, dtype, sharding) in zip(jax.tree.leaves(carry), forms, strict=True):
            assert (leaf.shape, leaf.dtype) == (shape, dtype)
            assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
        chex.assert_tree_all_finite(carry)
    assert compiled == [1] + [0] * (STEPS - 1)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["loss-aware", "two-stage", "optimistic"])
def test_ten_thousand_steps_leave_nothing_behind(compilations, method):
    quantizer = fobt.binary()
    optimizer, ahead = make_optimizer(method, quantizer, 1e-8)
    x = jnp.sin(jnp.arange(12.0)).reshape(4, 3)

    def loss_fn(weights):
        hidden = jnp.tanh(x @ weights["first"])
        return jnp.mean((hidden @ weights["second"] - jnp.cos(x[:, :1])) ** 2)

    step = jax.jit(make_step(optimizer, ahead, quantizer, loss_fn), donate_argnums=(0, 1))
    params = {"first": jnp.sin(jnp.arange(9.0) + 1).reshape(3, 3), "second": jnp.ones((3, 1))}
    carry = step(params, jax.tree.map(jnp.copy, optimizer.init(params)))

    def live():
        jax.block_until_ready(carry)
        arrays = jax.live_arrays()
        return len(arrays), sum(array.nbytes for array in arrays)

    gc.collect()
    expected, compiled = live(), len(compilations)
    for _ in range(10):
        for _ in range(1000):
            carry = step(*carry)
        assert live() == expected
    assert len(compilations) == compiled
    assert optax.tree.get(carry[1], "count") == 10_001
    chex.assert_tree_all_finite(carry)
