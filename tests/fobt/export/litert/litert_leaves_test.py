"""Export to LiteRT: leaves of every shape, used in every way, are stored as integers, or left out with a warning."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from litert_cases import GRIDS, PER_TENSOR, close, flatbuffer_utils, leaf, normal, run, stored_weights

import fobt
from fobt._src.quantizers.granularity import Granularity

LINEAR = GRIDS["linear 4"]


def of(weights: object, split: Granularity = PER_TENSOR) -> fobt.Quantized:
    return fobt.linear(4, granularity=split)(jnp.asarray(weights, jnp.float32))


def check(function, quantized, *inputs: np.ndarray, stored: int) -> bytes:
    """LiteRT computes what NumPy-like code computes with the dequantized weights, from that many integer tensors."""
    model = fobt.export.to_litert(function, quantized, *inputs)
    expected = function(fobt.dequantize(quantized), *inputs)
    np.testing.assert_allclose(run(model, *inputs), expected, rtol=2e-6, atol=2e-6 * (1 + np.abs(expected).max()))
    assert len(stored_weights(model)) == stored
    return model


@pytest.mark.parametrize("value", [0.0, 0.5, -0.5])
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (8, 1), (8, 4)])
def test_constant_kernels_of_one_row_or_one_weight(shape: tuple[int, int], value: float):
    check(lambda w, x: jnp.tanh(x @ w["k"]), {"k": of(np.full(shape, value))}, normal(3, shape[0]), stored=1)


@pytest.mark.slow
@pytest.mark.parametrize("split", [PER_TENSOR, fobt.per_channel()], ids=["tensor", "channel"])
@pytest.mark.parametrize("grid", ["binary", "linear 4"])
def test_leaves_with_any_number_of_axes(grid: str, split: Granularity):
    shapes = [(1,), (5,), (2, 3, 4), (1, 2, 1, 3, 2)]
    leaves = {"a/b c é": leaf((), GRIDS[grid])} | {str(shape): leaf(shape, GRIDS[grid], split) for shape in shapes}
    x = np.float32(2)
    model = fobt.export.to_litert(lambda w, x: jax.tree.map(lambda leaf: leaf * x, w), leaves, x)
    for got, expected in zip(run(model, x), jax.tree.leaves(fobt.dequantize(leaves)), strict=True):
        np.testing.assert_allclose(got, 2 * expected, rtol=1e-6)
    assert len(stored_weights(model)) == 5


def test_scales_that_are_zero_or_negative_or_huge():
    kernel = normal(8, 4) * np.array([0, 1, 1e30, 1e-30], np.float32)
    quantized = {"kernel": of(kernel, fobt.per_channel())}
    quantized["kernel"] = dataclasses.replace(quantized["kernel"], scale=-quantized["kernel"].scale)
    model = fobt.export.to_litert(lambda w, x: x @ w["kernel"], quantized, np.eye(8, dtype=np.float32))
    np.testing.assert_allclose(
        run(model, np.eye(8, dtype=np.float32)), quantized["kernel"].dequantize(), rtol=1e-6, atol=0
    )


def test_an_empty_leaf_adds_nothing():
    quantized = {"empty": leaf((0, 4), LINEAR), "kernel": leaf((3, 4), LINEAR)}
    check(lambda w, x, y: x @ w["kernel"] + y @ w["empty"], quantized, normal(2, 3), np.zeros((2, 0), "f"), stored=1)


def test_an_unused_leaf_is_left_out_with_a_warning():
    quantized = {"aux": leaf((16, 32), LINEAR), "used": leaf((3, 4), LINEAR), "shape": leaf((5, 7), LINEAR)}
    with pytest.warns(UserWarning, match=re.escape("does not use the leaves ['aux', 'shape'], which are left out")):
        model = check(lambda w, x: x @ w["used"] * w["shape"].shape[0], quantized, normal(2, 3), stored=1)
    content = flatbuffer_utils.read_model_from_bytearray(bytearray(model))
    assert sum(len(buffer.data) for buffer in content.buffers if buffer.data is not None) < 200


@pytest.mark.slow
def test_two_leaves_that_are_alike_are_told_apart():
    x = normal(3, 8)
    kernel = normal(8, 4)

    def pair(w, x):
        return jnp.tanh(x @ w["a"]) @ w["b"] + x

    for first, second in ((kernel, kernel.T), (0 * kernel, 0 * kernel.T), (0 * kernel + 1, 0 * kernel.T + 1)):
        check(pair, {"a": of(first), "b": of(second)}, x, stored=2)
    # Equal codes and another scale.
    check(pair, {"a": of(kernel), "b": of(3 * kernel.T)}, x, stored=2)


def test_a_leaf_that_is_used_twice():
    quantized = {"kernel": leaf((8, 4), LINEAR), "square": leaf((8, 8), LINEAR)}
    check(lambda w, x: jnp.tanh(x @ w["kernel"]) @ w["kernel"].T, quantized | {"square": x1()}, normal(3, 8), stored=2)
    check(lambda w, x: jnp.tanh(x @ w["square"]) @ w["square"], {"square": quantized["square"]}, normal(3, 8), stored=1)


def x1() -> jax.Array:
    """A leaf that is not quantized."""
    return jnp.ones((1, 1))


def test_an_embedding_is_stored_once_for_both_ends():
    quantized = {"table": leaf((12, 8), LINEAR, fobt.per_channel(0))}
    tokens = np.array([[0, 3, 11], [5, 5, 1]], np.int32)
    check(lambda w, t: jnp.tanh(w["table"][t]) @ w["table"].T, quantized, tokens, stored=1)


def test_equal_leaves_share_their_bytes():
    kernel = leaf((64, 64), LINEAR)
    model = fobt.export.to_litert(lambda w, x: jnp.tanh(x @ w[0]) @ w[1], [kernel, kernel], normal(1, 64))
    assert len(stored_weights(model)) == 2
    assert len(model) < 64 * 64 / 2 + 2500


LAYOUTS = {
    "transposed": lambda w: w.transpose(1, 2, 0),
    "merged": lambda w: w.reshape(8, 6),
    "flat": lambda w: w.reshape(-1),
    "split": lambda w: w.reshape(2, 2, 2, 3, 2),
    "reversed": lambda w: w[::-1, :, ::-1],
    "sliced": lambda w: w[1:, ::2, 1:4],
    "one row": lambda w: w[2],
    "rearranged often": lambda w: w[::-1].transpose(2, 0, 1).reshape(6, 8)[:, 1:].T,
}


@pytest.mark.parametrize("kept", [None, 0, 2], ids=["tensor", "first axis", "last axis"])
def test_leaves_in_other_orders_and_shapes(kept: int | None):
    quantized = {"w": leaf((4, 2, 6), LINEAR, PER_TENSOR if kept is None else fobt.per_channel(kept))}
    x = np.float32(3)
    model = fobt.export.to_litert(lambda w, x: [x * layout(w["w"]) for layout in LAYOUTS.values()], quantized, x)
    weights = np.asarray(fobt.dequantize(quantized)["w"])
    for got, name in zip(run(model, x), LAYOUTS, strict=True):
        np.testing.assert_allclose(got, 3 * LAYOUTS[name](weights), rtol=1e-6, err_msg=name)
    assert weights.tobytes() not in model


@pytest.mark.slow
@pytest.mark.parametrize("kept", [None, 0, 2], ids=["tensor", "inputs", "features"])
def test_attention_kernels_and_biases(kept: int | None):
    split = PER_TENSOR if kept is None else fobt.per_channel(kept)
    quantized = {"kernel": leaf((6, 2, 4), LINEAR, split), "bias": leaf((2, 4), LINEAR), "out": leaf((2, 4, 6), LINEAR)}

    def heads(w, x):
        hidden = jnp.einsum("btd,dhk->bthk", x, w["kernel"]) + w["bias"][None, None]
        return jnp.einsum("bthk,hkd->btd", hidden, w["out"])

    check(heads, quantized, normal(2, 3, 6), stored=3)


def test_scanned_layers_are_stored_one_by_one():
    quantized = {"kernels": leaf((3, 4, 4), LINEAR, fobt.per_channel(0))}

    def layers(w, x):
        return lax.scan(lambda h, kernel: (jnp.tanh(h @ kernel), None), x, w["kernels"])[0]

    check(layers, quantized, normal(2, 4), stored=3)


def test_weights_that_a_function_computes_with():
    quantized = {"kernel": leaf((4, 3), LINEAR), "gain": leaf((1, 3), LINEAR)}
    check(lambda w, x: x @ ((w["kernel"] + 1) * w["gain"]), quantized, normal(2, 4), stored=2)
    condition = np.array(True)
    check(
        lambda w, x, c: lax.cond(c, lambda v: v @ w["kernel"], lambda v: v[:, :3] * w["gain"], x),
        quantized,
        normal(2, 4),
        condition,
        stored=2,
    )


def test_weights_as_output():
    quantized = {"kernel": leaf((4, 3), LINEAR)}
    model = fobt.export.to_litert(lambda w: (w["kernel"], w["kernel"].T), quantized)
    weights = fobt.dequantize(quantized)["kernel"]
    for got, expected in zip(run(model), (weights, weights.T), strict=True):
        close(got, expected)
