"""Errors of quantizers and granularities name the argument, its value and what is allowed."""

import re

import jax.numpy as jnp
import numpy as np
import pytest

import fobt

WEIGHTS = np.linspace(-1, 1, 20, dtype=np.float32).reshape(4, 5)


@pytest.mark.parametrize(("make", "largest"), [(fobt.linear, 8), (fobt.logarithmic, 5)])
@pytest.mark.parametrize("bits", [1, 0, -3, 9, 2.0, 2.5, "3", None, True, np.float32(3)])
def test_bits_out_of_range(make, largest, bits):
    with pytest.raises(ValueError, match=rf"bits must be an integer from 2 to {largest}, got {re.escape(repr(bits))}"):
        make(bits)
    with pytest.raises(ValueError, match=rf"from 2 to {largest}, got {largest + 1}"):
        make(largest + 1)


def test_bits_may_be_any_integer_type():
    assert fobt.linear(np.int64(3)) == fobt.linear(3)


@pytest.mark.parametrize(
    "make", [fobt.ternary, lambda **kw: fobt.linear(3, **kw), lambda **kw: fobt.logarithmic(3, **kw)]
)
@pytest.mark.parametrize("solver", ["sort", "Exact", None, 3])
def test_unknown_solver(make, solver):
    with pytest.raises(
        ValueError, match=rf"solver must be .*exact.*candidates.*alternating.*got {re.escape(repr(solver))}"
    ):
        make(solver=solver)


@pytest.mark.parametrize("choice", [0, 2, "True", None, [1]])
def test_bad_scale_per_sign(choice):
    with pytest.raises(ValueError, match=rf"scale_per_sign must be True or False, got {re.escape(repr(choice))}"):
        fobt.ternary(scale_per_sign=choice)


@pytest.mark.parametrize("size", [0, -1, 2.0, None, "32", True])
def test_bad_block_size(size):
    with pytest.raises(ValueError, match=rf"size must be an integer of at least 1, got {re.escape(repr(size))}"):
        fobt.per_block(size)


@pytest.mark.parametrize("axis", [0.0, None, (0, 1), "0"])
def test_bad_block_axis(axis):
    with pytest.raises(ValueError, match=rf"axis must be an integer, got {re.escape(repr(axis))}"):
        fobt.per_block(2, axis)


@pytest.mark.parametrize("axes", [(), [], 0.0, None, (0, 1.0), "01"])
def test_bad_channel_axes(axes):
    match = rf"axes must be an integer or a non-empty sequence of integers, got {re.escape(repr(axes))}"
    with pytest.raises(ValueError, match=match):
        fobt.per_channel(axes)


@pytest.mark.parametrize("axes", [(1, 1), (0, -2)])
def test_repeated_channel_axes_count_once(axes):
    scale, once = (fobt.binary(granularity=fobt.per_channel(kept))(WEIGHTS).scale for kept in (axes, axes[0]))
    np.testing.assert_array_equal(scale, once)


@pytest.mark.parametrize("granularity", ["tensor", None, 32, fobt.per_tensor])
@pytest.mark.parametrize("make", [fobt.binary, fobt.ternary, lambda **kw: fobt.linear(3, **kw)])
def test_bad_granularity(make, granularity):
    match = rf"granularity must be made by per_tensor, per_channel or per_block, got {re.escape(repr(granularity))}"
    with pytest.raises(ValueError, match=match):
        make(granularity=granularity)


@pytest.mark.parametrize("granularity", [fobt.per_channel(2), fobt.per_channel((0, -3)), fobt.per_block(2, axis=2)])
def test_axis_that_the_weights_do_not_have(granularity):
    with pytest.raises(ValueError, match=r"axis (2|-3) is out of range for weights of rank 2"):
        fobt.binary(granularity=granularity)(WEIGHTS)


@pytest.mark.parametrize("granularity", [fobt.per_channel(), fobt.per_block(2)])
def test_rank_zero_has_no_axis(granularity):
    with pytest.raises(ValueError, match=r"axis (0|-1) is out of range for weights of rank 0"):
        fobt.binary(granularity=granularity)(np.float32(1))


@pytest.mark.parametrize("quantizer", [fobt.ternary(), fobt.ternary(granularity=fobt.per_block(2))])
@pytest.mark.parametrize("name", ["curvature", "codes"])
@pytest.mark.parametrize("shape", [(5, 4), (3,), (1, 4, 5), (4, 5, 1)])
def test_wrong_shapes(quantizer, name, shape):
    match = rf"{name} must broadcast to the shape of weights, \(4, 5\), got {re.escape(str(shape))}"
    with pytest.raises(ValueError, match=match):
        quantizer(WEIGHTS, **{name: np.ones(shape, np.int8)})


@pytest.mark.parametrize("weights", [np.arange(3), np.array([True]), np.array([1j]), [1, 2]])
def test_weights_that_are_not_floating(weights):
    with pytest.raises(ValueError, match=rf"weights must be floating, got dtype {jnp.asarray(weights).dtype}"):
        fobt.binary()(weights)
