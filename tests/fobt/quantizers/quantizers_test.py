"""Quantizers as functions: what they return, dtypes and tracing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from grid_cases import GRIDS, POSITIVE_LEVELS, SOLVED_GRIDS, dequantize, jitted, levels_of, make

import fobt

QUANTIZERS = {
    "binary": fobt.binary(),
    "two scales": fobt.ternary(scale_per_sign=True, solver="alternating"),
    "exact": fobt.linear(3, solver="exact", granularity=fobt.per_channel(0)),
    "blocks": fobt.logarithmic(3, granularity=fobt.per_block(3, axis=1)),
}
each_quantizer = pytest.mark.parametrize("quantizer", QUANTIZERS.values(), ids=QUANTIZERS.keys())
SHAPE = (4, 5)


def normal(shape, seed=0):
    return np.float32(np.random.default_rng(seed).normal(size=shape))


def some_curvature(shape, seed=1):
    return 1 + np.square(normal(shape, seed))


def assert_same(actual, desired, rtol=0.0):
    np.testing.assert_array_equal(actual.codes, desired.codes)
    np.testing.assert_allclose(actual.scale, desired.scale, rtol=rtol)


# --- What is returned -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", ["binary", "linear(8)", "logarithmic(5)"])
def test_codes_scale_and_weights(grid):
    n = len(POSITIVE_LEVELS[grid])
    both_signs = np.outer([-1, 1], np.concatenate([np.linspace(0, 1, 1000), 2.0 ** np.linspace(-17, 0, 100)]))
    quantized = jitted(grid)(np.float32(both_signs))
    assert quantized.codes.dtype == jnp.int8
    assert quantized.codes.shape == both_signs.shape
    codes = set(np.unique(quantized.codes))
    assert codes <= ({-1, 1} if grid == "binary" else set(range(-n, n + 1)))
    assert len(codes) > n  # the weights are so spread that nearly all codes occur
    assert quantized.scale.dtype == jnp.float32
    assert quantized.scale > 0
    w_hat = np.asarray(dequantize(quantized))
    assert w_hat.dtype == np.float32
    np.testing.assert_allclose(w_hat, np.float64(quantized.scale) * levels_of(grid, quantized.codes), rtol=2e-7)


@pytest.mark.parametrize("quantizer", [QUANTIZERS["binary"], QUANTIZERS["two scales"]])
def test_constant_curvature_is_like_none(quantizer):
    weights = normal(SHAPE)
    assert_same(jax.jit(quantizer)(weights), jax.jit(quantizer)(weights, np.full(SHAPE, 4, np.float32)))


@pytest.mark.parametrize("shape", [(), (5,), (4, 1)])
def test_curvature_broadcasts(shape):
    weights, curvature = normal(SHAPE), some_curvature(shape)
    quantize = jitted("ternary", "alternating")
    assert_same(quantize(weights, curvature), quantize(weights, np.broadcast_to(curvature, SHAPE)), rtol=1e-6)


def test_codes_do_not_matter_to_other_solvers():
    weights, codes = normal((20,)), np.ones(20, np.int8)
    assert_same(jitted("ternary")(weights, codes=codes), jitted("ternary")(weights))


def test_only_magnitudes_of_codes_matter():
    weights, codes = normal((20,)), np.tile(np.int8([0, 1, 2, 3]), 5)
    quantize = jitted("linear(3)", "alternating")
    assert_same(quantize(weights, codes=-codes), quantize(weights, codes=codes))


@pytest.mark.optimized
@pytest.mark.parametrize("grid", ["binary", "ternary"])
def test_many_equal_weights_keep_their_scale(grid):
    weights = np.full(2**22, 0.1, np.float32)
    np.testing.assert_allclose(jitted(grid)(weights).scale, np.float64(weights[0]), rtol=1e-6)


@pytest.mark.optimized
@pytest.mark.parametrize("shape", [(2**22,), (1, 2**22), (2**11, 2**11)], ids=str)
@pytest.mark.parametrize("grid", ["binary", "ternary"])
def test_sums_of_many_terms_are_accurate(grid, shape):
    # Beside one weight of 0.3 the terms are no longer exact; all weights are kept.
    weights = np.full(shape, 0.1, np.float32)
    weights.flat[0] = 0.3
    np.testing.assert_allclose(jitted(grid)(weights).scale, np.mean(np.float64(weights)), rtol=1e-5)


# --- dtypes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("binary", jnp.float16), ("exact", jnp.bfloat16), ("two scales", jnp.bfloat16)],
)
def test_half_precision(name, dtype):
    quantizer = QUANTIZERS[name]
    weights, curvature = jnp.asarray(normal(SHAPE), dtype), some_curvature(SHAPE)
    quantized = jax.jit(quantizer)(weights, curvature)
    wider = jax.jit(quantizer)(weights.astype(jnp.float32), curvature)
    assert quantized.scale.dtype == jnp.float32
    assert dequantize(quantized).dtype == dtype
    assert_same(quantized, wider)
    np.testing.assert_array_equal(dequantize(quantized), dequantize(wider).astype(dtype))


@each_quantizer
def test_double_precision(x64, quantizer):
    weights, curvature = np.float64(normal(SHAPE)), np.float64(some_curvature(SHAPE))
    quantized = jax.jit(quantizer)(weights, curvature)
    assert quantized.codes.dtype == jnp.int8
    assert quantized.scale.dtype == jnp.float64
    assert dequantize(quantized).dtype == jnp.float64
    with jax.enable_x64(False):
        single = jax.jit(quantizer)(np.float32(weights), np.float32(curvature))
    assert_same(single, quantized, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
@pytest.mark.parametrize(("grid", "solver"), SOLVED_GRIDS)
def test_dtypes_under_x64(x64, grid, solver, dtype):
    def quantize(weights, curvature):
        quantized = make(grid, solver)(weights, curvature)
        return quantized, quantized.dequantize()

    weights, curvature = jax.ShapeDtypeStruct(SHAPE, dtype), jax.ShapeDtypeStruct(SHAPE, jnp.float64)
    quantized, w_hat = jax.eval_shape(quantize, weights, curvature)
    assert quantized.codes.dtype == jnp.int8
    assert quantized.scale.dtype == (jnp.float64 if dtype == jnp.float64 else jnp.float32)
    assert w_hat.dtype == dtype


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.int32])
def test_curvature_of_another_dtype(dtype):
    weights, curvature = normal((20,)), np.arange(1, 21)
    quantize = jitted("ternary", "alternating")
    assert_same(quantize(weights, jnp.asarray(curvature, dtype)), quantize(weights, np.float32(curvature)))


# --- Tracing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quantizer", [QUANTIZERS["exact"], QUANTIZERS["two scales"]])
def test_jit_changes_nothing(quantizer):
    weights, curvature = normal(SHAPE), some_curvature(SHAPE)
    assert_same(jax.jit(quantizer)(weights, curvature), quantizer(weights, curvature), rtol=1e-6)


@each_quantizer
def test_vmap_equals_a_loop(quantizer):
    weights, curvature = normal((3, *SHAPE)), some_curvature((3, *SHAPE))
    batched = jax.jit(jax.vmap(quantizer))(weights, curvature)
    w_hat = jax.jit(jax.vmap(fobt.Quantized.dequantize))(batched)
    for i in range(3):
        one = jax.jit(quantizer)(weights[i], curvature[i])
        assert_same(jax.tree.map(lambda x, i=i: x[i], batched), one, rtol=1e-6)
        np.testing.assert_allclose(w_hat[i], dequantize(one), rtol=1e-6)


@each_quantizer
def test_second_call_compiles_nothing(quantizer):
    @jax.jit
    def dequantized(quantized):
        return quantized.dequantize()

    @jax.jit
    def quantize(weights, curvature):
        return dataclasses.replace(quantizer)(weights, curvature)  # an equal quantizer, not the same one

    for seed in range(3):
        dequantized(quantize(normal(SHAPE, seed), some_curvature(SHAPE, seed)))
    assert quantize._cache_size() == 1
    assert dequantized._cache_size() == 1


@each_quantizer
def test_quantized_is_a_pytree_of_codes_and_scale(quantizer):
    weights, curvature = normal(SHAPE), some_curvature(SHAPE)
    quantized = jax.jit(quantizer)(weights, curvature)
    leaves, structure = jax.tree.flatten(quantized)
    assert [leaf.dtype for leaf in leaves] == [jnp.int8, jnp.float32]
    assert structure == jax.tree.structure(jax.eval_shape(quantizer, weights, curvature))
    doubled = jax.tree.map(lambda x: 2 * x if x.dtype == jnp.float32 else x, quantized)
    np.testing.assert_array_equal(doubled.dequantize(), 2 * quantized.dequantize())
    np.testing.assert_array_equal(jax.jit(lambda q: q)(quantized).dequantize(), quantized.dequantize())


def test_quantizers_are_values():
    quantizers = [*map(make, GRIDS), *list(QUANTIZERS.values())[1:]]
    assert len({*quantizers, *map(make, GRIDS)}) == len(quantizers)
    with pytest.raises(dataclasses.FrozenInstanceError):
        fobt.binary().solver = "exact"
