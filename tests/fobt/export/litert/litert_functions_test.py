"""Export to LiteRT: functions of every kind have the values of JAX, or are refused by name."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from litert_cases import GRIDS, leaf, normal, run, stored_weights

import fobt

# Layers of Flax have biases of several axes, and it does not matter here that they are quantized.
pytestmark = pytest.mark.filterwarnings("ignore:the quantizer takes these leaves for matrices")

X = np.concatenate([np.linspace(-8, 8, 33), [-100, 100, 0.1, -1e-4, 1e-4, 30, -30]]).astype(np.float32).reshape(4, 10)
INTEGERS = np.array([[3, -7, 0, 5], [1, -2, 9, -1]], np.int32)
DIVISORS = np.array([[2, 3, -4, -2], [1, -5, 4, 2]], np.int32)


def check(function: Callable[..., Any], *inputs: np.ndarray) -> None:
    """LiteRT has the values of JAX: shapes, dtypes, infinities and NaN are equal."""
    model = fobt.export.to_litert(lambda _, *given: function(*given), {}, *inputs)
    outputs, expected = run(model, *inputs), jax.tree.leaves(jax.jit(function)(*inputs))
    for got, value in zip(outputs if len(expected) > 1 else [outputs], expected, strict=True):
        assert (got.shape, got.dtype) == (value.shape, value.dtype)
        np.testing.assert_allclose(got, value, rtol=1e-5, atol=1e-6)


# out[n, i, o] = Σ in[n, i + k, c] kernel[k, c, o].
def test_a_convolution_along_one_axis_by_hand():
    quantized = {"kernel": leaf((3, 4, 6), GRIDS["linear 4"], fobt.per_channel())}
    x = normal(2, 9, 4)
    model = fobt.export.to_litert(lambda w, x: nn_conv(x, w["kernel"], "VALID"), quantized, x)
    kernel = np.asarray(fobt.dequantize(quantized)["kernel"])
    expected = sum(x[:, k : k + 7] @ kernel[k] for k in range(3))
    np.testing.assert_allclose(run(model, x), expected, rtol=1e-5, atol=1e-5)


# Every pixel adds its product with the kernel to the output, at twice its place.
@pytest.mark.parametrize("size", [2, 3])
def test_a_transposed_convolution_by_hand(size: int):
    quantized = {"kernel": leaf((size, 4, 6), GRIDS["linear 4"], fobt.per_channel())}
    x = normal(2, 5, 4)
    model = fobt.export.to_litert(lambda w, x: lax.conv_transpose(x, w["kernel"], (2,), "VALID"), quantized, x)
    kernel = np.asarray(fobt.dequantize(quantized)["kernel"])
    expected = np.zeros((2, 8 + max(size, 2), 6), np.float32)
    for i in range(5):
        for k in range(size):
            # JAX does not flip the kernel, unless transpose_kernel is set.
            expected[:, 2 * i + k] += x[:, i] @ kernel[size - 1 - k]
    np.testing.assert_allclose(run(model, x), expected, rtol=1e-5, atol=1e-5)


def nn_conv(x: Any, kernel: Any, padding: Any, strides: Any = None, **options: Any) -> jax.Array:
    """A convolution, channels last."""
    spatial = "DHW"[-(x.ndim - 2) :]
    layout = (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")
    strides = strides or (1,) * (x.ndim - 2)
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=layout, **options)


CONVOLUTIONS = {
    "1D, stride 2": ((9, 4), (3, 4, 6), lambda x, k: nn_conv(x, k, "SAME", (2,))),
    "1D, dilated": ((9, 4), (3, 4, 6), lambda x, k: nn_conv(x, k, "SAME", rhs_dilation=(2,))),
    "1D, groups": ((9, 4), (3, 2, 6), lambda x, k: nn_conv(x, k, "SAME", feature_group_count=2)),
    "1D, depthwise": ((9, 4), (3, 1, 4), lambda x, k: nn_conv(x, k, "SAME", feature_group_count=4)),
    "1D, causal": ((9, 4), (3, 4, 6), lambda x, k: nn_conv(x, k, [(2, 0)])),
    "1D, channels first": (
        (4, 9),
        (6, 4, 3),
        lambda x, k: lax.conv_general_dilated(x, k, (1,), "SAME", dimension_numbers=("NCW", "OIW", "NCW")),
    ),
    "1D, transposed": ((5, 4), (3, 4, 6), lambda x, k: lax.conv_transpose(x, k, (2,), "SAME")),
    "2D, groups": ((5, 4, 4), (3, 3, 2, 6), lambda x, k: nn_conv(x, k, "SAME", feature_group_count=2)),
    "2D, depthwise": ((5, 4, 4), (3, 3, 1, 8), lambda x, k: nn_conv(x, k, "SAME", (2, 2), feature_group_count=4)),
    "2D, dilated": ((9, 8, 4), (3, 3, 4, 6), lambda x, k: nn_conv(x, k, "SAME", rhs_dilation=(2, 3))),
    "2D, one pixel": ((1, 1, 1), (1, 1, 1, 1), lambda x, k: nn_conv(x, k, "VALID")),
    "2D, reflect": (
        (5, 4, 2),
        (3, 3, 2, 3),
        lambda x, k: nn_conv(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), "reflect"), k, "VALID"),
    ),
    "2D, circular": (
        (5, 4, 2),
        (3, 3, 2, 3),
        lambda x, k: nn_conv(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), "wrap"), k, "VALID"),
    ),
    "2D, transposed": ((5, 4, 2), (3, 3, 2, 3), lambda x, k: lax.conv_transpose(x, k, (2, 2), "SAME")),
    "2D, transposed, kernel 2": ((5, 4, 2), (2, 2, 2, 3), lambda x, k: lax.conv_transpose(x, k, (2, 2), "SAME")),
    "2D, transposed, flipped": (
        (5, 4, 2),
        (3, 3, 3, 2),
        lambda x, k: lax.conv_transpose(x, k, (2, 1), "SAME", transpose_kernel=True),
    ),
    "2D, zeros between, less than no padding": (
        (5, 4, 2),
        (3, 3, 2, 3),
        lambda x, k: nn_conv(x, k, [(-1, 2), (1, 0)], (1, 2), lhs_dilation=(2, 3), rhs_dilation=(2, 1)),
    ),
    "3D": ((4, 4, 5, 2), (3, 3, 3, 2, 3), lambda x, k: nn_conv(x, k, "SAME", (1, 2, 1))),
    "3D, transposed": ((2, 3, 2, 2), (3, 3, 3, 2, 3), lambda x, k: lax.conv_transpose(x, k, (2, 2, 1), "SAME")),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_keep_their_kernels_as_integers(name: str):
    image, kernel, function = CONVOLUTIONS[name]
    quantized = {"kernel": leaf(kernel, GRIDS["linear 4"], fobt.per_channel())}
    x = normal(2, *image)
    model = fobt.export.to_litert(lambda w, x: function(x, w["kernel"]), quantized, x)
    (weights,) = stored_weights(model)
    dense = np.asarray(fobt.dequantize(quantized)["kernel"])
    np.testing.assert_allclose(sorted(weights.ravel()), sorted(dense.ravel()), rtol=1e-5)
    np.testing.assert_allclose(run(model, x), function(x, dense), rtol=1e-5, atol=1e-5)


LAYERS = {
    "linen ConvLocal": (nn.ConvLocal(6, (3, 3), strides=(2, 2)), (5, 6, 4)),
    "linen Conv, reflect": (nn.Conv(6, (3,), padding="REFLECT"), (9, 4)),
    "linen ConvTranspose, circular": (nn.ConvTranspose(6, (3, 3), strides=(2, 2), padding="CIRCULAR"), (5, 6, 4)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_linen(name: str):
    layer, shape = LAYERS[name]
    x = normal(2, *shape)
    quantized = fobt.quantize(layer.init(jax.random.key(0), x), None, fobt.linear(4))
    model = fobt.export.to_litert(layer.apply, quantized, x)
    assert stored_weights(model)
    np.testing.assert_allclose(run(model, x), layer.apply(fobt.dequantize(quantized), x), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_transposed_convolution_of_nnx():
    layer = nnx.ConvTranspose(4, 3, (3, 3), strides=(2, 2), rngs=nnx.Rngs(0))
    graph, params = nnx.split(layer)
    quantized = fobt.quantize(params, None, fobt.linear(4))
    x = normal(1, 5, 4, 4)

    def function(weights: Any, x: Any) -> jax.Array:
        return nnx.merge(graph, weights)(x)

    model = fobt.export.to_litert(function, quantized, x)
    np.testing.assert_allclose(run(model, x), function(fobt.dequantize(quantized), x), rtol=1e-5, atol=1e-5)


ACTIVATIONS: dict[str, Callable[..., Any]] = {
    **{
        f.__name__: f
        for f in (
            *(jax.nn.relu, jax.nn.relu6, jax.nn.leaky_relu, jax.nn.elu, jax.nn.celu, jax.nn.selu, jax.nn.gelu),
            *(jax.nn.sigmoid, jax.nn.log_sigmoid, jax.nn.hard_sigmoid, jax.nn.sparse_sigmoid, jax.nn.glu),
            *(jax.nn.silu, jax.nn.hard_silu, jax.nn.hard_tanh, jax.nn.mish, jax.nn.identity, jax.nn.soft_sign),
            *(jax.nn.softplus, jax.nn.sparse_plus, jax.nn.squareplus, jax.nn.standardize),
            *(jax.nn.softmax, jax.nn.log_softmax, jax.nn.logsumexp, jax.nn.logmeanexp),
        )
    },
    "exact gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "log1mexp": lambda x: jax.nn.log1mexp(jnp.abs(x) + 1e-3),
    "one_hot": lambda x: jax.nn.one_hot(jnp.int32(x), 5),
    "masked softmax": lambda x: jax.nn.softmax(x, where=x > 0),
}


def test_all_activations_of_jax_in_one_model():
    check(lambda x: [activation(x) for activation in ACTIVATIONS.values()], X)


def test_what_litert_would_compute_otherwise():
    x, gaps = X[:, :4], np.array([[1, 5], [0, 3]], np.int32)
    table = normal(6, 2)
    check(
        lambda x, i, j, k: [
            lax.rem(x, x.T + 0.3),
            lax.rem(i, j),
            jnp.mod(i, j),
            x // (x.T + 0.3),
            jnp.cbrt(x),
            lax.round(x * 1.5),
            lax.rev(x[None], (0, 2)),
            lax.clamp(jnp.float32(1), x, jnp.float32(-1)),
            jnp.where(x > 0, jnp.inf, -jnp.inf),
            jnp.take(table, k + 3, axis=0),
            jnp.take(jnp.arange(4), k, axis=0),
            jnp.take(table, k + 3, axis=0, mode="clip"),
        ],
        x,
        INTEGERS,
        DIVISORS,
        gaps,
    )


def test_loops_of_known_length_and_branches():
    check(
        lambda x: [
            lax.scan(lambda total, row: (total + row, total * row), jnp.zeros(4), x),
            lax.scan(lambda total, row: (total + row, total * row), jnp.zeros(4), x, reverse=True),
            lax.fori_loop(0, 3, lambda i, value: value * 1.5 + i, x),
            lax.map(lambda row: row.sum() * row, x),
            lax.switch(jnp.int32(x[0, 0] > 0), [jnp.cbrt, jnp.sin], x),
            lax.platform_dependent(x, tpu=jnp.sin, default=jnp.cbrt),
        ],
        X[:, :4],
    )


def test_inputs_and_outputs_of_every_kind():
    def function(x, unused, flags, integers, scalar):
        flipped = ~flags
        return x, x, x + 1, x + 1, jnp.float32(3), jnp.ones(2), flipped, flags, integers + 1, scalar, x.max()

    check(function, X, normal(2, 2), np.array([True, False]), INTEGERS, np.float32(2))
    check(lambda x: jnp.ones(3), X)
    check(lambda: jnp.ones(3))


def test_empty_arrays():
    def function(x, y, z):
        return [
            x @ y,
            jnp.concatenate([z, x, x + 1], 1),
            jnp.pad(x, ((0, 0), (1, 1)), constant_values=3),
            x.sum(),
            z.at[:0].add(1.0),
            jnp.where(z[2:].max(initial=0) > 0, z, 2.0),
            lax.scan(lambda total, row: (total + row, row), jnp.ones(2), y)[0],
            y,
        ]

    check(function, normal(2, 0), normal(0, 2), normal(2, 2))


REFUSED: dict[str, Callable[..., Any]] = {
    "while": lambda x: lax.while_loop(lambda value: value.sum() < 9, lambda value: value + 1, x),
    "while ": lambda x: lax.fori_loop(0, jnp.int32(x.sum()), lambda i, value: value + i, x),
    "debug_print": lambda x: [jax.debug.print("x"), x],
    "SORT": lambda x: jnp.sort(x),
    "cumlogsumexp": lambda x: lax.cumlogsumexp(x),
    "xor": lambda x: (x > 0) ^ (x < 1),
    "and": lambda x: jnp.int32(x) & 3,
    "shift_right_logical": lambda x: lax.shift_right_logical(jnp.int32(x), 1),
    "reduce_precision": lambda x: lax.reduce_precision(x, 5, 3),
    "cholesky": lambda x: jnp.linalg.cholesky(x @ x.T),
    "fft": lambda x: jnp.fft.fft(x).real,
    "SCATTER": lambda x: x.at[1].add(1.0),
    "add": lambda x: jnp.bfloat16(x) + 1,
    "mul": lambda x: jnp.int8(x) * jnp.int8(2),
    "dot_general": lambda x: jnp.int32(x) @ jnp.int32(x.T),
    "conv_general_dilated": lambda x: nn_conv(x[..., None], jnp.ones((3, 1, 2)), "SAME", batch_group_count=2),
    "an empty array as output 1": lambda x: (x, x[:0] + 1),
    "reduce of shapes": lambda x: lax.reduce(x[:0], x[0, 0], lambda a, b: a + 2 * b, (0,)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_converted_is_named(name: str):
    with pytest.raises(ValueError, match=f"function (uses|has).*{name.strip()}"):
        fobt.export.to_litert(lambda _, x: REFUSED[name](x), {}, X)
