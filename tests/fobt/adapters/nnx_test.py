"""fobt.nnx in the standard training loop of Flax NNX: the numbers of fobt.Training on a model that is split by hand."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import fobt

QUANTIZER = fobt.binary()
METHOD = fobt.forward_backtrack(0.05, QUANTIZER, a=0.6)
OPTIMIZERS = {
    "two gradients": METHOD,
    "loss-aware": optax.adam(0.05),
    "every second step": fobt.forward_backtrack(0.05, QUANTIZER, every=2),
    "optimistic": fobt.optimistic(METHOD),
    "annealed": fobt.anneal(optax.adam(0.05), QUANTIZER, optax.linear_schedule(1.0, 0.0, 3)),
}
X, Y = jax.random.normal(jax.random.key(1), (16, 5)), jax.random.normal(jax.random.key(2), (16, 2))


class Network(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(5, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.last = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x):
        return self.last(self.dropout(nnx.relu(self.norm(self.first(x)))))


def loss_fn(model, x, y):
    return jnp.mean((model(x) - y) ** 2)


@nnx.jit
def train_step(model, optimizer, x, y):
    loss, grads = fobt.nnx.value_and_grad(loss_fn)(model, optimizer, x, y)
    optimizer.update(model, grads)
    return loss


def numbers(tree):
    """The leaves as arrays of NumPy, random keys as the numbers that they are made of."""
    is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)  # noqa: E731
    return [np.asarray(jax.random.key_data(x) if is_key(x) else x) for x in jax.tree.leaves(tree)]


def split_by_hand(tx, steps):
    """Losses, params, state and other variables of the functional form, which the pages on NNX had before."""
    graph, params, rest = nnx.split(Network(nnx.Rngs(0)), nnx.Param, ...)
    params, rest = nnx.as_pure(params), nnx.as_pure(rest)

    def split_loss_fn(weights, rest, x, y):
        model = nnx.merge(graph, weights, rest)
        return loss_fn(model, x, y), nnx.as_pure(nnx.state(model, nnx.Not(nnx.Param)))

    training = fobt.Training(tx, QUANTIZER)
    step, state, losses = jax.jit(training.step(split_loss_fn, has_aux=True)), training.init(params), []
    for _ in range(steps):
        params, state, (loss, rest) = step(params, state, rest, X, Y)
        losses.append(loss)
    return losses, params, state, rest, training.weights(params, state)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_loop_has_the_numbers_of_the_functional_form(name):
    model = Network(nnx.Rngs(0))
    optimizer = fobt.nnx.Optimizer(model, OPTIMIZERS[name], QUANTIZER, wrt=nnx.Param)
    losses = [train_step(model, optimizer, X, Y) for _ in range(4)]
    expected_losses, params, state, rest, weights = split_by_hand(OPTIMIZERS[name], 4)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    _, own_params, own_rest = nnx.split(model, nnx.Param, ...)
    for got, expected in ((own_params, params), (own_rest, rest), (optimizer.opt_state, state)):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *map(numbers, (got, expected))
        )
    quantized = nnx.state(optimizer.quantized_model(model), nnx.Param)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *map(numbers, (quantized, weights))
    )
    np.testing.assert_array_equal(
        optimizer.quantize(model)["first"]["kernel"].codes, np.sign(weights["first"]["kernel"])
    )
    assert optimizer.step[...] == 4


def test_a_quantized_model_leaves_the_latents_alone():
    model = Network(nnx.Rngs(0))
    optimizer = fobt.nnx.Optimizer(model, METHOD, wrt=nnx.Param)
    before = numbers(nnx.state(model))
    quantized = optimizer.quantized_model(model)
    quantized.eval()
    quantized(X)
    assert not model.norm.use_running_average
    assert len(np.unique(np.abs(quantized.first.kernel[...]))) == 1
    jax.tree.map(np.testing.assert_array_equal, numbers(nnx.state(model)), before)


def test_donated_buffers_are_not_those_of_the_quantized_model():
    model = Network(nnx.Rngs(0))
    optimizer = fobt.nnx.Optimizer(model, METHOD, wrt=nnx.Param)
    step = nnx.jit(train_step, donate_argnums=(0, 1))
    first_kernel = model.first.kernel[...]
    step(model, optimizer, X, Y)
    quantized = optimizer.quantized_model(model)
    step(model, optimizer, X, Y)
    assert first_kernel.is_deleted()
    assert all(np.all(np.isfinite(leaf)) for leaf in numbers(nnx.state(quantized, nnx.Not(nnx.RngState))))


def test_aux_keywords_and_random_streams_among_the_arguments():
    """The dropout mask is the gradient, so that both passes are seen to drop the same units."""
    model = nnx.Linear(16, 16, use_bias=False, rngs=nnx.Rngs(0))
    optimizer, rngs, seen = fobt.nnx.Optimizer(model, METHOD, wrt=nnx.Param), nnx.Rngs(dropout=3), []

    def mask_loss(model, rngs, flag, *, weight):
        assert flag is True
        return weight * jnp.sum(nnx.Dropout(0.5)(model.kernel[...], rngs=rngs)), {"aux": jnp.ones(3)}

    def trial(grads):
        seen.append(grads.grad_fn(nnx.as_pure(nnx.state(model, nnx.Param))))

    for _ in range(2):
        (_, aux), grads = fobt.nnx.value_and_grad(mask_loss, has_aux=True)(model, optimizer, rngs, True, weight=2.0)
        assert aux["aux"].shape == (3,)
        trial(grads)
        kernel = numbers(grads)[0]
        assert set(np.unique(kernel)) == {0.0, 4.0}
        np.testing.assert_array_equal(kernel, seen[-1]["kernel"])
    assert not np.array_equal(seen[0]["kernel"], seen[1]["kernel"])
    assert rngs.dropout.count[...] == 2


def test_a_filter_chooses_what_is_trained():
    model = Network(nnx.Rngs(0))
    wrt = nnx.All(nnx.Param, nnx.PathContains("last"))
    optimizer = fobt.nnx.Optimizer(model, METHOD, wrt=wrt)
    before = numbers(nnx.state(model.first))
    train_step(model, optimizer, X, Y)
    jax.tree.map(np.testing.assert_array_equal, numbers(nnx.state(model.first)), before)
    assert list(optimizer.quantize(model)) == ["last"]
    assert len(np.unique(np.abs(optimizer.quantized_model(model).first.kernel[...]))) > 1


def test_keywords_of_the_update():
    """A plain step of the method is Adam's."""
    models = [Network(nnx.Rngs(0)) for _ in range(2)]
    for model, tx, keywords in zip(models, (METHOD, optax.adam(0.05)), ({"two_stage": False}, {}), strict=True):
        optimizer = fobt.nnx.Optimizer(model, tx, QUANTIZER, wrt=nnx.Param)
        _, grads = fobt.nnx.value_and_grad(loss_fn)(model, optimizer, X, Y)
        optimizer.update(model, grads, **keywords)
    ours, adams = (numbers(nnx.state(model, nnx.Param)) for model in models)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), ours, adams)


def test_gradients_are_mapped_like_any_tree():
    model = Network(nnx.Rngs(0))
    optimizer = fobt.nnx.Optimizer(model, METHOD, wrt=nnx.Param)
    _, grads = fobt.nnx.value_and_grad(loss_fn)(model, optimizer, X, Y)
    norm = optax.tree.norm(grads)
    halved = jax.tree.map(lambda g: g / 2, grads)
    np.testing.assert_allclose(optax.tree.norm(halved), norm / 2, rtol=1e-6)
    optimizer.update(model, halved)


def test_a_loss_that_raises_leaves_the_latents():
    model = Network(nnx.Rngs(0))
    optimizer = fobt.nnx.Optimizer(model, METHOD, wrt=nnx.Param)
    before = numbers(nnx.state(model, nnx.Param))

    def broken(model):
        raise RuntimeError("no loss")

    with pytest.raises(RuntimeError, match="no loss"):
        fobt.nnx.value_and_grad(broken)(model, optimizer)
    jax.tree.map(np.testing.assert_array_equal, numbers(nnx.state(model, nnx.Param)), before)


def test_what_users_write_instead():
    model = Network(nnx.Rngs(0))
    optimizer = fobt.nnx.Optimizer(model, optax.adam(0.05), QUANTIZER, wrt=nnx.Param)
    grads = nnx.grad(loss_fn)(model, X, Y)
    with pytest.raises(ValueError, match=r"grads must be what fobt\.nnx\.value_and_grad\(loss_fn\).*got State"):
        optimizer.update(model, grads)
    plain = nnx.Optimizer(model, METHOD, wrt=nnx.Param)
    with pytest.raises(ValueError, match=r"optimizer must be a fobt\.nnx\.Optimizer, got Optimizer"):
        fobt.nnx.value_and_grad(loss_fn)(model, plain, X, Y)
    with pytest.raises(ValueError, match=r"grad_fn must be .*in a loop of Flax, fobt\.nnx and fobt\.linen pass it on"):
        plain.update(model, grads)
    with pytest.raises(ValueError, match="quantizer must be given"):
        fobt.nnx.Optimizer(model, optax.adam(0.05), wrt=nnx.Param)
    with pytest.raises(ValueError, match="state must hold a second moment"):
        fobt.nnx.Optimizer(model, optax.sgd(0.05), QUANTIZER, wrt=nnx.Param)


def test_a_whole_model_as_params_names_the_leaves_without_a_moment():
    model = Network(nnx.Rngs(0))
    state = nnx.as_pure(nnx.Optimizer(model, METHOD, wrt=nnx.Param).opt_state)
    with pytest.raises(
        ValueError,
        match=r"A `nu` of 6 leaves, where params have 10, has none for .*'dropout/rngs/count'",
    ):
        fobt.quantized_params(nnx.state(model), state, QUANTIZER)


WITHOUT_FLAX = """
import sys
sys.modules["flax"] = None
import fobt
try:
    fobt.nnx
except ModuleNotFoundError as error:
    assert str(error) == "fobt.nnx needs Flax: pip install flax", error
else:
    raise AssertionError
"""


@pytest.mark.slow
def test_flax_is_imported_for_its_loops_alone():
    subprocess.run([sys.executable, "-c", WITHOUT_FLAX], check=True)
