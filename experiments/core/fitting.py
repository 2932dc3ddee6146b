"""A training that is nothing but steps: it can be ended at any moment, and goes on from its last checkpoint."""

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import jax
import numpy as np

from experiments.core.checkpoints import Checkpoints, Position
from experiments.core.step import take_step
from experiments.methods.method import Method

# From params, state of the optimizer and what a minibatch holds to params, state and loss; the first two are donated.
Step: TypeAlias = Callable[..., tuple[Any, Any, jax.Array]]
CHECKPOINT_SECONDS = 60.0


def compiled_step(method: Method, loss_fn: Callable[..., jax.Array]) -> Step:
    """A step of a method whose weights are those of the network; `loss_fn` takes weights and a minibatch."""

    def step(params: Any, state: Any, *batch: Any) -> tuple[Any, Any, jax.Array]:
        def evaluate(weights: Any) -> tuple[tuple[jax.Array, None], Any]:
            loss, grads = jax.value_and_grad(loss_fn)(weights, *batch)
            return (loss, None), grads

        (loss, _), params, state = take_step(method, params, state, evaluate)
        return params, state, loss

    return jax.jit(step, donate_argnums=(0, 1))


@dataclass(frozen=True)
class Fitted:
    """What a training leaves.

    Attributes:
        params: Full-precision params after the last step.
        state: State of the optimizer.
        losses: Minibatch loss of every step.
        seconds: Time of the steps, without the first one of this process, which compiles.
    """

    params: Any
    state: Any
    losses: np.ndarray
    seconds: float


def fit(step: Step, params: Any, state: Any, batches: Iterator[tuple[Any, ...]], steps: int, folder: Path) -> Fitted:
    """Takes steps, from the last checkpoint on where there is one.

    Args:
        step: As `compiled_step` or `fobt.Training.step` with jit and donation make it.
        params: Params at the start; they stay as they are.
        state: State of the optimizer at the start.
        batches: Minibatches, each a tuple, the same ones whenever this training is called.
        steps: How many steps it takes.
        folder: Where checkpoints are.
    """
    params, state = jax.tree.map(lambda leaf: jax.numpy.array(leaf), (params, state))  # what a step donates
    losses = np.zeros(steps, np.float32)
    with Checkpoints(folder, CHECKPOINT_SECONDS) as checkpoints:
        position, arrays = checkpoints.restore((params, state, losses)) or (Position(), (params, state, losses))
        params, state, losses = arrays
        losses, seconds = np.array(losses), position.seconds
        for number, batch in enumerate(itertools.islice(batches, position.number, steps), position.number + 1):
            start = time.perf_counter()
            params, state, loss = step(params, state, *batch)
            losses[number - 1] = loss  # waits for the step
            if number > position.number + 1:
                seconds += time.perf_counter() - start
            if checkpoints.is_due() or number == steps:
                checkpoints.save(number, Position(number=number, seconds=seconds), (params, state, losses))
    return Fitted(params, state, losses, seconds)
