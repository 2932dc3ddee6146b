"""Export to LiteRT: a generated function has the values of JAX, or is refused by name; there is no third outcome."""

from collections.abc import Callable
from typing import Any

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from litert_cases import GRIDS, leaf, run

import fobt

pytestmark = pytest.mark.filterwarnings("ignore:function does not use the leaves")

SHAPES = st.lists(st.sampled_from((1, 2, 3, 0)), max_size=3).map(tuple)
NAMES = ("kernel", "a/b", "", "é ü", "leaf_0", "input", "0", "x" * 70)


def axes_of(value: jax.Array, k: int) -> tuple[int, ...] | None:
    """Every axis, none, or one."""
    choices = [None, (), *((axis,) for axis in range(value.ndim))]
    return choices[k % len(choices)]


def dense(a: jax.Array, b: jax.Array, k: int) -> jax.Array:
    """Rows of a times the matrix b, where their sizes allow it."""
    if b.ndim != 2 or 0 in b.shape or a.size % b.shape[0]:
        return a
    return jnp.tanh(a.reshape(-1, b.shape[0]).astype(jnp.float32) @ b.astype(jnp.float32))


STEPS: list[Callable[[jax.Array, jax.Array, int], jax.Array]] = [
    dense,
    lambda a, b, k: dense(a, b.T, k),
    lambda a, b, k: jnp.tanh(a.astype(jnp.float32)),
    lambda a, b, k: a.astype((jnp.float32, jnp.int32, jnp.bool_)[k % 3]),
    lambda a, b, k: a > b.astype(a.dtype).sum(dtype=a.dtype) if a.dtype != bool else ~a,
    lambda a, b, k: a.sum(axes_of(a, k)),
    lambda a, b, k: a.max(axes_of(a, k), initial=0),
    lambda a, b, k: a.mean(axes_of(a, k)) if a.size else a,
    lambda a, b, k: a.T,
    lambda a, b, k: a.reshape(-1),
    lambda a, b, k: a[..., ::-1] if a.ndim else a[None],
    lambda a, b, k: a[k % 3 :] if a.ndim else a,
    lambda a, b, k: jnp.concatenate([a.reshape(-1), b.reshape(-1).astype(a.dtype)]),
    lambda a, b, k: a * b if a.shape == b.shape else jnp.where(a.astype(bool), a, b.astype(a.dtype).sum(dtype=a.dtype)),
]


@st.composite
def programs(draw: st.DrawFn) -> tuple[Any, Callable[..., Any], list[np.ndarray]]:
    """A tree of weights, a function of it and of inputs, and inputs."""
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True))
    grids = st.sampled_from(("binary", "linear 2", "linear 4"))
    quantized: dict[str, Any] = {name: leaf(draw(SHAPES), GRIDS[draw(grids)]) for name in names}
    quantized |= {"plain": jnp.arange(3.0)}
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    inputs = [
        rng.normal(0, 2, shape).astype(draw(st.sampled_from((np.float32, np.int32, np.bool_))))
        for shape in draw(st.lists(SHAPES, max_size=2))
    ]
    small = st.integers(0, 20)
    steps = draw(st.lists(st.tuples(st.integers(0, len(STEPS) - 1), small, small, small), min_size=2, max_size=7))
    outputs = draw(st.lists(small, min_size=1, max_size=4))

    def function(weights: Any, *inputs: Any) -> Any:
        values = [jnp.asarray(value) for value in (*inputs, *weights.values())]
        for step, a, b, k in steps:
            # The newest values are used most, so that programs are deep.
            values.insert(0, STEPS[step](values[a % 3 % len(values)], values[b % len(values)], k))
        return [values[output % len(values)] for output in outputs]

    return quantized, function, inputs


@pytest.mark.slow
@hypothesis.given(programs())
@hypothesis.settings(max_examples=20)
def test_a_generated_function(program: tuple[Any, Callable[..., Any], list[np.ndarray]]):
    quantized, function, inputs = program
    try:
        model = fobt.export.to_litert(function, quantized, *inputs)
    except ValueError as error:
        assert str(error).startswith(("function uses ", "function has ", "quantized has the leaf"))  # noqa: PT017
        hypothesis.event("refused")
        return
    expected = jax.jit(function)(fobt.dequantize(quantized), *inputs)
    outputs = run(model, *inputs)
    for got, value in zip(outputs if len(expected) > 1 else [outputs], expected, strict=True):
        assert (got.shape, got.dtype) == (value.shape, value.dtype)
        np.testing.assert_allclose(got, value, rtol=1e-5, atol=1e-5)
