"""Checkpoints of one run, with Orbax: a run that is ended at any moment goes on as if it had not been."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import jax
import orbax.checkpoint as ocp

from experiments.core.programs import TrainState

Tree = TypeVar("Tree")


@dataclass(frozen=True)
class Position:
    """Where a run is, in numbers that JSON keeps exactly.

    Attributes:
        epoch: The epoch that goes on, from 1.
        number: Steps taken in this epoch.
        gradient_evaluations: Those of the run so far.
        seconds: Time of training steps so far.
        best_epoch: The epoch with the best validation accuracy so far; 0 before the first one.
        best_accuracy: Its validation accuracy.
        best_loss: Its validation loss.
    """

    epoch: int = 1
    number: int = 0
    gradient_evaluations: int = 0
    seconds: float = 0.0
    best_epoch: int = 0
    best_accuracy: float = -1.0
    best_loss: float = float("inf")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RunArrays:
    """The arrays of a run.

    Attributes:
        state: What a step changes.
        totals: Sums over the steps of this epoch, shape (2,).
        best_weights: Evaluated weights of the best epoch.
        best_batch_stats: Batch statistics of the best epoch.
    """

    state: TrainState
    totals: jax.Array
    best_weights: Any
    best_batch_stats: Any


class Checkpoints:
    """The checkpoints of one run; the last one is kept.

    Args:
        folder: Where they are.
        period: Time between two checkpoints, in seconds.
    """

    def __init__(self, folder: Path, period: float):
        self._manager = ocp.CheckpointManager(
            folder.absolute(),
            options=ocp.CheckpointManagerOptions(max_to_keep=1, create=True, enable_async_checkpointing=False),
        )
        self._period = period
        self._last = time.monotonic()

    def restore(self, like: Tree) -> tuple[Position, Tree] | None:
        """The last checkpoint, or None; `like` is a tree of arrays with its structure, shapes and shardings."""
        step = self._manager.latest_step()
        if step is None:
            return None
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        restored = self._manager.restore(
            step, args=ocp.args.Composite(arrays=ocp.args.StandardRestore(abstract), position=ocp.args.JsonRestore())
        )
        return Position(**restored["position"]), restored["arrays"]

    def is_due(self) -> bool:
        """Whether the time between two checkpoints has passed."""
        return time.monotonic() - self._last >= self._period

    def save(self, step: int, position: Position, arrays: Any) -> None:
        """Writes a checkpoint, a tree of arrays; it replaces the one before only when it is complete.

        Where arrays are sharded over several processes, every one of them calls this and writes its part.
        """
        if self._manager.latest_step() != step:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    arrays=ocp.args.StandardSave(arrays), position=ocp.args.JsonSave(vars(position))
                ),
            )
        self._last = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Waits for what is still being written."""
        self._manager.close()


def read_last(folder: Path, like: Tree) -> Tree:
    """The arrays of the last checkpoint in a folder; `like` as for `Checkpoints.restore`.

    Raises:
        ValueError: There is none; the message is one line.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder.parent} has no checkpoints; they are not kept under version control, so train again")
    with Checkpoints(folder, period=0) as checkpoints:
        restored = checkpoints.restore(like)
    if restored is None:
        raise ValueError(f"{folder} holds no checkpoint")
    return restored[1]
