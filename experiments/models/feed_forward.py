"""Networks built from the blocks of the paper's notation, in Flax NNX.

They follow LAQ's recipe: batch normalisation (ε = 1e-4, running averages with rate 0.1) after every weight
layer, the output included, in the order weights, pooling, normalisation, ReLU. A bias in front of a normalisation is
subtracted out again, so weight layers have none; the weights are then exactly the parameters with two or more
dimensions, which fobt quantizes by default. Initial weights are uniform in ±√(1.5 / (fan_in + fan_out)).
"""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from fobt.nnx import FakeQuantize

INITIALIZER = nnx.initializers.variance_scaling(0.25, "fan_avg", "uniform")


def _batch_norm(features: int, rngs: nnx.Rngs) -> nnx.BatchNorm:
    return nnx.BatchNorm(features, momentum=0.9, epsilon=1e-4, rngs=rngs)


def max_pool(images: jax.Array) -> jax.Array:
    """2×2 max-pooling by three elementwise maxima, an odd last row or column dropped.

    On CPU the gradient of `nnx.max_pool`, a scatter to the selected pixels, takes half the time of a LeNet5 step and
    more than ten times as long as this one, which shares the gradient between pixels that tie.

    Args:
        images: Shape (batch, height, width, channels).

    Returns:
        Shape (batch, height // 2, width // 2, channels).

    Example:
        >>> max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1)).squeeze()
        Array([[ 5.,  7.],
               [13., 15.]], dtype=float32)
    """
    batch, height, width, channels = images.shape
    even = images[:, : height // 2 * 2, : width // 2 * 2]
    windows = even.reshape(batch, height // 2, 2, width // 2, 2, channels)
    rows = jnp.maximum(windows[:, :, 0], windows[:, :, 1])
    return jnp.maximum(rows[:, :, :, 0], rows[:, :, :, 1])


class ConvBlock(nnx.Module):
    """C3, or C3-MP2: 3×3 convolution, 2×2 max-pooling where asked for, batch normalisation, ReLU.

    The convolution pads with zeros to keep height and width (the paper does not say; LAQ's 3×3 convolutions do).
    """

    def __init__(self, inputs: int, outputs: int, *, pool: bool, rngs: nnx.Rngs):
        self.conv = nnx.Conv(
            inputs, outputs, (3, 3), padding="SAME", use_bias=False, kernel_init=INITIALIZER, rngs=rngs
        )
        self.pool = pool
        self.norm = _batch_norm(outputs, rngs)

    def __call__(self, images: jax.Array, *, training: bool) -> jax.Array:
        """Features of shape (batch, height, width, outputs), height and width halved by the pooling."""
        features = self.conv(images)
        if self.pool and training:
            features = max_pool(features)
        elif self.pool:  # without a gradient this form is the faster one, and the one that runtimes know
            features = nnx.max_pool(features, (2, 2), (2, 2))
        return nnx.relu(self.norm(features, use_running_average=not training))


class DenseBlock(nnx.Module):
    """FC: dense layer and batch normalisation, without the activation."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        self.dense = nnx.Linear(inputs, outputs, use_bias=False, kernel_init=INITIALIZER, rngs=rngs)
        self.norm = _batch_norm(outputs, rngs)

    def __call__(self, features: jax.Array, *, training: bool) -> jax.Array:
        """Normalised features of shape (batch, outputs)."""
        return self.norm(self.dense(features), use_running_average=not training)


class PlainMLP(nnx.Module):
    """Dense layers with biases and ReLU between them, and no normalisation: scales of weights reach the loss.

    Args:
        features: Inputs, units of the hidden layers, and classes.
        rngs: Random numbers for the initial weights.
    """

    def __init__(self, features: Sequence[int], *, rngs: nnx.Rngs):
        self.layers: nnx.List[nnx.Linear] = nnx.List(
            nnx.Linear(inputs, outputs, kernel_init=INITIALIZER, rngs=rngs)
            for inputs, outputs in itertools.pairwise(features)
        )

    def __call__(self, images: jax.Array, *, training: bool) -> jax.Array:
        """Scores of shape (batch, classes); training and evaluation are the same."""
        del training
        features = images.reshape(images.shape[0], -1)
        *hidden, output = self.layers
        for layer in hidden:
            features = nnx.relu(layer(features))
        return output(features)


class FeedForward(nnx.Module):
    """Convolution blocks, then hidden dense blocks with ReLU, then an output block: one score per class.

    Args:
        image_shape: Height, width and channels of the images.
        stages: Output channels of the convolution blocks, in stages whose last block pools.
        hidden: Units of each hidden dense block.
        classes: Number of scores.
        rngs: Random numbers for the initial weights.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        stages: Sequence[Sequence[int]],
        hidden: Sequence[int],
        classes: int,
        *,
        rngs: nnx.Rngs,
    ):
        height, width, channels = image_shape
        self.convolutions: nnx.List[ConvBlock] = nnx.List()
        for stage in stages:
            for number, outputs in enumerate(stage, start=1):
                self.convolutions.append(ConvBlock(channels, outputs, pool=number == len(stage), rngs=rngs))
                channels = outputs
            height, width = height // 2, width // 2
        features = height * width * channels
        self.hidden: nnx.List[DenseBlock] = nnx.List()
        for outputs in hidden:
            self.hidden.append(DenseBlock(features, outputs, rngs=rngs))
            features = outputs
        self.output = DenseBlock(features, classes, rngs=rngs)
        self.roundings: nnx.List[FakeQuantize] = nnx.List()

    def round_activations(self) -> None:
        """From now on images, the features behind each block, and scores are rounded to 8 bits."""
        blocks = len(self.convolutions) + len(self.hidden) + 1
        self.roundings = nnx.List(FakeQuantize() for _ in range(1 + blocks))

    def __call__(self, images: jax.Array, *, training: bool) -> jax.Array:
        """Scores of shape (batch, classes) for images of shape (batch, height, width, channels)."""
        roundings = iter(self.roundings)

        def rounded(features: jax.Array) -> jax.Array:
            rounding = next(roundings, None)
            return features if rounding is None else rounding(features, use_running_average=not training)

        features = rounded(images)
        for convolution in self.convolutions:
            features = rounded(convolution(features, training=training))
        features = features.reshape(features.shape[0], -1)
        for dense in self.hidden:
            features = rounded(nnx.relu(dense(features, training=training)))
        return rounded(self.output(features, training=training))


def _scaled(units: Sequence[int], width: float) -> list[int]:
    return [max(1, round(width * count)) for count in units]


def digits_cnn(rngs: nnx.Rngs, width: float = 1.0) -> FeedForward:
    """16C3-MP2-32C3-MP2-64FC-10 for 8×8 digits."""
    channels = _scaled((16, 32), width)
    return FeedForward((8, 8, 1), [channels[:1], channels[1:]], _scaled((64,), width), 10, rngs=rngs)


def digits_mlp(rngs: nnx.Rngs, width: float = 1.0) -> FeedForward:
    """64-64-64-10 for 8×8 digits."""
    return FeedForward((8, 8, 1), [], _scaled((64, 64), width), 10, rngs=rngs)


def lenet5(rngs: nnx.Rngs, width: float = 1.0) -> FeedForward:
    """The paper's LeNet5 for MNIST: 20C3-MP2-50C3-MP2-500FC-10."""
    channels = _scaled((20, 50), width)
    return FeedForward((28, 28, 1), [channels[:1], channels[1:]], _scaled((500,), width), 10, rngs=rngs)


def mlp(rngs: nnx.Rngs, width: float = 1.0) -> FeedForward:
    """The paper's 4-layer MLP for MNIST: 784-2048-2048-2048-10."""
    return FeedForward((28, 28, 1), [], _scaled((2048, 2048, 2048), width), 10, rngs=rngs)


def small_mlp(rngs: nnx.Rngs, width: float = 1.0) -> FeedForward:
    """784-256-256-10, for studies with many runs."""
    return FeedForward((28, 28, 1), [], _scaled((256, 256), width), 10, rngs=rngs)


def plain_mlp(rngs: nnx.Rngs, width: float = 1.0) -> PlainMLP:
    """784-256-256-10 without normalisation."""
    return PlainMLP((784, *_scaled((256, 256), width), 10), rngs=rngs)


def vgg(rngs: nnx.Rngs, width: float = 1.0) -> FeedForward:
    """The paper's VGG for CIFAR-10: 2×128C3-MP2-2×256C3-MP2-2×512C3-MP2-2×1024FC-10."""
    stages = [_scaled((units, units), width) for units in (128, 256, 512)]
    return FeedForward((32, 32, 3), stages, _scaled((1024, 1024), width), 10, rngs=rngs)


def svhn_net(rngs: nnx.Rngs, width: float = 1.0) -> FeedForward:
    """The paper's SVHNNet: 2×64C3-MP2-2×128C3-MP2-2×256C3-MP2-2×1024FC-10."""
    stages = [_scaled((units, units), width) for units in (64, 128, 256)]
    return FeedForward((32, 32, 3), stages, _scaled((1024, 1024), width), 10, rngs=rngs)
