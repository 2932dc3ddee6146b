"""Export to ONNX: what onnxruntime computes, against NumPy decoding of the stored bytes and against JAX."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from flax import nnx
from onnx_cases import free_batch, normal, run

import fobt
from fobt._src.quantizers.granularity import Granularity, PerBlock, PerChannel
from fobt._src.quantizers.grid import Grid

GRIDS = {
    "binary": (Grid("binary", 1), 1),
    "ternary": (Grid("linear", 2), 1),
    "two scales": (Grid("linear", 2), 2),
    **{f"linear {bits}": (Grid("linear", bits), 1) for bits in range(3, 9)},
    "logarithmic 2": (Grid("logarithmic", 2), 1),
    "logarithmic 4": (Grid("logarithmic", 4), 1),
}
GRANULARITIES = {
    "tensor": fobt.per_tensor(),
    "channel": fobt.per_channel(),
    "first axis": fobt.per_channel(0),
    "both": fobt.per_channel((0, 1)),
    "blocks": fobt.per_block(3),
    "blocks of outputs": fobt.per_block(4, axis=-1),
}


def matrix(
    rows: int, columns: int, grid: Grid, split: Granularity = GRANULARITIES["tensor"], *, scales: int = 1, seed: int = 0
) -> fobt.Quantized:
    """Random codes and scales, the largest code and negative scales (of folded gains) among them."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(-grid.max_code, grid.max_code + 1, (rows, columns))
    codes = 2 * rng.integers(0, 2, (rows, columns)) - 1 if grid.spacing == "binary" else codes
    shape: tuple[int, ...] = ()
    if isinstance(split, PerChannel):
        shape = tuple(size if axis in {a % 2 for a in split.kept} else 1 for axis, size in enumerate((rows, columns)))
    if isinstance(split, PerBlock):
        shape = tuple(
            -(-size // split.size) if axis == split.axis % 2 else size for axis, size in enumerate((rows, columns))
        )
    scale = rng.normal(size=(2, *shape) if scales == 2 else shape)
    return fobt.Quantized(
        jnp.asarray(codes, jnp.int8), jnp.asarray(scale, jnp.float32), grid, split, scales, jnp.dtype(jnp.float32)
    )


def weights_of(quantized: fobt.Quantized, **options) -> tuple[onnx.ModelProto, np.ndarray]:
    """A model that gives the weights back, whatever its input is."""
    model = fobt.export.to_onnx(
        lambda weights, x: weights + 0 * x, quantized, jax.ShapeDtypeStruct((1, 1), jnp.float32), **options
    )
    return model, run(model, np.zeros((1, 1), np.float32))[0]


def by_hand(quantized: fobt.Quantized) -> np.ndarray:
    """The weights from codes and scales, with loops over NumPy arrays."""
    codes, scale, n = np.asarray(quantized.codes), np.asarray(quantized.scale), quantized.grid.max_code
    weights = np.zeros(codes.shape, np.float32)
    split = quantized.granularity
    for index in np.ndindex(codes.shape):
        code = int(codes[index])
        of_sign = scale[int(code < 0)] if quantized.scales == 2 else scale
        place = list(index)
        if hasattr(split, "size"):
            place[split.axis] //= split.size
        place = [i if size > 1 else 0 for i, size in zip(place, of_sign.shape, strict=True)] if of_sign.ndim else []
        alpha = of_sign[tuple(place)]
        level = np.sign(code) * 2.0 ** (abs(code) - n) if quantized.grid.spacing == "logarithmic" else code
        step = alpha if quantized.grid.spacing == "logarithmic" else alpha / np.float32(n)
        weights[index] = np.float32(level) * step if code else 0
    return weights


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("grid", GRIDS)
def test_weights_are_those_of_codes_and_scales(grid: str, granularity: str):
    levels, scales = GRIDS[grid]
    for shape in ((7, 9), (1, 1)):
        quantized = matrix(*shape, levels, GRANULARITIES[granularity], scales=scales)
        np.testing.assert_array_equal(weights_of(quantized)[1], by_hand(quantized))


@pytest.mark.parametrize(("base3", "width"), [(False, 2), (True, 1.6)])
def test_ternary_weights_take_two_bits_or_1_6(base3: bool, width: float):
    quantized = matrix(40, 8, Grid("linear", 2))
    model, weights = weights_of(quantized, base3=base3)
    np.testing.assert_array_equal(weights, by_hand(quantized))
    (stored,) = [tensor for tensor in model.graph.initializer if len(tensor.raw_data) > 32]
    assert len(stored.raw_data) == width * 40 * 8 / 8
    codes = np.asarray(quantized.codes).ravel()
    if base3:
        digits = [(byte // 3**i) % 3 for byte in stored.raw_data for i in range(5)]
        np.testing.assert_array_equal(np.array(digits) - 1, codes)
    else:
        assert stored.data_type == onnx.TensorProto.INT2
        pairs = [(byte >> 2 * i) & 3 for byte in stored.raw_data for i in range(4)]
        np.testing.assert_array_equal([{0: 0, 1: 1, 3: -1}[pair] for pair in pairs], codes)


@pytest.mark.parametrize("grid", ["binary", "linear 3", "linear 5", "logarithmic 4"])
def test_other_codes_are_one_stream_of_bits(grid: str):
    quantized = matrix(5, 13, GRIDS[grid][0])
    bits = quantized.grid.bits
    model, _ = weights_of(quantized)
    size = -(-5 * 13 * bits // 8)
    (stored,) = [tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.UINT8]
    assert len(stored.raw_data) == size
    number = int.from_bytes(stored.raw_data, "little")
    fields = np.array([(number >> bits * i) & (2**bits - 1) for i in range(5 * 13)])
    codes = np.asarray(quantized.codes).ravel()
    np.testing.assert_array_equal(2 * fields - 1 if bits == 1 else fields - quantized.grid.max_code, codes)
    assert number >> bits * 5 * 13 == 0


@pytest.mark.slow
def test_weights_of_other_dtypes_and_axes():
    quantized = fobt.binary(granularity=fobt.per_channel())(jnp.asarray(normal(3, 4), jnp.float16))
    half = jax.ShapeDtypeStruct((1, 1), jnp.float16)
    model = fobt.export.to_onnx(lambda weights, x: weights + 0 * x, quantized, half)
    (weights,) = run(model, np.zeros((1, 1), np.float16))
    assert weights.dtype == np.float16
    np.testing.assert_array_equal(weights, quantized.dequantize())
    # Axes in another order are stored in that order, blocks included.
    for split in GRANULARITIES.values():
        quantized = matrix(6, 8, Grid("linear", 4), split)
        model = fobt.export.to_onnx(lambda weights, x: x @ weights.T, quantized, free_batch(8))
        assert [node.op_type for node in model.graph.node][-1] == "MatMul"
        assert "Transpose" not in {node.op_type for node in model.graph.node}
        x = normal(3, 8, seed=1)
        np.testing.assert_allclose(run(model, x)[0], x @ by_hand(quantized).T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("outputs", [1, 6, 7, 10, 16])
def test_matrices_with_rows_that_do_not_fill_bytes(bits: int, outputs: int):
    for split in (fobt.per_tensor(), fobt.per_channel(), fobt.per_block(16), fobt.per_block(32)):
        quantized = matrix(48, outputs, Grid("linear", bits), split)
        model = fobt.export.to_onnx(lambda weights, x: x @ weights, quantized, free_batch(48))
        x = normal(5, 48, seed=1)
        (product,) = run(model, x)
        np.testing.assert_allclose(product, x @ by_hand(quantized), rtol=1e-4, atol=1e-4)


def pad_and_slice(weights, x):
    padded = jnp.pad(x, ((0, 0), (1, 2)), constant_values=3.0)
    return jnp.concatenate([padded[:, 1:5:2], padded[:, :1]], axis=1)


FUNCTIONS = {
    "elementwise": lambda w, x: jnp.exp(-jnp.abs(x)) * jnp.tanh(x) + jnp.sqrt(x**2 + 1) / (2 + jnp.sign(x)),
    "more elementwise": lambda w, x: jnp.log(1 + jnp.square(x)) - jax.lax.rsqrt(x * x + 1) + x**3 - jnp.floor(x),
    "activations": lambda w, x: (
        jax.nn.relu(x) + jax.nn.gelu(x) + jax.nn.silu(x) + jax.nn.leaky_relu(x) + jax.nn.relu6(x)
    ),
    "softmax": lambda w, x: jax.nn.softmax(x) + jax.nn.log_softmax(x, axis=-1),
    "comparisons": lambda w, x: jnp.where((x > 0.5) | ((x <= 0) & ~(x < -1)) | (x == 0.3), x, jnp.clip(x, -0.5, 0.1)),
    "reductions": lambda w, x: (x.sum(0), x.mean(0), x.mean(axis=1), x.max(1, keepdims=True), x.min(), jnp.prod(x, 1)),
    "arg max": lambda w, x: (jnp.argmax(x, axis=-1), jnp.argmin(x, axis=0)),
    "shapes": lambda w, x: jnp.broadcast_to(x.reshape(-1, 2, 3).transpose(2, 0, 1)[None], (2, 3, x.shape[0], 2)),
    "pad and slice": pad_and_slice,
    "rows": lambda w, x: w["kernel"][jnp.array([3, 0, -1])] + x.sum(),
    "an index": lambda w, x: x[:, 2] + x[:, 1:3].sum(-1),
    "dtypes": lambda w, x: (x * 2).astype(jnp.int32) + (x > 0),
    "nested calls": lambda w, x: jax.checkpoint(jax.jit(lambda y: jnp.sin(0.0) + y * 2))(x),
    "dense": lambda w, x: x @ w["kernel"] + w["bias"][None],
    "constant arithmetic": lambda w, x: (
        x[:, :4] * jnp.exp(w["bias"])[None] / jnp.arange(1.0, 5.0)[None] + jnp.ones((1, 4))
    ),
    "einsum": lambda w, x: jnp.einsum("bi,ij,kj->bk", x, w["kernel"], w["kernel"]),
    "batched products": lambda w, x: jnp.einsum("bij,bkj->bik", x.reshape(-1, 2, 3), x.reshape(-1, 2, 3)),
    "an input as output": lambda w, x: {"a": x, "b": x + 1, "c": w["bias"]},
}


@pytest.mark.filterwarnings("ignore:function does not use the leaves")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_give_what_they_give_in_jax(name: str):
    function = jax.jit(FUNCTIONS[name])
    quantized = {"kernel": matrix(6, 4, Grid("linear", 3)), "bias": jnp.asarray(normal(4))}
    x = normal(4, 6, seed=1)
    expected = jax.tree.leaves(function(fobt.dequantize(quantized), x))
    for example in (free_batch(6), x):
        results = run(fobt.export.to_onnx(function, quantized, example), x)
        assert [result.dtype for result in results] == [leaf.dtype for leaf in expected]
        for result, leaf in zip(results, expected, strict=True):
            np.testing.assert_allclose(result, leaf, rtol=1e-5, atol=1e-5)


CONVOLUTIONS = {
    "same": {"padding": "SAME"},
    "valid, stride": {"padding": "VALID", "strides": (2, 1)},
    "dilated": {"padding": ((2, 1), (0, 3)), "kernel_dilation": (2, 2)},
    "grouped": {"padding": "SAME", "feature_group_count": 2},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name: str):
    options = CONVOLUTIONS[name]
    layer = nnx.Conv(4, 6, (3, 2), rngs=nnx.Rngs(0), **options)
    graph, params = nnx.split(layer)
    quantized = jax.jit(fobt.quantize, static_argnums=2)(nnx.as_pure(params), None, fobt.linear(4))
    model = fobt.export.to_onnx(lambda weights, x: nnx.merge(graph, weights)(x), quantized, free_batch(9, 7, 4))
    x = normal(3, 9, 7, 4)
    expected = nnx.merge(graph, fobt.dequantize(quantized))(x)
    np.testing.assert_allclose(run(model, x)[0], expected, rtol=1e-4, atol=1e-5)
    # The kernel is stored with outputs and inputs in front.
    assert [list(tensor.dims) for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.INT4] == [
        [6, 4 // options.get("feature_group_count", 1), 3, 2]
    ]


@pytest.mark.parametrize("pool", [nnx.max_pool, nnx.avg_pool])
@pytest.mark.parametrize("options", [{}, {"strides": (2, 3)}, {"strides": (2, 2), "padding": ((1, 1), (1, 0))}])
def test_pooling(pool, options: dict):
    model = fobt.export.to_onnx(lambda weights, x: pool(x, (3, 2), **options), {}, free_batch(8, 7, 3))
    x = normal(2, 8, 7, 3)
    np.testing.assert_allclose(run(model, x)[0], pool(jnp.asarray(x), (3, 2), **options), rtol=1e-5, atol=1e-6)
    assert {"MaxPool", "AveragePool"} & {node.op_type for node in model.graph.node}


def test_a_free_dimension_that_is_no_dimension_of_an_input_is_named():
    with pytest.raises(ValueError, match=r"a dimension of size 2\*batch, which is no dimension of an input"):
        fobt.export.to_onnx(lambda w, x: jnp.broadcast_to(x.reshape(1, -1), (2, 2 * x.shape[0])), {}, free_batch(2))


def test_an_unknown_primitive_is_named():
    with pytest.raises(ValueError, match=r"function has the primitive cumprod, which to_onnx cannot convert; it knows"):
        fobt.export.to_onnx(lambda weights, x: jnp.cumprod(x), {}, jax.ShapeDtypeStruct((3,), jnp.float32))
    with pytest.raises(ValueError, match="the primitive scan of batch steps, which to_onnx cannot"):
        fobt.export.to_onnx(lambda w, x: jax.lax.scan(lambda c, y: (c + y, c), jnp.zeros(5), x), {}, free_batch(5))
    with pytest.raises(ValueError, match="function must return an array or a tree of arrays, got no array"):
        fobt.export.to_onnx(lambda weights, x: {}, {}, free_batch(5))


@pytest.mark.slow
def test_calls_inside_the_function():
    @jax.custom_vjp
    def double(x):
        return 2 * x

    double.defvjp(lambda x: (double(x), None), lambda _, g: (g,))
    x = normal(4, 6)
    function = jax.named_call(lambda w, x: jax.checkpoint(lambda y: double(jax.nn.relu(y)) @ w)(x), name="layer")
    quantized = matrix(6, 4, Grid("linear", 4))
    for weights in (quantized, fobt.packed.pack(quantized)):
        np.testing.assert_allclose(
            run(fobt.export.to_onnx(function, weights, x), x)[0],
            2 * np.maximum(x, 0) @ by_hand(quantized),
            rtol=1e-5,
            atol=1e-5,
        )


def test_inputs_may_be_trees():
    x = {"a": normal(4, 6), "b": (normal(4, 6), np.arange(4, dtype=np.int32))}
    model = fobt.export.to_onnx(lambda w, x, y: x["a"] - x["b"][0][x["b"][1]] + y, {}, x, np.float32(3))
    assert [put.name for put in model.graph.input] == ["input_0", "input_1", "input_2", "input_3"]
    np.testing.assert_allclose(run(model, *jax.tree.leaves(x), np.float32(3))[0], x["a"] - x["b"][0] + 3, rtol=1e-6)


@pytest.mark.usefixtures("x64")
def test_float64_weights_are_refused():
    quantized = {"kernel": fobt.binary()(jnp.ones((2, 2), jnp.float64))}
    with pytest.raises(ValueError, match=r"float64 weights, which the runtime cannot dequantize, got 'kernel'"):
        fobt.export.to_onnx(
            lambda weights, x: x @ weights["kernel"], quantized, jax.ShapeDtypeStruct((1, 2), jnp.float64)
        )


def test_without_onnx_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"to_onnx needs the package onnx: pip install 'fobt\[export\]'"):
        fobt.export.to_onnx(lambda weights, x: x, {}, free_batch(2))
