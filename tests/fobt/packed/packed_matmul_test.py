"""Products with packed weights are those with the dequantized ones, and these are never in memory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from packed_cases import GRANULARITIES, PACKED_GRIDS, quantized, weights_of

import fobt

matmul = jax.jit(fobt.packed.packed_matmul)


def check(grid, shape=(19, 5), x_shape=(3,), rtol=1e-5, base3=True, **options):
    tensor = quantized(grid, shape, **options)
    x = np.random.default_rng(2).normal(size=(*x_shape, shape[0])).astype(np.float32)
    got = jax.jit(lambda x, packed: fobt.packed.packed_matmul(x, packed))(x, fobt.packed.pack(tensor, base3=base3))
    np.testing.assert_allclose(got, x.astype(np.float64) @ weights_of(tensor, grid), rtol=rtol, atol=rtol)


@pytest.fixture(params=["one block", "several blocks"])
def blocks(request, monkeypatch):
    """Blocks that hold the whole matrix, or 8 of its 19 rows, or 5 in base 3."""
    if request.param == "several blocks":
        monkeypatch.setattr("fobt._src.packed.packed_matmul._BLOCK", 1)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("grid", PACKED_GRIDS)
def test_grids(grid):
    check(grid)


@pytest.mark.slow
@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize(("grid", "per_sign"), [("ternary", False), ("ternary", True), ("logarithmic(3)", False)])
def test_granularities(granularity, grid, per_sign):
    check(grid, granularity=granularity, **({"scale_per_sign": True} if per_sign else {}))


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("shape", [(1, 5), (5, 1), (1, 1), (16, 3), (0, 3), (3, 0)], ids=str)
@pytest.mark.parametrize("granularity", ["channel", "blocks of columns"])
def test_shapes(shape, granularity):
    check("linear(3)", shape, granularity=granularity)


@pytest.mark.parametrize("x_shape", [(), (1,), (2, 3), (0,)], ids=str)
def test_leading_axes(x_shape):
    check("ternary", x_shape=x_shape, base3=False)


def test_dtypes(monkeypatch):
    """Sums are taken in float32: 1024 products of ones in bfloat16 would end at 256."""
    monkeypatch.setattr("fobt._src.packed.packed_matmul._BLOCK", 64)
    ones = dataclasses.replace(quantized("binary", (1024, 2)), codes=np.ones((1024, 2), np.int8), scale=np.float32(1))
    packed = fobt.packed.pack(dataclasses.replace(ones, dtype=jnp.dtype("bfloat16")))
    got = matmul(jnp.ones((1, 1024), jnp.bfloat16), packed)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(got, jnp.full((1, 2), 1024, jnp.bfloat16))
    assert matmul(jnp.ones((1, 1024), jnp.float32), packed).dtype == jnp.float32


@pytest.mark.usefixtures("x64")
def test_float64():
    tensor = quantized("linear(3)", (19, 5), "blocks", dtype=np.float64)
    x = np.random.default_rng(2).normal(size=(3, 19))
    np.testing.assert_allclose(matmul(x, fobt.packed.pack(tensor)), x @ weights_of(tensor, "linear(3)"), rtol=1e-13)


@pytest.mark.parametrize("batch", [1, 100])
@pytest.mark.parametrize(
    ("grid", "granularity"),
    [("binary", "tensor"), ("ternary", "channel"), ("linear(3)", "tensor"), ("linear(4)", "blocks")],
)
def test_memory(grid, granularity, batch):
    """Temporary memory is less than a quarter of the float32 weights, and the arguments are as small as packed."""
    side = 2048
    packed = jax.eval_shape(fobt.packed.pack, quantized(grid, (side, side), granularity))
    x = jax.ShapeDtypeStruct((batch, side), jnp.float32)
    memory = matmul.lower(x, packed).compile().memory_analysis()
    weights = 4 * side * side
    assert memory.temp_size_in_bytes < weights / 4
    nbytes = fobt.packed.size_report(packed).total.nbytes
    assert memory.argument_size_in_bytes == nbytes + 4 * batch * side
    dequantized = jax.jit(lambda x, packed: x @ packed.dequantize()).lower(x, packed).compile().memory_analysis()
    assert dequantized.temp_size_in_bytes >= weights  # what the test would see otherwise


def test_vmap():
    tensors = [quantized("ternary", seed=seed) for seed in range(2)]
    packed = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(fobt.packed.pack, tensors))
    x = np.ones((3, 7), np.float32)
    got = jax.jit(jax.vmap(fobt.packed.packed_matmul, (None, 0)))(x, packed)
    for i, tensor in enumerate(tensors):
        np.testing.assert_allclose(got[i], x @ weights_of(tensor, "ternary"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("x", "packed", "message"),
    [
        (np.ones(3, np.float32), quantized("binary"), "packed must be a Packed of rank 2.*got Quantized"),
        (np.ones(3, np.float32), fobt.packed.pack(quantized("binary", (3,))), r"packed must .*got shape \(3,\)"),
        (
            np.ones(8, np.float32),
            fobt.packed.pack(quantized("binary")),
            r"x must be floating, of shape \(..., 7\), got .* \(8,\)",
        ),
        (np.ones(7, np.int32), fobt.packed.pack(quantized("binary")), "x must be floating.*got int32"),
        (np.float32(1), fobt.packed.pack(quantized("binary")), r"x must .*got float32 of shape \(\)"),
    ],
    ids=["not packed", "rank", "size", "dtype", "scalar"],
)
def test_wrong_arguments(x, packed, message):
    with pytest.raises(ValueError, match=message):
        fobt.packed.packed_matmul(x, packed)


@pytest.mark.slow
@pytest.mark.parametrize("granularity", [fobt.per_tensor(), fobt.per_block(40)])
def test_codes_of_more_bytes_than_an_index_can_count(granularity, monkeypatch):
    """They are taken in parts of so many bytes, here of one or two blocks, the last one shorter."""
    monkeypatch.setattr("fobt._src.packed.packed_matmul._BLOCK", 2**9)
    rng = np.random.default_rng(6)
    x, w = np.float32(rng.normal(size=(2, 333))), np.float32(rng.normal(size=(333, 32)))
    packed = fobt.packed.pack(fobt.linear(4, granularity=granularity)(w))
    for largest_index in (400, 600, 2**31 - 1):
        monkeypatch.setattr("fobt._src.packed.packed_matmul._LARGEST_INDEX", largest_index)
        product = jax.jit(lambda x, packed: fobt.packed.packed_matmul(x, packed))(x, packed)
        np.testing.assert_allclose(product, x @ np.asarray(packed.dequantize()), rtol=1e-4, atol=1e-4)
