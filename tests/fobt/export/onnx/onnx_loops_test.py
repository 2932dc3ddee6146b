"""Loops in ONNX: unrolled, with stacked weights of which each step has its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from onnx_cases import assert_exported, free_batch, normal

import fobt

LAYERS = 3
WEIGHTS = {"w": jnp.asarray(normal(LAYERS, 8, 8)), "b": jnp.asarray(normal(LAYERS, 8, seed=1))}
SPLITS = [fobt.per_tensor(), fobt.per_channel(), fobt.per_block(3), fobt.per_block(3, axis=1)]


def layers(reverse=False):
    def function(weights, x):
        def step(x, layer):
            x = jnp.tanh(x @ layer["w"] + layer["b"][None])
            return x, jnp.sum(x, axis=1)

        return jax.lax.scan(step, x, weights, reverse=reverse)

    return function


@pytest.mark.parametrize("quantizer", [fobt.ternary, fobt.binary, lambda **options: fobt.linear(4, **options)])
@pytest.mark.parametrize("split", SPLITS, ids=str)
@pytest.mark.parametrize("reverse", [False, True])
def test_stacked_layers(quantizer, split, reverse):
    quantized = fobt.quantize(WEIGHTS, None, fobt.linear_maps(quantizer(granularity=split), stacked=".*"))
    model = assert_exported(layers(reverse), quantized, normal(4, 8))
    assert {f"w/{i}" for i in range(LAYERS)} <= {tensor.name for tensor in model.graph.initializer}


def test_one_scale_for_all_layers():
    quantized = fobt.quantize(WEIGHTS, None, fobt.per_leaf(("w", fobt.linear(4))))
    assert_exported(layers(), quantized, normal(4, 8))


def test_a_leaf_along_two_of_its_axes():
    quantized = fobt.quantize({"w": jnp.asarray(normal(8, 8, 8))}, None, fobt.per_leaf(("w", fobt.linear(4))))

    def function(weights, x):
        for stacked in (weights["w"], weights["w"].transpose(1, 0, 2)):
            x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w / 8), None), x, stacked)
        return x

    assert_exported(function, quantized, normal(4, 8))


def test_a_free_batch():
    quantized = fobt.quantize(WEIGHTS, None, fobt.linear_maps(fobt.ternary(), stacked=".*"))
    model = fobt.export.to_onnx(lambda w, x: layers()(w, x)[0], quantized, free_batch(8))
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_known_rows_broadcasts_and_no_steps():
    table = np.arange(12, dtype=np.float32).reshape(3, 4)

    def function(_, x):
        def step(carry, row):
            return carry + row[0] * row[1], (carry, row[0], jnp.ones(2))

        zeros = jnp.broadcast_to(x[:1], x.shape)
        return jax.lax.scan(step, x[0], (table, zeros)), jax.lax.scan(step, x[0], (table[:0], x[:0]))

    assert_exported(function, {}, normal(3, 4))
