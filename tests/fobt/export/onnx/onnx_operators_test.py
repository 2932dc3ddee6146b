"""Every primitive in every dtype: what JAX computes, or an error that names the primitive and the dtype."""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from onnx_cases import assert_exported, assert_same, free_batch, normal, run

import fobt

DTYPES = [
    *("bool", "int8", "int16", "int32", "uint8", "uint16", "uint32", "float16", "bfloat16", "float32"),
    *("int64", "uint64", "float64"),
]
UNARY = (
    *("abs", "acos", "acosh", "asin", "asinh", "atan", "atanh", "bitwise_not", "cbrt", "ceil", "cos", "cosh", "erf"),
    *("erfc", "exp", "exp2", "expm1", "floor", "is_finite", "log", "log1p", "logistic", "neg", "round", "rsqrt"),
    *("sign", "sin", "sinh", "sqrt", "square", "stop_gradient", "tan", "tanh"),
)
BINARY = (
    *("add", "sub", "mul", "div", "rem", "max", "min", "pow", "bitwise_and", "bitwise_or", "bitwise_xor"),
    *("eq", "ne", "lt", "le", "gt", "ge"),
)
SHIFTS = ("shift_left", "shift_right_logical", "shift_right_arithmetic")
TOLERANCE = {"float16": 5e-3, "bfloat16": 4e-2}


def smallest(x: jax.Array) -> Any:
    return -np.inf if jnp.issubdtype(x.dtype, jnp.floating) else np.array(jnp.iinfo(x.dtype).min, x.dtype)


# Of x, shape (3, 4).
OTHERS: dict[str, Callable[[jax.Array], Any]] = {
    **{
        f"reduce_{name}{axes}": lambda x, name=name, axes=axes: getattr(lax, f"reduce_{name}")(x, axes)
        for name in ("sum", "prod", "max", "min", "and", "or")
        for axes in ((), (0,), (1,), (0, 1))
    },
    "argmax": lambda x: (lax.argmax(x, 1, jnp.int32), lax.argmin(x, 0, jnp.int32)),
    "cumsum": lambda x: (lax.cumsum(x, 1), lax.cumsum(x, 0, reverse=True)),
    "sort": lambda x: (jnp.sort(x, 0), jnp.argsort(x, 1)),
    "top_k": lambda x: lax.top_k(x, 2),
    "where": lambda x: jnp.where(x == x[:1], x[:1], x),
    "select by number": lambda x: lax.select_n(jnp.array([[0, 1, 2, 1]] * 3), x, x[::-1], x[:, ::-1]),
    "clamp": lambda x: lax.clamp(x[0, 0], x, x[1, 1]),
    "clip": lambda x: jnp.minimum(jnp.maximum(x, x[0, 0]), x[1, 1]),
    "pad": lambda x: lax.pad(x, x[0, 0], ((1, -1, 2), (0, 2, 1))),
    "shapes": lambda x: (x[::-1, ::-1], jnp.tile(x, (2, 2)), jnp.stack([x, x], 1), *jnp.split(x, 2, 1), x.T),
    "more shapes": lambda x: (*jnp.unstack(x), jnp.broadcast_to(x[:, None], (3, 2, 4)), x[:, 1:3], x.reshape(2, 6)),
    "take": lambda x: (
        x[jnp.array([[0, 2], [1, 1]])],
        x[:, jnp.array([0, 2])],
        x[jnp.array([0, 2]), jnp.array([1, 3])],
    ),
    "take along axis": lambda x: jnp.take_along_axis(x, jnp.argsort(x, 1)[:, :2], 1),
    "dynamic slice": lambda x: lax.dynamic_slice(x, (x[0, 0].astype(int), 1), (2, 2)),
    "dot": lambda x: (lax.dot(x, x.T), lax.dot_general(x, x, (((), ()), ((), ()))), x[0] @ x[1]),
    "wide dot": lambda x: lax.dot(x, x.T, preferred_element_type=jnp.promote_types(x.dtype, jnp.int32)),
    "scalar dot": lambda x: lax.dot_general(x[0, 0], x, (((), ()), ((), ()))),
    "integer power": lambda x: (lax.integer_pow(x, 3), lax.integer_pow(x, 0), lax.integer_pow(x, 5)),
    "iota": lambda x: x + lax.broadcasted_iota(x.dtype, x.shape, 1),
    "division by zero": lambda x: (lax.div(x, x - x), lax.rem(x, x - x)),
    "floor division": lambda x: (x // x[0, 1], x % x[1, 1]),
    "statistics": lambda x: (jnp.mean(x, 0), jnp.var(x), jnp.median(x, 1), jnp.any(x > x[0, 0])),
    "convolution": lambda x: lax.conv_general_dilated(x[None, None], x[None, None, :2, :2], (1, 1), "SAME"),
    "max pooling": lambda x: lax.reduce_window(x, smallest(x), lax.max, (2, 2), (1, 1), "SAME"),
    "sum pooling": lambda x: lax.reduce_window(x, np.array(0, x.dtype), lax.add, (2, 2), (1, 1), "SAME"),
    **{f"cast to {dtype}": lambda x, dtype=dtype: (x.astype(dtype), (x * 50).astype(dtype)) for dtype in DTYPES},
}


def example(dtype: str, seed: int) -> jax.Array:
    rng = np.random.default_rng(seed)
    if dtype == "bool":
        numbers = rng.integers(0, 2, (3, 4))
    elif "int" in dtype:
        numbers = rng.integers(1 if dtype[0] == "u" else -100, 100, (3, 4))
    else:
        numbers = 2 * rng.normal(size=(3, 4))
    return jnp.asarray(numbers).astype(dtype)


def calls(dtype: str) -> dict[str, Callable[[jax.Array, jax.Array], Any]]:
    """All functions of (x, y) that JAX has for a dtype."""
    both = {
        **{name: lambda x, y, name=name: getattr(lax, name)(x) for name in UNARY},
        **{name: lambda x, y, name=name: getattr(lax, name)(x, y) for name in BINARY},
        **{name: lambda x, y, name=name: getattr(lax, name)(x, y & 7) for name in SHIFTS},
        **{name: lambda x, y, f=f: f(x) for name, f in OTHERS.items()},
    }
    x, allowed = example(dtype, 0), {}
    for name, function in both.items():
        if "64" in name and "64" not in dtype:
            continue
        try:
            jax.eval_shape(function, x, x)
        except (TypeError, ValueError):
            continue  # JAX does not have it
        allowed[name] = function
    return allowed


def through_float32(function: Callable[..., Any], dtype: str) -> Callable[..., Any]:
    """The function with float32 in place of bfloat16, which NumPy does not have, for inputs and outputs."""

    def convert(*inputs: jax.Array) -> Any:
        outputs = function(*(x.astype(dtype) for x in inputs))
        return jax.tree.map(lambda y: y.astype(jnp.float32) if y.dtype == jnp.bfloat16 else y, outputs)

    return convert


# What onnxruntime has no kernel for: of all integers, of these dtypes, and of no others anything.
_INTEGERS = {
    *("convolution", "max pooling", "sum pooling"),
    *(f"reduce_{name}{axes}" for name in ("and", "or") for axes in ((), (0,), (1,), (0, 1))),
}
REFUSED: dict[str, set[str]] = {
    "bool": {"convolution"},
    "int": _INTEGERS,
    "int8": _INTEGERS - {"max pooling"},
    "uint8": _INTEGERS - {"max pooling"},
    "uint64": {
        *_INTEGERS,
        *("argmax", "cumsum", "div", "division by zero", "dot", "floor division", "neg", "rem", "select by number"),
        *("sign", "sort", "take along axis", "top_k", "where"),
        *(f"reduce_{name}{axes}" for name in ("sum", "max", "min") for axes in ((0,), (1,), (0, 1))),
    },
    "float64": {
        *("acos", "acosh", "asin", "asinh", "atan", "atanh", "cast to uint64", "convolution", "cosh", "erf", "erfc"),
        *("sinh", "sum pooling", "tan"),
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_operators(dtype: str):
    with jax.enable_x64("64" in dtype):
        inputs = [example(dtype, seed) for seed in (0, 1)]
        inputs = [x.astype(jnp.float32) if dtype == "bfloat16" else x for x in inputs]
        functions = {name: through_float32(function, dtype) for name, function in calls(dtype).items()}
        exported, refused = {}, {}
        for name, function in functions.items():
            try:
                fobt.export.to_onnx(lambda w, *inputs, f=function: f(*inputs), {}, *inputs)
                exported[name] = function
            except ValueError as error:
                refused[name] = str(error)

        def all_of(*inputs: jax.Array) -> dict[str, Any]:
            return {name: function(*inputs) for name, function in exported.items()}

        results = run(fobt.export.to_onnx(lambda w, *inputs: all_of(*inputs), {}, *inputs), *inputs)
        # The older emitters of XLA, with which the tests compile, have no clamp of bools.
        options = {"xla_cpu_use_fusion_emitters": True} if "fusion_emitters" in os.environ["XLA_FLAGS"] else {}
        compiled = jax.jit(all_of, compiler_options=options if dtype == "bool" else {})
        assert_same(results, compiled(*inputs), TOLERANCE.get(dtype, 1e-5))
    assert set(refused) == REFUSED.get(dtype, REFUSED["int"] if "int" in dtype else set())
    for name, message in refused.items():
        assert "function has the primitive" in message, name
        assert any(other in message for other in (dtype, "uint64")), (name, message)


def test_integers_that_would_end_the_process():
    numbers = np.array([-(2**31), 5, 7, -9], np.int32)
    for divisors in ([-1, 0, -2, 0], [0, -1, 3, 4]):
        y = np.array(divisors, np.int32)
        assert_exported(lambda w, x, y: (lax.div(x, y), lax.rem(x, y)), {}, numbers, y)


def test_casts_beyond_the_range_of_integers():
    x = np.array([np.inf, -np.inf, 2.0**31, -(2.0**31), 2.0**31 - 129, 1e20, -0.7, 255.9, 256, -3], np.float32)
    for dtype in ("int8", "uint8", "int16", "uint16", "int32", "uint32"):
        (result,) = run(fobt.export.to_onnx(lambda w, x, dtype=dtype: x.astype(dtype), {}, x), x)
        limits = np.iinfo(dtype)
        right = np.clip(np.trunc(x.astype(np.float64)), limits.min, limits.max)
        np.testing.assert_array_equal(result.astype(np.float64), right)


@pytest.mark.slow
def test_zeros_infinities_and_nan():
    x = np.array([np.inf, -np.inf, 0.0, 1e-20, -1e-8, 1e-4, 50.0, -50.0, 1e30, -1.0, np.nan], np.float32)

    def function(weights, x):
        elementwise = {name: getattr(lax, name)(x) for name in UNARY if name != "bitwise_not"}
        others = [jax.nn.softplus(x), jax.nn.logsumexp(x[1:2]), jnp.max(x[:-1]), jnp.argmin(x[:-1])]
        return (
            elementwise,
            others,
            jnp.clip(x, -1.0, 1.0),
            jnp.maximum(x, 0.0),
            jax.nn.softmax(jnp.stack([x[2:-1], 0 * x[2:-1]]), 0),
        )

    results = run(fobt.export.to_onnx(function, {}, x), x)
    for result, right in zip(results, jax.tree.leaves(function({}, x)), strict=True):
        np.testing.assert_allclose(result, right, rtol=2e-6, atol=2e-7)


def test_log1p_and_expm1_keep_small_numbers():
    x = np.concatenate([10.0 ** np.arange(-30, 2), -(10.0 ** np.arange(-30, 0))]).astype(np.float32)
    results = run(fobt.export.to_onnx(lambda w, x: (jnp.log1p(x), jnp.expm1(x)), {}, x), x)
    wide = x.astype(np.float64)
    np.testing.assert_allclose(results[0], np.log1p(wide), rtol=1e-6)
    np.testing.assert_allclose(results[1], np.expm1(wide), rtol=1e-6)


@pytest.mark.slow
def test_reductions_and_products_without_numbers():
    x = np.zeros((0, 3), np.float32)
    assert_exported(
        lambda w, x: (x.sum(0), x.sum(1), lax.reduce_max(x, (0,)), jnp.prod(x), x @ jnp.ones((3, 2)), x.T @ x, x + 1),
        {},
        x,
    )
    for dtype in ("bool", "int8", "uint32"):
        assert_exported(lambda w, x: (jnp.any(x > 0, 0), jnp.all(x > 0), lax.reduce_max(x, (0,))), {}, x.astype(dtype))
    integers = x.astype(np.int32)
    assert_exported(lambda w, x: (jnp.prod(x, 0), x.sum(), x.reshape(3, 0), jnp.concatenate([x, x])), {}, integers)


@pytest.mark.slow
def test_symbolic_sizes():
    def function(weights, x):
        positions = jnp.arange(x.shape[0], dtype=jnp.float32)[:, None]
        mask = jnp.arange(x.shape[0])[:, None] >= jnp.arange(x.shape[0])[None]
        scores = jnp.where(mask, x @ x.T, -1e9)
        return jax.nn.softmax(scores + positions.T) @ x, jnp.sort(x, 0), x[::-1], jnp.cumsum(x, 0), x - x.mean(0)[None]

    model = fobt.export.to_onnx(function, {}, free_batch(4))
    for size in (1, 5):
        x = normal(size, 4)
        assert_same(run(model, x), function({}, x))
