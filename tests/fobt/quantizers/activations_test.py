"""Activations of few bits: against the definition in NumPy, ONNX Runtime's operators, and gradients by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

import fobt

RANGES = [(-1.0, 2.0), (0.0, 6.0), (-3.0, 0.0), (0.5, 2.0), (-0.3, -0.1), (-1e-3, 1e4), (-1.0, 1.0)]
X = np.random.default_rng(0).normal(0, 2, (40, 50)).astype(np.float32)


def parameters(low, high, bits, symmetric):
    """Scale and zero point from the definition, in float32."""
    low, high, top = np.float32(min(low, 0)), np.float32(max(high, 0)), 2**bits - 1
    if symmetric:
        return max(-low, high) * np.float32(1 / (top // 2)), 2 ** (bits - 1)
    scale = (high - low) * np.float32(1 / top)
    return scale, int(np.round(-low / scale))


def reference(x, low, high, bits=8, symmetric=False):
    scale, zero = parameters(low, high, bits, symmetric)
    codes = np.clip(np.round(x / scale) + zero, 0, 2**bits - 1)
    return ((codes - zero) * scale).astype(np.float32)


def with_ties(low, high, bits, symmetric):
    """Numbers among which are those in the middle between two levels, and far outside."""
    scale, _ = parameters(low, high, bits, symmetric)
    halves = (np.arange(-300, 300) + np.float32(0.5)) * scale
    return np.concatenate([X.ravel(), halves, [0, -0.0, 1e30, -1e30, np.inf, -np.inf]]).astype(np.float32)


@functools.partial(jax.jit, static_argnames=("bits", "symmetric"))
def jitted(x, range, bits=8, symmetric=False):
    return fobt.fake_quantize(x, range, bits=bits, symmetric=symmetric)


@pytest.mark.optimized
@pytest.mark.parametrize(("bits", "symmetric"), [(8, False), (8, True), (4, False), (2, True)])
def test_definition(bits, symmetric):
    for low, high in RANGES:
        x = with_ties(low, high, bits, symmetric)
        got = np.asarray(jitted(x, np.array([low, high], np.float32), bits, symmetric))
        np.testing.assert_array_equal(got, reference(x, low, high, bits, symmetric))
        assert len(np.unique(got)) <= 2**bits


@pytest.mark.optimized
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_onnxruntime_computes_the_same_bits(dtype, symmetric):
    data_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["codes"]),
        helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["y"]),
    ]
    types = {"x": 1, "scale": 1, "zero": data_type}
    shapes = {"x": ["n"], "scale": [], "zero": []}
    graph = helper.make_graph(
        nodes,
        "quantize",
        [helper.make_tensor_value_info(name, types[name], shapes[name]) for name in types],
        [helper.make_tensor_value_info("y", 1, ["n"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    for low, high in RANGES:
        scale, zero = parameters(low, high, 8, symmetric)
        x = with_ties(low, high, 8, symmetric)
        zero = np.array(zero + np.iinfo(dtype).min, dtype)
        (expected,) = session.run(None, {"x": x, "scale": np.array(scale, np.float32), "zero": zero})
        got = jitted(x, np.array([low, high], np.float32), 8, symmetric)
        # Zeros have no sign among integers.
        np.testing.assert_array_equal(np.asarray(got) + 0.0, expected + 0.0)


finite = st.floats(-(2.0**60), 2.0**60, width=32)


@given(finite, finite, st.sampled_from([2, 5, 8]), st.booleans())
def test_zero_is_a_level_and_levels_stay(low, high, bits, symmetric):
    range = jnp.array([low, high], jnp.float32)
    x = jnp.asarray(X.ravel()[:20] * max(abs(low), abs(high), 1), jnp.float32)
    y = jitted(jnp.append(x, 0.0), range, bits, symmetric)
    assert y[-1] == 0
    assert np.all(np.isfinite(y))
    np.testing.assert_array_equal(jitted(y, range, bits, symmetric), y)


def test_gradient_is_straight_through_inside_and_zero_outside():
    x = jnp.array([-3.0, -1.0, -0.4, 0.0, 1.9, 2.0, 2.1, jnp.nan])
    grads = jax.grad(lambda x: jnp.nansum(jitted(x, jnp.array([-1.0, 2.0]))))(x)
    np.testing.assert_array_equal(grads[:-1], [0, 1, 1, 1, 1, 1, 0])
    assert np.array_equal(
        jax.jit(jax.grad(lambda x: jnp.sum(jitted(x, jnp.array([0.0, 2.0])))))(x[:7]), grads[:7] * (x[:7] >= 0)
    )


@pytest.mark.parametrize("symmetric", [False, True])
def test_gradient_of_a_learned_range(symmetric):
    low, high, bits = -1.0, 2.5, 3
    top = 2**bits - 1
    scale, zero = parameters(low, high, bits, symmetric)
    x = X[0] * 2
    places = np.clip(x / scale, -zero, top - zero)
    below, above = x / scale < -zero, x / scale > top - zero
    of_scale = np.round(places) - places * ~(below | above)  # LSQ, Eq. 3, with an offset
    if symmetric:
        expected = [0, np.sum(of_scale) / (top // 2)]
    else:
        # By the chain rule: s = (high - low)/top, and the zero point z, rounded straight through, is -low/s.
        of_zero = -scale * (below | above)
        of_scale = of_scale + of_zero * low / scale**2
        expected = [-np.sum(of_scale) / top - np.sum(of_zero) / scale, np.sum(of_scale) / top]
    grads = jax.grad(lambda range: jnp.sum(jitted(x, range, bits, symmetric)))(jnp.array([low, high]))
    np.testing.assert_allclose(grads, expected, rtol=1e-4, atol=1e-4)


def test_a_learned_range_moves_to_the_one_with_the_least_error():
    x = jnp.asarray(np.clip(X.ravel(), 0, None))

    def loss(range):
        return jnp.mean((fobt.fake_quantize(x, range, bits=2) - x) ** 2)

    @jax.jit
    def step(range, _):
        return range - 0.1 * jax.grad(loss)(range), None

    learned, _ = jax.lax.scan(step, jnp.array([0.0, 1.0]), length=300)
    best = min(np.linspace(1, 8, 141), key=lambda high: np.mean((reference(np.asarray(x), 0, high, 2) - x) ** 2))
    assert learned[0] == 0
    assert abs(learned[1] - best) < 0.2


@pytest.mark.parametrize("range", [(0.0, 0.0), (1e-38, 1e-38), (-1e-40, 1e-40)])
def test_a_range_without_width(range):
    y, pull = jax.vjp(lambda x, r: jitted(x, r), jnp.array([-1.0, 0.0, 5.0]), jnp.array(range))
    np.testing.assert_allclose(y, 0, atol=2.0**-92)
    assert all(np.all(np.isfinite(grad)) for grad in pull(jnp.ones(3)))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision(dtype):
    x, range = jnp.asarray(X[0], dtype), jnp.array([-1.0, 2.0])
    y = jitted(x, range)
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, jitted(x.astype(jnp.float32), range).astype(dtype))
    assert jax.grad(lambda x: jnp.sum(jitted(x, range)))(x).dtype == dtype


def test_ranges_of_several_seeds_at_once():
    ranges = jnp.array([[-1.0, 2.0], [0.0, 1.0]])
    got = jax.vmap(jitted, (None, 0))(X[0], ranges)
    np.testing.assert_array_equal(got, [jitted(X[0], range) for range in ranges])


def test_moving_average_range():
    x = np.array([0.5, np.nan, 4.0, -np.inf, np.inf], np.float32)
    got = fobt.moving_average_range(jnp.array([-1.0, 2.0]), x, 0.75)
    np.testing.assert_allclose(got, [0.75 * -1, 0.75 * 2 + 0.25 * 4])
    np.testing.assert_array_equal(fobt.moving_average_range(got, x * np.nan, 0), [0, 0])
    np.testing.assert_array_equal(fobt.moving_average_range(got, jnp.zeros((0, 3), jnp.bfloat16), 1), got)


def test_errors():
    for bits in (1, 9, 2.5, "8"):
        with pytest.raises(ValueError, match=r"bits must be an integer from 2 to 8, got"):
            fobt.fake_quantize(1.0, jnp.zeros(2), bits=bits)
    with pytest.raises(ValueError, match=r"range must have shape \(2,\), low and high, got \(3,\)"):
        fobt.fake_quantize(1.0, jnp.zeros(3))
    with pytest.raises(ValueError, match=r"x must be a floating dtype"):
        fobt.fake_quantize(jnp.array([1]), jnp.zeros(2))
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\], got 2"):
        fobt.moving_average_range(jnp.zeros(2), 1.0, 2)
