"""For the tests of exports: a network whose activations are rounded to 8 bits."""

import jax
import jax.numpy as jnp
from flax import linen as nn

import fobt

INPUTS, HIDDEN = jnp.array([-2.0, 3.1]), jnp.array([0.0, 4.0])


def convolution(images, kernel, padding="SAME", **options):
    options = {"window_strides": (1, 1), "dimension_numbers": ("NHWC", "HWIO", "NHWC"), **options}
    return jax.lax.conv_general_dilated(images, kernel, padding=padding, **options)


def network(w, images):
    """LeNet5 in small: bias behind the pooling, pooling behind ReLU, a flattened image, dense layers."""
    x = convolution(fobt.fake_quantize(images, INPUTS), w["first"])
    x = nn.max_pool(x, (2, 2), (2, 2)) + w["first_bias"][None, None, None]
    x = convolution(fobt.fake_quantize(nn.relu(x), HIDDEN), w["second"], window_strides=(1, 2))
    x = nn.max_pool(nn.relu(x + w["second_bias"][None, None, None]), (2, 2), (2, 2))
    x = fobt.fake_quantize(x, HIDDEN).reshape(x.shape[0], -1)
    x = fobt.fake_quantize(nn.relu(x @ w["third"] + w["third_bias"][None]), HIDDEN)
    return x @ w["last"]
