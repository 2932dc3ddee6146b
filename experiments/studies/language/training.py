"""One training of the decoder: its loss, its schedule, what it leaves in its folder."""

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fobt
from experiments.core.fitting import Step, compiled_step, fit
from experiments.core.records import environment, read_json, write_json
from experiments.data.text import Text, even_windows, random_windows
from experiments.methods.method import Hyperparameters, Method
from experiments.methods.rows import Row
from experiments.models import decoder

B1, B2 = 0.9, 0.95
WARMUP = 0.05  # share of the steps
EVALUATION_BATCH = 64
WEIGHTS = "weights.safetensors"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """What all rows have in common.

    Attributes:
        width: Units of a token.
        depth: Layers.
        context: Bytes of a window.
        batch_size: Windows of a step.
        steps: Steps of rows with one gradient in each.
        evaluation_windows: Windows of held-out text.
    """

    width: int
    depth: int
    context: int
    batch_size: int
    steps: int
    evaluation_windows: int


def loss_fn(weights: Any, windows: jax.Array) -> jax.Array:
    """Mean cross-entropy, in nats, of every byte of the windows but the first, given those before it in its window."""
    logits = decoder.logits(weights, windows[:, :-1])
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, 1:]))


_loss = jax.jit(loss_fn)


def bits_per_byte(weights: Any, windows: np.ndarray) -> float:
    """The loss over windows in bits."""
    parts = [windows[i : i + EVALUATION_BATCH] for i in range(0, len(windows), EVALUATION_BATCH)]
    return sum(float(_loss(weights, part)) * len(part) for part in parts) / len(windows) / math.log(2)


def schedule(learning_rate: float, steps: int) -> optax.Schedule:
    """Up along a line in a twentieth of the steps, and down to 0 along half a cosine."""
    return optax.warmup_cosine_decay_schedule(0.0, learning_rate, max(1, round(WARMUP * steps)), steps)


def of_layers(quantizer: fobt.Quantizer) -> Any:
    """The linear maps of the decoder, each layer with scales of its own; embedding and norms in full precision."""
    return fobt.linear_maps(quantizer, stacked="layers/.*")


class Trainer:
    """The trainings of one row, which share a compiled step.

    Args:
        row: Which method.
        learning_rate: Its highest learning rate.
        size: Network and length of the training.
        text: The data.

    Attributes:
        steps: Steps of a training: as many gradients as those of other rows.
    """

    def __init__(self, row: Row, learning_rate: float, size: Size, text: Text):
        self._row, self._size, self._text = row, size, text
        self.steps = size.steps // row.gradient_evaluations(1, 1)
        # No bounds of the weights: they have the variance 1/inputs at the start, and Adam moves all by about as much.
        rate = schedule(learning_rate, self.steps)
        hyper = Hyperparameters(rate, B1, B2, weight_bounds=None, steps=self.steps)
        self._method: Method = row.build(hyper, of_layers)
        self._step: Callable[[], Step] = functools.cache(lambda: compiled_step(self._method, loss_fn))

    def run(self, seed: int, folder: Path) -> dict[str, Any]:
        """The result of a training; a finished one is read from its folder, an unfinished one goes on."""
        if (folder / "result.json").exists():
            return read_json(folder / "result.json")
        size, text = self._size, self._text
        params = decoder.init_decoder(seed, width=size.width, depth=size.depth)
        batches = ((windows,) for windows in random_windows(text.train, size.context + 1, size.batch_size, seed))
        state = self._method.optimizer.init(params)
        fitted = fit(self._step(), params, state, batches, self.steps, folder / "checkpoints")
        state = fitted.state if self._method.weighted else None
        quantized = jax.jit(fobt.quantize, static_argnums=2)(fitted.params, state, self._method.quantizer)
        fobt.packed.save_packed(folder / WEIGHTS, quantized, metadata={"row": self._row.name})
        weights = fobt.dequantize(quantized)
        bits = {
            f"{part}_bits": bits_per_byte(
                weights, even_windows(getattr(text, part), size.context + 1, size.evaluation_windows)
            )
            for part in ("validation", "test")
        }
        last = fitted.losses[-max(1, self.steps // 10) :]
        result = {
            "seed": seed,
            **bits,
            "train_bits": float(np.mean(last)) / math.log(2),
            "gradients": self.steps * self._row.gradient_evaluations(1, 1),
            "bytes": (folder / WEIGHTS).stat().st_size,
            "seconds": fitted.seconds,
            "losses": [round(float(loss), 5) for loss in fitted.losses],
        }
        write_json(folder / "result.json", result | {"environment": environment()})
        return result


def read_weights(folder: Path) -> Any:
    """The weights of a finished training, codes and scales where they are quantized."""
    return fobt.packed.load_packed(folder / WEIGHTS).quantized()
