"""Annealed params against the piecewise-affine map in NumPy, and their ends, exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import published_methods
import pytest
import reference

import fobt

QUANTIZERS = {
    "binary": fobt.binary(),
    "ternary": fobt.ternary(solver="exact"),
    "linear": fobt.linear(3, solver="exact"),
    "logarithmic": fobt.logarithmic(3, solver="exact"),
}
ALL = {
    **QUANTIZERS,
    "candidates": fobt.ternary(),
    "first alternations": fobt.linear(4, solver="alternating"),
    "scale per sign": fobt.ternary(scale_per_sign=True),
    "per channel": fobt.linear(2, granularity=fobt.per_channel()),
    "per block": fobt.binary(granularity=fobt.per_block(3)),
    "per leaf": fobt.per_leaf((".*/kernel", fobt.ternary()), (".*/embedding", fobt.linear(4))),
}


def tree(dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 4)
    params = {
        "kernel": jax.random.normal(keys[0], (7, 6), dtype),
        "embedding": 3 * jax.random.normal(keys[1], (5, 4), dtype),
        "bias": jnp.ones(3, dtype),
    }
    nu = jax.tree.map(lambda w: jnp.square(jnp.arange(1.0, w.size + 1).reshape(w.shape) / w.size), params)
    return {"layer": params}, optax.scale_by_adam().init({"layer": params})._replace(nu={"layer": nu})


@pytest.mark.parametrize("grid", QUANTIZERS)
@pytest.mark.parametrize("rho", [0.9, 0.5, 0.1, 1e-3])
def test_follows_the_definition(grid, rho):
    rng = np.random.default_rng(0)
    w, nu = rng.normal(size=(6, 5)), rng.uniform(0.1, 2, size=(6, 5)) ** 2
    levels = reference.levels(grid, 3)
    alpha, _ = reference.project_exact(w.ravel(), np.sqrt(nu).ravel(), levels)
    with jax.enable_x64(True):
        params = {"kernel": jnp.asarray(w), "bias": jnp.ones(3)}
        state = optax.scale_by_adam().init(params)
        state = state._replace(nu={"kernel": jnp.asarray(nu), "bias": jnp.ones(3)})
        got = jax.jit(lambda rho: fobt.annealed_params(params, state, QUANTIZERS[grid], rho))(rho)
    assert np.any(np.abs(w) > alpha)  # some weights are beyond the outermost level
    np.testing.assert_allclose(got["kernel"], published_methods.annealed(w, alpha * levels, rho), rtol=1e-6, atol=1e-9)
    np.testing.assert_array_equal(got["bias"], 1)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_ends_are_the_latents_and_their_projection_exactly(name, dtype):
    params, state = tree(dtype)
    annealed = jax.jit(lambda rho: fobt.annealed_params(params, state, ALL[name], rho))
    projected = jax.jit(lambda: fobt.quantized_params(params, state, ALL[name]))()
    for rho, expected in [(0.0, projected), (1.0, params), (-0.1, projected), (1.1, params)]:
        jax.tree.map(np.testing.assert_array_equal, annealed(rho), expected)
    middle = annealed(0.5)
    for got, w, w_hat in zip(*map(jax.tree.leaves, (middle, params, projected)), strict=True):
        assert (got.dtype, got.shape) == (w.dtype, w.shape)
        assert np.all(np.abs(got - w_hat) <= np.abs(w - w_hat).max())


@pytest.mark.parametrize("name", ["binary", "ternary", "linear", "logarithmic"])
@pytest.mark.parametrize("rho", [0.05, 0.5, 0.95])
def test_the_map_is_continuous_and_does_not_decrease(name, rho):
    """Between neighbours in a fine grid of latents, whose projection does not change."""
    latents = jnp.linspace(-3, 3, 60_001)[None]
    mapped = np.asarray(fobt.annealed_params(latents, None, QUANTIZERS[name], rho)[0], np.float64)
    steps = np.diff(mapped)
    assert np.all(steps >= -1e-6)
    assert np.all(steps <= 1e-4 / rho + 1e-5)


def test_stacked_models_are_annealed_as_each_of_them():
    """With `vmap`, each with an inverse slope of its own, and as one tree of stacked tensors."""
    weights = jax.random.normal(jax.random.key(0), (3, 6, 4)) * jnp.array([0.1, 1.0, 10.0])[:, None, None]
    slopes = jnp.array([0.2, 0.5, 0.8])
    tx = optax.adam(0.1)
    states = jax.vmap(tx.init)(weights)
    got = jax.vmap(lambda w, state, rho: fobt.annealed_params(w, state, fobt.ternary(), rho))(weights, states, slopes)
    for i in range(3):
        expected = fobt.annealed_params(weights[i], tx.init(weights[i]), fobt.ternary(), slopes[i])
        np.testing.assert_allclose(got[i], expected, rtol=1e-6)
    stacked = fobt.annealed_params(weights, None, fobt.ternary(stacked=1), 0.5)
    np.testing.assert_allclose(stacked[2], fobt.annealed_params(weights[2], None, fobt.ternary(), 0.5), rtol=1e-6)


@pytest.mark.parametrize("weights", [jnp.zeros((2, 3)), jnp.zeros((0, 3)), jnp.full((2, 2), 1e-30), jnp.ones((1, 1))])
@pytest.mark.parametrize("rho", [0.0, 1e-30, 0.5, 1.0])
def test_degenerate_weights_stay_finite(weights, rho):
    for quantizer in QUANTIZERS.values():
        assert np.all(np.isfinite(fobt.annealed_params(weights, None, quantizer, rho)))


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan"), "half"])
def test_an_inverse_slope_out_of_range_is_an_error(value):
    with pytest.raises(ValueError, match=rf"inverse_slope must be in \[0, 1\], got {value!r}"):
        fobt.annealed_params(jnp.ones((2, 2)), None, fobt.binary(), value)


def test_a_new_inverse_slope_compiles_nothing():
    traces = []

    @jax.jit
    def annealed(params, rho):
        traces.append(rho)
        return fobt.annealed_params(params, None, fobt.binary(), rho)

    for rho in (0.0, 0.5, 1.0):
        annealed(jnp.ones((2, 2)), rho)
    assert len(traces) == 1
