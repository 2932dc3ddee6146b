"""Tensors stacked along leading axes, without vmap: each is quantized as by itself, and vectors are left alone."""

import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fobt

GRIDS = {
    "binary": fobt.binary,
    "ternary, two scales": lambda **options: fobt.ternary(scale_per_sign=True, **options),
    "ternary, exact": lambda **options: fobt.ternary(solver="exact", **options),
    "linear(3)": lambda **options: fobt.linear(3, **options),
    "logarithmic(3)": lambda **options: fobt.logarithmic(3, solver="alternating", **options),
}
SPLITS = [
    *(fobt.per_tensor(), fobt.per_channel(), fobt.per_channel((0, -1)), fobt.per_block(2)),
    fobt.per_block(3, axis=-1),
]
SEEDS = 3


def stack(*shape: int, seed: int = 0) -> jax.Array:
    """Tensors of different sizes of numbers, so that a scale for several shows."""
    factors = jnp.arange(1.0, SEEDS + 1).reshape(-1, *(1,) * len(shape))
    return factors * jax.random.normal(jax.random.key(seed), (SEEDS, *shape))


@pytest.mark.slow
@pytest.mark.parametrize("split", SPLITS, ids=str)
@pytest.mark.parametrize("grid", GRIDS)
def test_each_is_projected_by_itself(grid: str, split):
    weights, curvature = stack(5, 4), jnp.exp(stack(5, 4, seed=1))
    quantized = GRIDS[grid](granularity=split, stacked=1)(weights, curvature)
    alone = jax.jit(GRIDS[grid](granularity=split))
    for i in range(SEEDS):
        expected = alone(weights[i], curvature[i])
        np.testing.assert_array_equal(quantized.codes[i], expected.codes)
        np.testing.assert_allclose(quantized.dequantize()[i], expected.dequantize(), rtol=1e-6)


@pytest.mark.slow
def test_two_stacked_axes():
    weights = stack(2, 5, 4)
    quantized = fobt.linear(3, stacked=2)(weights)
    assert quantized.scale.shape == (SEEDS, 2, 1, 1)
    for i, j in np.ndindex(SEEDS, 2):
        np.testing.assert_allclose(quantized.dequantize()[i, j], fobt.linear(3)(weights[i, j]).dequantize(), rtol=1e-6)


def params() -> dict[str, dict[str, jax.Array]]:
    return {"0": {"kernel": stack(4, 6), "bias": stack(6, seed=2)}, "1": {"kernel": stack(6, 2, seed=3)}}


def loss_of_one(weights, x):
    return jnp.mean(
        jnp.square(jnp.tanh(x @ weights["0"]["kernel"] + weights["0"]["bias"][None]) @ weights["1"]["kernel"])
    )


@pytest.mark.slow
def test_seeds_train_as_they_do_one_by_one():
    x = jax.random.normal(jax.random.key(9), (8, 4))

    def train(quantizer, params, loss_fn):
        tx = fobt.forward_backtrack(0.1, quantizer)
        state = tx.init(params)

        @jax.jit
        def step(params, state):
            _, grads, grad_fn = fobt.value_and_grad(loss_fn, quantizer)(params, state)
            updates, state = tx.update(grads, state, params, grad_fn=grad_fn)
            return optax.apply_updates(params, updates), state

        for _ in range(3):
            params, state = step(params, state)
        return fobt.quantized_params(params, state, quantizer)

    together = train(
        fobt.ternary(solver="exact", stacked=1), params(), lambda w: jnp.sum(jax.vmap(loss_of_one, (0, None))(w, x))
    )
    for i in range(SEEDS):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], params())
        alone = train(fobt.ternary(solver="exact"), one, lambda w: loss_of_one(w, x))
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-6), together, alone)


@pytest.mark.slow
def test_vectors_that_are_stacked_stay_in_full_precision():
    quantized = fobt.quantize(params(), None, fobt.binary(stacked=1))
    assert isinstance(quantized["0"]["kernel"], fobt.Quantized)
    assert quantized["0"]["kernel"].scale.shape == (SEEDS, 1, 1)
    np.testing.assert_array_equal(quantized["0"]["bias"], params()["0"]["bias"])


@pytest.mark.slow
def test_scanned_layers_beside_others():
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.LayerNorm()(jnp.tanh(nn.Dense(4)(x))), None

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            scan = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=SEEDS)
            return nn.Dense(2)(scan(name="layers")(x, None)[0])

    weights = Network().init(jax.random.key(0), jnp.ones((1, 4)))["params"]
    quantizer = fobt.per_leaf((r"layers/.*/kernel", fobt.binary(stacked=1)), default=fobt.binary())
    with pytest.warns(UserWarning, match=r"layers/Dense_0/bias \(3, 4\), layers/LayerNorm_0/bias \(3, 4\), layers/Lay"):
        fobt.quantize(weights, None, quantizer)
    kernels = fobt.per_leaf((r"layers/.*/kernel", fobt.binary(stacked=1)), ("Dense_0/kernel", fobt.binary()))
    quantized = fobt.quantize(weights, None, kernels)
    assert quantized["layers"]["Dense_0"]["kernel"].scale.shape == (SEEDS, 1, 1)
    assert not isinstance(quantized["layers"]["Dense_0"]["bias"], fobt.Quantized)
    assert quantized["Dense_0"]["kernel"].scale.shape == ()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tree", "named"),
    [
        ({"kernel": (3, 4, 2), "bias": (3, 2)}, r"bias \(3, 2\)"),
        ({"layer": {"w": (3, 4, 2), "b": (3, 2)}}, r"layer/b \(3, 2\)"),
        ({"w": (3, 4, 2), "b": (3, 2)}, r"b \(3, 2\)"),
        ({"norm": {"scale": (3, 2)}}, r"norm/scale \(3, 2\)"),
    ],
)
def test_vectors_that_are_taken_for_matrices_are_named(tree, named: str):
    weights = jax.tree.map(jnp.ones, tree, is_leaf=lambda x: isinstance(x, tuple))
    with pytest.warns(UserWarning, match=rf"takes these leaves for matrices: {named}.*fobt.binary\(stacked=1\)"):
        fobt.quantize(weights, None, fobt.ternary())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fobt.quantize(weights, None, fobt.ternary(stacked=1))
        fobt.quantize(weights, None, fobt.per_leaf((".*", fobt.ternary())))
        fobt.quantize(weights, None, fobt.full_precision())
        fobt.quantize({"a": jnp.ones((2, 2)), "b": jnp.ones((2, 2))}, None, fobt.ternary())


@pytest.mark.slow
def test_stacked_weights_are_packed():
    quantized = fobt.quantize(params(), None, fobt.linear(4, stacked=1))
    restored = fobt.packed.unpack(fobt.packed.pack(quantized))
    jax.tree.map(np.testing.assert_array_equal, fobt.dequantize(restored), fobt.dequantize(quantized))


@pytest.mark.parametrize("stacked", [-1, 0.5, True, "1"])
def test_what_stacked_may_be(stacked):
    with pytest.raises(ValueError, match=f"stacked must be an integer of at least 0, got {stacked!r}"):
        fobt.binary(stacked=stacked)
