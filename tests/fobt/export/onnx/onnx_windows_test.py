"""Convolutions and pooling of every kind through ONNX."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from onnx_cases import assert_exported, assert_same, free_batch, normal, run

import fobt

# Layers of Flax have biases of several axes, and it does not matter here that they are quantized.
pytestmark = pytest.mark.filterwarnings("ignore:the quantizer takes these leaves for matrices")

LAYERS = {
    "1D": (nn.Conv(6, (3,)), (2, 9, 4)),
    "1D, causal": (nn.Conv(6, (3,), padding="CAUSAL"), (2, 9, 4)),
    "1D, stride, groups, dilation": (nn.Conv(6, 3, 2, feature_group_count=2, kernel_dilation=2), (2, 9, 4)),
    "1x1": (nn.Conv(6, (1, 1)), (2, 5, 4, 4)),
    "3D": (nn.Conv(3, (2, 2, 2)), (1, 3, 4, 3, 2)),
    "reflect": (nn.Conv(6, (3, 3), padding="REFLECT"), (2, 5, 4, 4)),
    "circular": (nn.Conv(6, (3, 2), padding="CIRCULAR"), (2, 5, 4, 4)),
    "depthwise": (nn.Conv(8, (3, 3), feature_group_count=4), (2, 5, 4, 4)),
    "local": (nn.ConvLocal(3, (3, 2)), (2, 5, 4, 2)),
    "transposed": (nn.ConvTranspose(6, (3, 2), (2, 2)), (2, 5, 4, 4)),
    "transposed, 1D, valid": (nn.ConvTranspose(6, (3,), (2,), "VALID"), (2, 5, 4)),
    "transposed, 3D": (nn.ConvTranspose(2, (2, 3, 2), (1, 2, 1)), (1, 3, 2, 3, 2)),
    "transposed, stride above size": (nn.ConvTranspose(3, (2, 1), (4, 3)), (1, 3, 4, 2)),
    "transposed, circular": (nn.ConvTranspose(3, (3, 3), (2, 2), "CIRCULAR"), (1, 4, 4, 2)),
    "transposed, dilated": (nn.ConvTranspose(3, (3, 3), (2, 1), kernel_dilation=(2, 1)), (1, 4, 4, 2)),
    "transposed, turned": (nn.ConvTranspose(3, (3, 3), (2, 2), transpose_kernel=True), (1, 4, 4, 2)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str):
    layer, shape = LAYERS[name]
    x = normal(*shape)
    params = layer.init(jax.random.key(0), jnp.asarray(x))
    blocks = fobt.per_block(3, axis=-2)
    for quantizer in (fobt.linear(4), fobt.ternary(granularity=fobt.per_channel()), fobt.linear(3, granularity=blocks)):
        quantized = jax.jit(fobt.quantize, static_argnums=2)(params, None, quantizer)
        model = assert_exported(layer.apply, quantized, x, tolerance=2e-5)
        operators = {node.op_type for node in model.graph.node}
        assert ("ConvTranspose" in operators) == ("transposed" in name)


CONVOLUTIONS = {
    "groups of a transposed one": ((1, 6, 5), (9, 2, 3), {"lhs_dilation": (2,), "feature_group_count": 3}),
    "padding beyond the kernel": ((1, 2, 5), (3, 2, 2), {"lhs_dilation": (2,), "padding": ((4, 3),)}),
    "negative padding": ((1, 2, 7), (3, 2, 2), {"padding": ((-1, -2),)}),
    "negative padding of a transposed one": ((1, 2, 7), (3, 2, 2), {"lhs_dilation": (3,), "padding": ((-1, -2),)}),
    "blocks along a reversed axis": ((1, 2, 7), (3, 2, 4), {"lhs_dilation": (2,), "padding": ((1, 1),)}),
    "2D with another order of axes": (
        (5, 2, 4, 1),
        (3, 2, 3, 2),
        {"dimension_numbers": ("HCWN", "OIHW", "NHWC"), "lhs_dilation": (1, 2)},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name: str):
    image, kernel, options = CONVOLUTIONS[name]
    spatial = len(image) - 2
    options = {"window_strides": (1,) * spatial, "padding": ((1, 1),) * spatial, **options}
    for split in (fobt.per_tensor(), fobt.per_channel(0), fobt.per_block(3, axis=-1), fobt.per_block(2, axis=-1)):
        quantized = fobt.linear(4, granularity=split)(normal(*kernel))
        assert_exported(
            lambda w, x, options=options: jax.lax.conv_general_dilated(x, w, **options),
            quantized,
            normal(*image, seed=1),
        )


@pytest.mark.slow
def test_half_precision_and_wider_outputs():
    x, kernel = normal(1, 2, 7), normal(3, 2, 2, seed=1)

    def function(weights, x):
        half = jax.lax.conv_general_dilated(x, weights, (1,), "SAME")
        wide = jax.lax.conv_general_dilated(x, weights, (1,), "SAME", preferred_element_type=jnp.float32)
        return half.astype(jnp.float32), wide

    for dtype, tolerance in ((jnp.float16, 5e-3), (jnp.bfloat16, 4e-2)):
        quantized = fobt.linear(4)(jnp.asarray(kernel, dtype))
        assert_exported(lambda w, x, d=dtype: function(w, x.astype(d)), quantized, x, tolerance=tolerance)


POOLING = {
    "max": lambda x: nn.max_pool(x, (3, 2), (2, 1), "SAME"),
    "min": lambda x: jax.lax.reduce_window(
        x, jnp.inf, jax.lax.min, (1, 3, 2, 1), (1,) * 4, ((0, 0), (1, 0), (0, 1), (0, 0))
    ),
    "average": lambda x: nn.avg_pool(x, (3, 2), (1, 2), "SAME"),
    "average of what is there": lambda x: nn.avg_pool(x, (3, 2), (1, 2), "SAME", count_include_pad=False),
    "over all axes": lambda x: jax.lax.reduce_window(x[0], -jnp.inf, jax.lax.max, (2, 1, 3), (1, 2, 1), "VALID"),
    "over one axis": lambda x: jax.lax.reduce_window(x[0, 0, :, 0], 0.0, jax.lax.add, (3,), (1,), "SAME"),
    "dilated": lambda x: jax.lax.reduce_window(
        x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 1, 1, 1), "VALID", window_dilation=(1, 2, 1, 1)
    ),
}


def test_pooling():
    def function(weights, x):
        return {name: pool(x) for name, pool in POOLING.items()}

    x = normal(2, 6, 5, 4)
    assert_exported(function, {}, x)
    batched = {name: pool for name, pool in POOLING.items() if "over" not in name}
    model = fobt.export.to_onnx(lambda w, x: {name: pool(x) for name, pool in batched.items()}, {}, free_batch(6, 5, 4))
    assert_same(run(model, x), {name: pool(jnp.asarray(x)) for name, pool in batched.items()})


REFUSED = {
    "batch_group_count 2": lambda x: jax.lax.conv_general_dilated(x, x, (1,), "SAME", batch_group_count=2),
    "window_strides": lambda x: jax.lax.conv_general_dilated(x, x, (2,), ((1, 1),), lhs_dilation=(2,)),
    "4 axes": lambda x: jax.lax.conv_general_dilated(
        x[..., None, None, None], x[..., None, None, None], (1,) * 4, "SAME"
    ),
    "dilated images": lambda x: jax.lax.reduce_window(
        x, -jnp.inf, jax.lax.max, (1, 1, 2), (1, 1, 1), "VALID", base_dilation=(1, 1, 2)
    ),
    "as wide as the window": lambda x: jax.lax.reduce_window(
        x, -jnp.inf, jax.lax.max, (1, 1, 2), (1, 1, 1), ((0, 0), (0, 0), (2, 0))
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_has_no_counterpart_is_named(reason: str):
    with pytest.raises(ValueError, match=f"function has the primitive .* {reason}.*, which to_onnx cannot convert"):
        fobt.export.to_onnx(lambda w, x: REFUSED[reason](x), {}, np.zeros((2, 2, 4), np.float32))
