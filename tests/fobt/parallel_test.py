"""Training steps of a network over 8 devices, in the three ways people distribute: they are those of one device.

The network has a scale per tensor, per channel and per block, in a layer each.
"""

import functools
import itertools
from dataclasses import dataclass

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from collectives import largest_collective
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import fobt

BATCH, STEPS, LEARNING_RATE = 16, 3, 0.05
WIDTHS = (32, 64, 32, 16)


@dataclass(frozen=True)
class Layout:
    """Where things lie: the mesh, and each layer's kernel and bias; rows of a batch lie along the axis data."""

    mesh: tuple[int, ...]
    kernels: tuple[P, P, P]
    biases: tuple[P, P, P]

    def make_mesh(self):
        names = ("data", "model")[: len(self.mesh)]
        return jax.make_mesh(self.mesh, names, axis_types=(AxisType.Auto,) * len(names))

    def shardings(self):
        mesh = self.make_mesh()
        kernels = {f"kernel{i}": NamedSharding(mesh, spec) for i, spec in enumerate(self.kernels)}
        return kernels | {f"bias{i}": NamedSharding(mesh, spec) for i, spec in enumerate(self.biases)}


LAYOUTS = {
    "data parallel": Layout((8,), (P(), P(), P()), (P(), P(), P())),
    "fully sharded": Layout((8,), (P("data"), P("data"), P(None, "data")), (P("data"), P("data"), P("data"))),
    "tensor parallel": Layout((4, 2), (P(None, "model"), P("model"), P(None, "model")), (P("model"), P(), P("model"))),
}
QUANTIZER = fobt.per_leaf(
    ("kernel0", fobt.ternary()),
    ("kernel1", fobt.binary(granularity=fobt.per_channel())),
    ("kernel2", fobt.binary(granularity=fobt.per_block(4))),
)
METHODS = {
    "loss-aware": lambda: optax.adam(LEARNING_RATE),
    "two-stage": lambda: fobt.forward_backtrack(LEARNING_RATE, QUANTIZER),
    "one gradient": lambda: fobt.optimistic(fobt.forward_backtrack(LEARNING_RATE, QUANTIZER)),
}


def make_params(widths):
    """The network's params, of NumPy so that they belong to no device."""
    rng = np.random.default_rng(0)
    params = {}
    for i, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        params[f"kernel{i}"] = rng.normal(size=(inputs, outputs)) / np.sqrt(inputs)
        params[f"bias{i}"] = 0.1 * rng.normal(size=outputs)
    return params


def make_batches():
    rng = np.random.default_rng(1)
    sizes = (BATCH, WIDTHS[0]), (BATCH, WIDTHS[-1])
    return [tuple(rng.normal(size=size) for size in sizes) for _ in range(STEPS)]


def loss_fn(weights, x, y):
    for i in range(len(WIDTHS) - 1):
        x = jnp.tanh(x @ weights[f"kernel{i}"] + weights[f"bias{i}"][None])
    return jnp.mean((x - y) ** 2)


@functools.cache
def make_step(method):
    tx = METHODS[method]()

    @jax.jit
    def step(params, state, batch):
        if method == "one gradient":
            loss, grads = jax.value_and_grad(loss_fn)(fobt.quantized_trial_params(params, state, QUANTIZER, tx), *batch)
            updates, state = tx.update(grads, state, params)
        else:
            loss, grads, grad_fn = fobt.value_and_grad(loss_fn, QUANTIZER)(params, state, *batch)
            updates, state = optax.with_extra_args_support(tx).update(grads, state, params, grad_fn=grad_fn)
        params = optax.apply_updates(params, updates)
        return params, state, loss, fobt.quantize(params, state, QUANTIZER)

    return tx, step


def train(step, params, state, batches):
    """Params, optimizer state, losses, and quantized params after all steps."""
    losses = []
    for batch in batches:
        # Computations on virtual devices that overlap may wait for each other's threads.
        params, state, loss, quantized = jax.block_until_ready(step(params, state, batch))
        losses.append(float(loss))
    return params, state, losses, quantized


@functools.cache
def train_on_one_device(method):
    tx, step = make_step(method)
    params = jax.device_put(make_params(WIDTHS))
    return jax.device_get(train(step, params, tx.init(params), make_batches()))


def check_shardings(tree, shardings):
    """Every leaf of a tree with the keys of the params lies where the param does, state included."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        assert names or leaf.ndim == 0
        for name in names:
            assert leaf.sharding.is_equivalent_to(shardings[name], leaf.ndim), (path, leaf.sharding)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_steps_are_those_of_one_device(layout, method):
    """Codes to the bit, everything else to 1e-9.

    Sums over parts of a batch or a tensor round differently than over the whole. In float64 this cannot reach a code;
    in float32 it can, as Adam magnifies the rounding of gradients that are close to 0.
    """
    expected = train_on_one_device(method)
    mesh, shardings = LAYOUTS[layout].make_mesh(), LAYOUTS[layout].shardings()
    with jax.set_mesh(mesh):
        params = jax.device_put(make_params(WIDTHS), shardings)
        batches = jax.device_put(make_batches(), NamedSharding(mesh, P("data")))
        tx, step = make_step(method)
        # Not under jit, where zeros would be replicated; with the mesh, so that scalars are on it from the start.
        state, programs = tx.init(params), step._cache_size()
        check_shardings((params, state), shardings)
        got = train(step, params, state, batches)
    assert step._cache_size() == programs + 1
    chex.assert_trees_all_close(jax.device_get(got), expected, rtol=1e-9, atol=1e-9)

    params, state, _, quantized = got
    codes = {name: leaf.codes for name, leaf in quantized.items() if isinstance(leaf, fobt.Quantized)}
    chex.assert_trees_all_equal(jax.device_get(codes), {name: expected[3][name].codes for name in codes})
    assert len(codes) == 3
    check_shardings((params, state, codes), shardings)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_whole_tensor_travels_in_the_projection(layout):
    """Per tensor: sums over rows of up to 15 candidates, of 32768 weights or more; nothing where all have all."""
    params = jax.device_put(make_params((256, 512, 256, 128)), LAYOUTS[layout].shardings())
    state = optax.adam(LEARNING_RATE).init(params)
    project = jax.jit(lambda params, state: fobt.quantized_params(params, state, fobt.ternary()))
    largest = largest_collective(project.lower(params, state).compile())
    assert largest == 0 if layout == "data parallel" else 0 < largest <= 15 * 256
