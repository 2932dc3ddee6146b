"""Folding of batch normalisation: the same outputs, and the same codes."""

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from folding_cases import codes, perturbed

import fobt


class LinenModel(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.relu(linen.BatchNorm(use_running_average=True)(linen.Conv(4, (3, 3))(x)))
        x = linen.Dense(3, use_bias=False)(x.reshape(len(x), -1))
        return linen.BatchNorm(use_running_average=True, use_scale=False, epsilon=1e-3)(x)


class FoldedLinenModel(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.relu(linen.Conv(4, (3, 3))(x))
        return linen.Dense(3)(x.reshape(len(x), -1))


@pytest.mark.slow
def test_linen_models():
    x = jax.random.normal(jax.random.key(0), (2, 5, 5, 2))
    variables = LinenModel().init(jax.random.key(1), x)
    params = perturbed(variables["params"], 0, positive=False)
    averages = perturbed(variables["batch_stats"], 1, positive=True)
    params = fobt.quantize(params, None, fobt.binary())
    conv = fobt.fold_batch_norm(
        params["Conv_0"]["kernel"],
        **averages["BatchNorm_0"],
        **params["BatchNorm_0"],
        epsilon=1e-5,
        layer_bias=params["Conv_0"]["bias"],
    )
    dense = fobt.fold_batch_norm(
        params["Dense_0"]["kernel"], **averages["BatchNorm_1"], **params["BatchNorm_1"], epsilon=1e-3
    )
    folded = {"Conv_0": {"kernel": conv[0], "bias": conv[1]}, "Dense_0": {"kernel": dense[0], "bias": dense[1]}}
    assert all(map(np.array_equal, codes(folded), codes(params)))
    assert (np.asarray(folded["Conv_0"]["kernel"].scale) < 0).any()
    expected = LinenModel().apply({"params": fobt.dequantize(params), "batch_stats": averages}, x)
    result = FoldedLinenModel().apply({"params": fobt.dequantize(folded)}, x)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("granularity", "scale_shape"),
    [
        (fobt.per_tensor(), (1, 3)),
        (fobt.per_channel(), (1, 3)),
        (fobt.per_channel(0), (7, 3)),
        (fobt.per_channel((0, 1)), (7, 3)),
        (fobt.per_block(4), (2, 3)),
    ],
)
@pytest.mark.parametrize("quantizer", [fobt.linear, fobt.logarithmic])
def test_every_granularity_gets_a_scale_for_each_channel(granularity, scale_shape: tuple, quantizer):
    weights = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    kernel = quantizer(3, granularity=granularity)(weights)
    mean, var, scale = np.array([0.5, -1, 2]), np.array([0.1, 1, 4]), np.array([-1.0, 0.0, 3.0])
    vectors = [jnp.asarray(vector, jnp.float32) for vector in (mean, var, scale)]
    folded, bias = fobt.fold_batch_norm(kernel, *vectors, epsilon=0.01)
    gain = scale / np.sqrt(var + 0.01)
    assert folded.scale.shape == scale_shape
    np.testing.assert_array_equal(folded.codes, kernel.codes)
    np.testing.assert_allclose(folded.dequantize(), np.asarray(kernel.dequantize()) * gain, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(bias, -mean * gain, rtol=1e-5)


def test_weights_in_full_precision():
    kernel, mean, var = jnp.ones((2, 3), jnp.bfloat16), jnp.ones(3), jnp.full(3, 4.0)
    folded, bias = fobt.fold_batch_norm(kernel, mean, var, epsilon=0.0)
    assert folded.dtype == jnp.bfloat16
    np.testing.assert_array_equal(folded.astype(jnp.float32), np.full((2, 3), 0.5))
    np.testing.assert_array_equal(bias, np.full(3, -0.5))


def test_mistakes_are_named():
    kernel, ones = fobt.binary(granularity=fobt.per_block(2, axis=-1))(jnp.ones((4, 3))), jnp.ones(3)
    with pytest.raises(
        ValueError, match=r"kernel must not share scales between output channels in blocks, got PerBlock"
    ):
        fobt.fold_batch_norm(kernel, ones, ones, epsilon=1e-5)
    with pytest.raises(ValueError, match=r"var must have shape \(3,\), that of the output channels, got \(4,\)"):
        fobt.fold_batch_norm(jnp.ones((4, 3)), ones, jnp.ones(4), epsilon=1e-5)
    with pytest.raises(ValueError, match="kernel must have an axis of output channels"):
        fobt.fold_batch_norm(jnp.ones(()), ones, ones, epsilon=1e-5)
