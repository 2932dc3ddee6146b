"""How trainings with different numbers of processes compare: their last weights, codes and losses."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from experiments.core.checkpoints import read_last
from experiments.core.programs import TrainState
from experiments.data import Dataset
from experiments.distributed.placement import make_mesh
from experiments.distributed.programs import ShardedPrograms
from experiments.distributed.training import Training
from experiments.reporting.tables import Columns

COLUMNS: Columns = {
    "label": ("method", str),
    "processes": ("processes", str),
    "placement": ("params", str),
    "state_bytes_of_a_process": ("state of a process, bytes", "{:,}".format),
    "killed_after": ("killed after step", str),
    "resumed_after": ("went on after step", lambda value: str(value or "")),
    "equal_to_uninterrupted": ("equal to uninterrupted", lambda value: "to the bit" if value else "no"),
    "train_loss": ("train loss", "{:.5f}".format),
    "test_accuracy": ("test accuracy %", lambda value: f"{100 * value:.2f}"),
    "same_codes": ("same codes as one process, %", lambda value: f"{100 * value:.3f}"),
    "largest_difference": ("largest difference of a param", "{:.1e}".format),
}


@dataclass(frozen=True)
class End:
    """What a training ended with.

    Attributes:
        state: The state after the last step, from the last checkpoint.
        codes: The codes of the weights that would be shipped.
    """

    state: TrainState
    codes: list[np.ndarray]


def compare(trainings: Sequence[Training], dataset: Dataset) -> list[dict[str, Any]]:
    """A record for each of some finished trainings.

    Every training is compared with that of the same method in one process, the first with this row, and one that was
    killed also with the one that was not.
    """
    mesh = make_mesh(jax.devices()[:1])
    config, rows = trainings[0].config, {training.row for training in trainings}
    programs = {row: ShardedPrograms(config, row, dataset, mesh, sharded=False) for row in rows}
    ends = [read_end(training, programs[training.row]) for training in trainings]
    records = []
    for training, end in zip(trainings, ends, strict=True):
        record = training.folder().read_result()
        assert record is not None
        record["placement"] = training.params + (", rows reversed" if training.reversed_rows else "")
        alone = ends[index_of(trainings, row=training.row, processes=1)]
        if end is not alone:
            record["same_codes"] = share_of_same(end.codes, alone.codes)
            record["largest_difference"] = largest_difference(end.state.params, alone.state.params)
        if training.killed_after is not None:
            settings = {key: getattr(training, key) for key in ("row", "processes", "params")}
            whole = ends[index_of(trainings, killed_after=None, **settings)]
            record["equal_to_uninterrupted"] = largest_difference(end.state, whole.state) == 0
        records.append(record)
    return records


def read_end(training: Training, programs: ShardedPrograms) -> End:
    """What a training ended with, read on one device."""
    state, _ = read_last(training.folder().path / "checkpoints", programs.example)
    return End(jax.device_get(state), jax.device_get(programs.codes(state)))


def index_of(trainings: Sequence[Training], **settings: Any) -> int:
    """The number of the first training with these settings."""
    return next(
        i
        for i, training in enumerate(trainings)
        if all(getattr(training, key) == value for key, value in settings.items())
    )


def share_of_same(codes: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> float:
    """The share of weights with the same code."""
    same = sum(int(np.sum(x == y)) for x, y in zip(codes, others, strict=True))
    return same / sum(x.size for x in codes)


def largest_difference(tree: Any, other: Any) -> float:
    """The largest difference between two numbers in the same place of two trees."""
    leaves = zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
    return max(float(np.max(np.abs(x.astype(float) - y.astype(float)), initial=0)) for x, y in leaves)
