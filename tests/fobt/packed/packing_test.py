"""Packed codes: their bytes are those of the layout, as plain Python has them, and every round trip is exact."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from packed_cases import GRANULARITIES, PACKED_GRIDS, bytes_of, quantized, random_codes, weights_of

import fobt
from fobt._src.packed.layout import pack_codes, unpack_codes

SHAPES = [(), (0,), (3, 0, 2), (1,), (11,), (7, 5), (2, 3, 4)]
ENCODINGS = [(grid, True) for grid in PACKED_GRIDS] + [("ternary", False), ("logarithmic(3)", False)]


def packed_on_device(base3):
    return jax.jit(lambda tree: fobt.packed.pack(tree, base3=base3))


@pytest.mark.parametrize(
    ("grid", "base3", "codes", "expected"),
    [
        ("binary", True, [1, -1, -1, 1, 1, -1, 1, 1, -1, 1], [0b11011001, 0b10]),
        ("ternary", False, [1, 0, -1, 1, 1], [0b10_00_01_10, 0b10]),
        ("ternary", True, [1, 0, -1, 1, 1, -1, 1], [2 + 3 + 0 + 54 + 162, 0 + 6]),
        ("linear(3)", True, [3, -3, 0], [0b11_000_110, 0b0]),
        ("linear(4)", True, [7, -7, 1], [0x0E, 0x08]),
        ("linear(8)", True, [127, -127, 0], [254, 0, 127]),
        ("logarithmic(3)", True, [1, -1, 2], [0b01_010_100, 0b1]),
    ],
)
def test_bytes_by_hand(grid, base3, codes, expected):
    tensor = dataclasses.replace(quantized(grid, (len(codes),)), codes=np.array(codes, np.int8))
    assert np.asarray(fobt.packed.pack(tensor, base3=base3).codes).tolist() == expected
    assert bytes_of(codes, grid, base3) == bytes(expected)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("grid", "base3"), ENCODINGS)
def test_round_trip(grid, base3, shape):
    tensor = quantized(grid, shape)
    packed = packed_on_device(base3)(tensor)
    assert bytes(np.asarray(packed.codes)) == bytes_of(tensor.codes, grid, base3)
    assert (packed.codes.dtype, packed.codes.ndim, packed.shape) == (jnp.uint8, 1, shape)
    chex.assert_trees_all_equal(jax.jit(fobt.packed.unpack)(packed), tensor)


@given(st.integers(0, 70), st.sampled_from(ENCODINGS), st.integers(0, 1000))
def test_round_trip_in_numpy(count, grid_and_base3, seed):
    grid, base3 = grid_and_base3
    codes, tensor = random_codes(grid, count, seed), quantized(grid, (0,))
    layout = tensor.grid.spacing, tensor.grid.bits, fobt.packed.pack(tensor, base3=base3).encoding
    data = pack_codes(codes, *layout)
    assert data.dtype == np.uint8
    assert bytes(data) == bytes_of(codes, grid, base3)
    unpacked = unpack_codes(data, codes.shape, *layout)
    assert unpacked.dtype == np.int8
    np.testing.assert_array_equal(unpacked, codes)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("grid", ["binary", "ternary", "linear(3)", "logarithmic(4)"])
def test_dequantized(grid, granularity):
    tensor = quantized(grid, granularity=granularity)
    got = jax.jit(fobt.dequantize)({"kernel": fobt.packed.pack(tensor)})["kernel"]
    np.testing.assert_allclose(got, weights_of(tensor, grid), rtol=1e-6)
    assert got.dtype == jnp.float32


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_dequantized_dtype(dtype):
    tensor = quantized("ternary", dtype=jnp.dtype(dtype))
    assert fobt.packed.pack(tensor).dequantize().dtype == dtype


def test_trees_and_packed_leaves_stay_as_they_are():
    tree = {"kernel": quantized("ternary"), "bias": jnp.ones(3), "none": None}
    once = fobt.packed.pack(tree, base3=False)
    assert once["kernel"].encoding == "bits"
    chex.assert_trees_all_equal(fobt.packed.pack(once), once)
    chex.assert_trees_all_equal(fobt.packed.unpack(once), tree)
    chex.assert_trees_all_equal(fobt.packed.unpack(tree), tree)


@pytest.mark.parametrize("grid", ["binary", "ternary", "linear(3)"])
def test_vmap(grid):
    tensors = [quantized(grid, seed=seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *tensors)
    packed = jax.jit(jax.vmap(fobt.packed.pack))(stacked)
    for i, tensor in enumerate(tensors):
        assert bytes(np.asarray(packed.codes[i])) == bytes_of(tensor.codes, grid)
    chex.assert_trees_all_equal(jax.jit(jax.vmap(fobt.packed.unpack))(packed), stacked)


@pytest.mark.slow
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("grid", ["ternary", "linear(3)", "linear(4)"])
def test_sharded(axis_type, grid):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(axis_type,) * 2)
    tensor = quantized(grid, (8, 6))
    sharded = jax.device_put(
        tensor, jax.tree.map(lambda leaf: NamedSharding(mesh, P("x", "y") if leaf.ndim else P()), tensor)
    )
    for pack, unpack in (
        (fobt.packed.pack, fobt.packed.unpack),
        (jax.jit(fobt.packed.pack), jax.jit(fobt.packed.unpack)),
    ):
        packed = jax.block_until_ready(pack(sharded))
        assert bytes(np.asarray(packed.codes)) == bytes_of(tensor.codes, grid)
        unpacked = jax.block_until_ready(unpack(packed))
        chex.assert_trees_all_equal(jax.device_get(unpacked), tensor)


def test_seeds_spread_over_devices():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,))
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *(quantized("ternary", seed=seed) for seed in range(8)))
    sharded = jax.device_put(stacked, NamedSharding(mesh, P("x")))
    packed = jax.block_until_ready(jax.jit(jax.vmap(fobt.packed.pack))(sharded))
    chex.assert_trees_all_equal(
        jax.device_get(jax.block_until_ready(jax.jit(jax.vmap(fobt.packed.unpack))(packed))), stacked
    )


def test_the_second_call_compiles_nothing():
    pack = jax.jit(chex.assert_max_traces(fobt.packed.pack, n=1))
    for seed in range(2):
        pack(quantized("linear(3)", seed=seed))
