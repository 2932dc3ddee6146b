"""Softmax regression of handwritten digits with quantized weights, full batches: where does looking ahead help?

The loss is the mean cross-entropy of scikit-learn's digits, 64 × 10 weights without bias, plus ½·0.01·(sum of their
squares), so it is strongly convex. A seed chooses the images and the start. L is a bound of the curvature: half of the
largest eigenvalue of the images' second moments, plus 0.01.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import fobt
from experiments.core.losses import cross_entropy
from experiments.data.arrays import Arrays
from experiments.data.digits import digits
from experiments.studies.zigzag import comparison

CLASSES = 10
QUANTIZERS = {"binary": fobt.binary(), "3 bits": fobt.linear(3, solver="alternating")}
START_SCALE = 0.1
DECAY = 0.01
LEARNING_RATES = {
    "gradient steps": (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0),
    "Adam, b1 = 0": (0.001, 0.003, 0.01, 0.03, 0.1, 0.3),
    "Adam, b1 = 0.9": (0.001, 0.003, 0.01, 0.03, 0.1, 0.3),
}


def problems(draws: int, images: int) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """Images, labels and starts of seeds 0 to draws - 1."""
    train = digits().train
    assert isinstance(train, Arrays)
    pixels, labels = np.asarray(train.images).reshape(len(train), -1), np.asarray(train.labels)
    rngs = [np.random.default_rng(seed) for seed in range(draws)]
    chosen = np.stack([rng.choice(len(pixels), images, replace=False) for rng in rngs])
    starts = np.stack([START_SCALE * rng.normal(size=(pixels.shape[1], CLASSES)) for rng in rngs])
    return (pixels[chosen], labels[chosen]), starts.astype(np.float32)


def loss(weights: jax.Array, data: tuple[jax.Array, jax.Array]) -> jax.Array:
    """The loss at weights of shape (pixels, CLASSES), for images and labels."""
    images, labels = data
    return cross_entropy(images @ weights, labels) + DECAY / 2 * jnp.sum(weights**2)


def largest_curvature(images: np.ndarray) -> float:
    """L, the mean over seeds; images have shape (seed, image, pixel)."""
    second_moments = np.einsum("sni,snj->sij", images, images) / images.shape[1]
    return float(np.mean(np.linalg.eigvalsh(second_moments)[:, -1]) / 2) + DECAY


def write(folder: Path, *, draws: int = 24, steps: int = 60, images: int = 120) -> None:
    """Writes digits.png, digits.md and digits.json.

    Args:
        folder: Where.
        draws: Random subsets and starts.
        steps: T; loss-aware quantization also runs twice as long.
        images: How many images a seed has.
    """
    data, starts = problems(draws, images)
    largest = largest_curvature(data[0])
    settings = [
        comparison.measure(
            loss,
            data,
            jnp.asarray(starts),
            np.ones(draws),
            problem="digits",
            quantizer=(name, quantizer),
            optimizer=optimizer,
            learning_rates=LEARNING_RATES[optimizer],
            largest_curvature=largest,
            steps=steps,
        )
        for optimizer in comparison.OPTIMIZERS
        for name, quantizer in QUANTIZERS.items()
    ]
    comparison.write(folder, "digits", settings, {"images each": images, "draws": draws, "steps": steps})
