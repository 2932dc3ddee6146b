"""Leaves of more than 2³¹ weights, by their shapes alone: whatever is as long as a leaf must not be made."""

import functools
import resource

import jax
import jax.numpy as jnp
import optax
import pytest

import fobt
from fobt._src.quantizers.clipping import lp_clipping_value

# More than 2³¹ weights, and along one axis more than 2³².
SHAPES = [(50_000, 50_000), (2**32 + 2**11, 2), (2, 2**32 + 2**11)]
QUANTIZERS = {
    "binary": fobt.binary(),
    "candidates": fobt.ternary(),
    "exact": fobt.linear(3, solver="exact"),
    "alternating": fobt.ternary(solver="alternating"),
    "two scales": fobt.ternary(scale_per_sign=True),
    "eight bits": fobt.linear(8),
    "per_channel": fobt.logarithmic(3, granularity=fobt.per_channel()),
    "per_block": fobt.linear(4, granularity=fobt.per_block(127)),
    "per_block, last axis": fobt.linear(4, granularity=fobt.per_block(128, axis=-1)),
    "per_block, long": fobt.binary(granularity=fobt.per_block(2**32)),
}
BITS = {"candidates": 1.6, "alternating": 1.6, "two scales": 1.6}


@pytest.fixture(autouse=True)
def little_memory():
    """An array as long as a leaf does not fit in."""
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**31, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


def abstract(shape, dtype="float32"):
    return jax.ShapeDtypeStruct(shape, dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", QUANTIZERS)
def test_quantized_and_packed(name, shape):
    quantizer, weights = QUANTIZERS[name], abstract(shape)
    quantized = jax.eval_shape(quantizer, weights, weights)
    assert quantized.codes.shape == jax.eval_shape(fobt.dequantize, quantized).shape == shape
    rounded = jax.eval_shape(quantizer.round_to_nearest, weights, quantized.scale)
    packed = jax.eval_shape(fobt.packed.pack, quantized)
    assert rounded.codes.shape == jax.eval_shape(fobt.packed.unpack, packed).codes.shape == shape
    count = shape[0] * shape[1]
    tenths_of_bits = round(10 * BITS.get(name, quantizer.grid.bits))
    expected = -(-count * tenths_of_bits // 80) + 4 * quantized.scale.size
    leaf = fobt.packed.size_report({"w": quantized}).quantized
    assert (leaf.nbytes, leaf.size) == (expected, count)


@pytest.mark.parametrize("name", ["candidates", "eight bits", "per_channel", "per_block"])
def test_products(name):
    packed = jax.eval_shape(lambda w: fobt.packed.pack(QUANTIZERS[name](w)), abstract(SHAPES[0]))
    assert jax.eval_shape(fobt.packed.packed_matmul, abstract((3, 50_000)), packed).shape == (3, 50_000)


@pytest.mark.parametrize("shape", SHAPES[1:])
def test_products_over_more_inputs_or_outputs_than_an_index_can_count(shape):
    packed = jax.eval_shape(lambda w: fobt.packed.pack(fobt.binary()(w)), abstract(shape))
    with pytest.raises(ValueError, match=r"packed must have less than 2³¹ inputs and outputs, got shape"):
        jax.eval_shape(fobt.packed.packed_matmul, abstract((3, shape[0])), packed)


def tracked(params, grads, quantizer):
    for sample in (None, 2**16):
        tx = fobt.oscillations.track_oscillations(
            fobt.forward_backtrack(1e-3, quantizer), quantizer, sample=sample, full_precision_gradient=True
        )
        updates, state = tx.update(grads, tx.init(params), params, grad_fn=lambda weights: weights)
        fobt.oscillations.oscillation_metrics(state)
    return updates


def frozen(params, grads, quantizer):
    tx = fobt.oscillations.freeze_oscillations(optax.adam(1e-3), quantizer, 0.1)
    updates, state = tx.update(grads, tx.init(params), params)
    return updates, fobt.oscillations.is_frozen(state)


def optimistic(params, grads, quantizer):
    tx = fobt.optimistic(fobt.forward_backtrack(1e-3, quantizer, weight_bounds=(-1, 1)))
    state = tx.init(params)
    return tx.update(grads, state, params), fobt.quantized_trial_params(params, state, quantizer, tx)


def dampened(params, grads, quantizer):
    return jax.value_and_grad(fobt.oscillations.dampening_loss)(params, None, quantizer)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["candidates", "exact", "per_block"])
@pytest.mark.parametrize("step", [tracked, frozen, optimistic, dampened])
def test_steps(step, name, shape):
    params = {"kernel": abstract(shape), "bias": abstract((3,))}
    jax.eval_shape(functools.partial(step, quantizer=QUANTIZERS[name]), params, params)


def test_folding_and_clipping():
    kernel = jax.eval_shape(QUANTIZERS["per_block"], abstract(SHAPES[0]))
    vector = abstract(SHAPES[0][1:])
    folded, _ = jax.eval_shape(functools.partial(fobt.fold_batch_norm, epsilon=1e-5), kernel, vector, vector)
    assert folded.codes.shape == SHAPES[0]
    clipping = functools.partial(lp_clipping_value, quantizer=fobt.linear(4), norm=jnp.float32(2))
    assert jax.eval_shape(clipping, abstract(SHAPES[1])).shape == ()


def test_flips_are_not_counted_in_integers():
    """2³¹ flips are more than an int32 can hold; the sum is of floating numbers."""
    params = {"kernel": abstract(SHAPES[0])}
    jaxpr = jax.make_jaxpr(functools.partial(tracked, quantizer=fobt.binary()))(params, params)
    sums = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "reduce_sum"]
    assert sums
    assert all(jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.floating) for eqn in sums)
