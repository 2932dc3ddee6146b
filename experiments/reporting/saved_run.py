"""A finished run, read back from its folder: settings, result, and the arrays of its last checkpoint."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments.configs import JOBS
from experiments.core.checkpoints import RunArrays, read_last
from experiments.core.config import SHARED, TrainConfig
from experiments.core.network import make_network, split_model
from experiments.core.programs import initial_state
from experiments.core.records import read_json
from experiments.methods.rows import Row
from experiments.models import Network


@dataclass(frozen=True)
class SavedRun:
    """A finished run.

    Attributes:
        config: The job.
        row: The method.
        model: A model of the architecture.
        arrays: What it ended with.
        result: What it wrote at its end.
    """

    config: TrainConfig
    row: Row
    model: Network
    arrays: RunArrays
    result: dict[str, Any]


def read_run(folder: Path) -> SavedRun:
    """Reads the folder of a finished run of `experiments.train`.

    Raises:
        ValueError: It is no such folder, or has no checkpoint; the message is one line.
    """
    for name in ("config.json", "result.json"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} is no folder of a finished run: it has no {name}")
    settings, result = read_json(folder / "config.json")["config"], read_json(folder / "result.json")
    if missing := [key for key in SHARED if key not in settings]:
        raise ValueError(f"{folder} was made by an older version: its config.json lacks {', '.join(missing)}")
    row = Row(**settings["row"])
    shared = {key: settings[key] for key in SHARED} | {"weight_bounds": tuple(settings["weight_bounds"])}
    config = dataclasses.replace(JOBS[settings["job"]], **shared)
    model = make_network(config, 0)
    _, params, batch_stats = split_model(model)
    # The number of steps does not change the structure of the state.
    method = row.build(config.hyperparameters(row, steps_per_epoch=1))
    state = jax.eval_shape(lambda: initial_state(method, params, batch_stats, jnp.uint32(0)))
    arrays = read_last(folder / "checkpoints", RunArrays(state, jnp.zeros(2), params, batch_stats))
    return SavedRun(config, row, model, arrays, result)
