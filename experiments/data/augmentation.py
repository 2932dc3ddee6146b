"""Random changes to training images, on the device."""

import functools

import jax
import jax.numpy as jnp


def crop_and_flip(images: jax.Array, key: jax.Array, padding: int = 4) -> jax.Array:
    """A random crop of each zero-padded image, mirrored with probability 1/2.

    Every image has its own offsets, uniform in 0 to 2·padding in both directions, and its own coin.

    Args:
        images: Shape (n, height, width, channels).
        key: Random key.
        padding: Zeros added on each side.

    Returns:
        Images of the same shape.

    References:
        He et al., `Deep Residual Learning for Image Recognition <https://arxiv.org/abs/1512.03385>`_, 2016, section
        4.2: this augmentation of CIFAR-10.

    Example:
        >>> crop_and_flip(jnp.ones((1, 2, 2, 1)), jax.random.key(0), padding=0).squeeze()
        Array([[1., 1.],
               [1., 1.]], dtype=float32)
    """
    count, height, width, channels = images.shape
    offset_key, flip_key = jax.random.split(key)
    offsets = jax.random.randint(offset_key, (count, 2), 0, 2 * padding + 1)
    flips = jax.random.bernoulli(flip_key, shape=(count, 1, 1, 1))
    padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    crop = functools.partial(jax.lax.dynamic_slice, slice_sizes=(height, width, channels))
    crops = jax.vmap(lambda image, offset: crop(image, (*offset, 0)))(padded, offsets)
    return jnp.where(flips, crops[:, :, ::-1], crops)
