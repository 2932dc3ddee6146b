"""ResNet-18 for ImageNet, in Flax NNX (He et al., Deep Residual Learning for Image Recognition, CVPR 2016)."""

import jax
import jax.numpy as jnp
from flax import nnx

STAGES = (64, 128, 256, 512)
BLOCKS_PER_STAGE = 2
HE_NORMAL = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


class ConvNorm(nnx.Module):
    """Convolution without bias that divides height and width by its stride, then batch normalisation."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, *, rngs: nnx.Rngs):
        self.conv = nnx.Conv(
            inputs,
            outputs,
            (kernel, kernel),
            strides=stride,
            padding=kernel // 2,
            use_bias=False,
            kernel_init=HE_NORMAL,
            rngs=rngs,
        )
        self.norm = nnx.BatchNorm(outputs, momentum=0.9, epsilon=1e-5, rngs=rngs)

    def __call__(self, images: jax.Array, *, training: bool) -> jax.Array:
        """Normalised features."""
        return self.norm(self.conv(images), use_running_average=not training)


class BasicBlock(nnx.Module):
    """Two 3×3 convolutions, and a shortcut: the identity, or a 1×1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, *, rngs: nnx.Rngs):
        self.first = ConvNorm(inputs, outputs, 3, stride, rngs=rngs)
        self.second = ConvNorm(outputs, outputs, 3, 1, rngs=rngs)
        changes = stride != 1 or inputs != outputs
        self.shortcut = ConvNorm(inputs, outputs, 1, stride, rngs=rngs) if changes else None

    def __call__(self, features: jax.Array, *, training: bool) -> jax.Array:
        """Features of the block."""
        residual = self.second(nnx.relu(self.first(features, training=training)), training=training)
        shortcut = features if self.shortcut is None else self.shortcut(features, training=training)
        return nnx.relu(residual + shortcut)


class ResNet18(nnx.Module):
    """7×7 convolution with stride 2, 3×3 max-pooling with stride 2, four stages of two blocks, mean, dense layer.

    Args:
        rngs: Random numbers for the initial weights.
        width: Channels as a multiple of 64, 128, 256, 512.
        classes: Number of logits.
    """

    def __init__(self, rngs: nnx.Rngs, width: float = 1.0, classes: int = 1000):
        channels = [max(1, round(width * units)) for units in STAGES]
        self.stem = ConvNorm(3, channels[0], 7, 2, rngs=rngs)
        self.blocks: nnx.List[BasicBlock] = nnx.List()
        inputs = channels[0]
        for stage, outputs in enumerate(channels):
            for number in range(BLOCKS_PER_STAGE):
                stride = 2 if stage > 0 and number == 0 else 1
                self.blocks.append(BasicBlock(inputs, outputs, stride, rngs=rngs))
                inputs = outputs
        self.output = nnx.Linear(inputs, classes, rngs=rngs)

    def __call__(self, images: jax.Array, *, training: bool) -> jax.Array:
        """Logits of shape (batch, classes) for images of shape (batch, height, width, 3)."""
        features = nnx.relu(self.stem(images, training=training))
        features = nnx.max_pool(features, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for block in self.blocks:
            features = block(features, training=training)
        return self.output(jnp.mean(features, axis=(1, 2)))
