"""Formulations of LeNet5's convolutions, timed on this machine: `python -m experiments convolutions [--output FOLDER]`.

Each is timed forward, as in evaluation, and with the gradients for weights and inputs, as in training, in units of the
convolution that the networks use.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments.core.cli import make_console, parse_options
from experiments.core.config import require
from experiments.core.records import write_results
from experiments.costs.timing import Program, median_seconds
from experiments.reporting.tables import Columns, markdown

# Height and width, input channels, output channels.
LAYERS = {"first, 28×28×1 to 20": (28, 1, 20), "second, 14×14×20 to 50": (14, 20, 50)}
COLUMNS: Columns = {
    "layer": ("layer of LeNet5", str),
    "formulation": ("formulation", str),
    "forward": ("forward", "{:.2f}".format),
    "gradients": ("with gradients", "{:.2f}".format),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvolutionsConfig:
    """Time formulations of 3×3 convolutions."""

    batch_size: int = 128
    """Images."""
    rounds: int = 25
    """How often each program runs; the ratios are of medians."""
    output: Path | None = None
    """Folder for convolutions.json and convolutions.md."""

    def __post_init__(self) -> None:
        for option, value in [("batch-size", self.batch_size), ("rounds", self.rounds)]:
            require(value >= 1, option, "at least 1", value)


def convolution(images: jax.Array, kernel: jax.Array) -> jax.Array:
    """The convolution of the networks: images (n, height, width, channels), zero padding that keeps the size."""
    return jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def channels_first(images: jax.Array, kernel: jax.Array) -> jax.Array:
    """The same with channels in front of height and width inside."""
    moved = jax.lax.conv_general_dilated(
        images.transpose(0, 3, 1, 2), kernel, (1, 1), "SAME", dimension_numbers=("NCHW", "HWIO", "NCHW")
    )
    return moved.transpose(0, 2, 3, 1)


def patches(images: jax.Array, kernel: jax.Array) -> jax.Array:
    """The same as a product of all 3×3 patches, shape (n·height·width, 9·channels), with the kernel as a matrix."""
    n, height, width, channels = images.shape
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifted = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    columns = jnp.concatenate(shifted, axis=-1).reshape(n * height * width, 9 * channels)
    return (columns @ kernel.reshape(9 * channels, -1)).reshape(n, height, width, -1)


def shifts(images: jax.Array, kernel: jax.Array) -> jax.Array:
    """The same as a sum of nine products, one for each place of the kernel."""
    height, width = images.shape[1:3]
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    products = [padded[:, i : i + height, j : j + width] @ kernel[i, j] for i in range(3) for j in range(3)]
    return sum(products[1:], start=products[0])


FORMULATIONS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "convolution": convolution,
    "channels first": channels_first,
    "patches": patches,
    "nine products": shifts,
}


def main(arguments: Sequence[str]) -> None:
    """Measures, prints, and writes."""
    config = parse_options(ConvolutionsConfig, arguments, "convolutions")
    records: list[dict[str, Any]] = []
    for layer, (side, inputs, outputs) in LAYERS.items():
        keys = jax.random.split(jax.random.key(0), 3)
        images = jax.random.normal(keys[0], (config.batch_size, side, side, inputs))
        kernel = jax.random.normal(keys[1], (3, 3, inputs, outputs))
        weights = jax.random.normal(keys[2], (config.batch_size, side, side, outputs))

        def gradients(images: jax.Array, kernel: jax.Array, weights: jax.Array, convolve: Any) -> Any:
            return jax.grad(lambda x, k: jnp.sum(weights * convolve(x, k)), argnums=(0, 1))(images, kernel)

        forward = {name: Program(convolve, images, kernel) for name, convolve in FORMULATIONS.items()}
        backward = {
            name: Program(lambda x, k, w, f=convolve: gradients(x, k, w, f), images, kernel, weights)
            for name, convolve in FORMULATIONS.items()
        }
        times = median_seconds(forward, config.rounds), median_seconds(backward, config.rounds)
        for name in FORMULATIONS:
            ratios = [seconds[name] / seconds["convolution"] for seconds in times]
            records.append({"layer": layer, "formulation": name, "forward": ratios[0], "gradients": ratios[1]})
    table = markdown(COLUMNS, records)
    make_console().out(table, highlight=False)
    if config.output is not None:
        write_results(config.output, "convolutions", table, {"rounds": config.rounds, "records": records})
