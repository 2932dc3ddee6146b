"""What a job leaves behind: a folder with the settings of the table, and in it a folder for each row and seed."""

import dataclasses
import errno
import json
from datetime import datetime
from pathlib import Path
from typing import Any

from experiments.core.config import TrainConfig
from experiments.core.records import environment, jsonable, read_json, read_lines, write_json, write_text
from experiments.methods.rows import Row


class JobFolder:
    """The folder of a job: new, empty, or of an earlier call with the same settings.

    Args:
        config: The job.
        data_name: The data set as it is on this machine.

    Attributes:
        path: Where it is.

    Raises:
        OSError: The folder cannot be written, or has something else in it.
        ValueError: It holds runs with other settings; the message is one line.
    """

    def __init__(self, config: TrainConfig, data_name: str):
        self.path = _create(config)
        self._config = config
        description = self.path / "job.json"
        settings = jsonable({**config.shared(), "data_name": data_name})
        if description.exists():
            before = read_json(description)
            different = [key for key, value in settings.items() if before.get(key) != value]
            if different:
                key = different[0]
                raise ValueError(
                    f"{self.path} holds runs with {key} = {before.get(key)}, not {settings[key]}: choose another "
                    "--output"
                )
        elif any(self.path.iterdir()):
            raise FileExistsError(errno.EEXIST, "it is not empty, and not of an earlier call", str(self.path))
        else:
            write_json(description, settings)

    def run(self, row: Row, seed: int) -> "RunFolder":
        """The folder of a run; configuration and environment are written when it is new."""
        return RunFolder(self.path / row.name / f"seed-{seed}", self._config, row, seed)


class RunFolder:
    """The folder of one row and seed.

    Args:
        path: Where it is, or will be.
        config: The job.
        row: Which method.
        seed: Of initial weights and batch order.

    Attributes:
        path: Where it is.
        identity: Row and seed, as every line of results has them.
    """

    def __init__(self, path: Path, config: TrainConfig, row: Row, seed: int):
        self.path = path
        self.identity = {"row": row.name, "label": row.label, "seed": seed}
        path.mkdir(parents=True, exist_ok=True)
        self._metrics = path / "metrics.jsonl"
        self._writer = _tensorboard(path / "tensorboard") if config.tensorboard else None
        if not (path / "config.json").exists():
            settings = {**config.shared(), "seed": seed, "row": dataclasses.asdict(row)}
            write_json(path / "config.json", {"config": settings, "environment": environment()})

    def keep_metrics_before(self, epoch: int) -> None:
        """Drops the lines of this epoch and later ones, which a run that goes on will write again."""
        lines = [line for line in read_lines(self._metrics) if line["epoch"] < epoch]
        write_text(self._metrics, "".join(json.dumps(line) + "\n" for line in lines))

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Adds one line to metrics.jsonl, and its numbers to TensorBoard where that is asked for."""
        with self._metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(jsonable(record)) + "\n")
        if self._writer is not None:
            for key, value in record.items():
                if isinstance(value, float):
                    self._writer.add_scalar(key, value, record["gradient_evaluations"])
            self._writer.flush()

    def read_result(self) -> dict[str, Any] | None:
        """The result of a finished run."""
        path = self.path / "result.json"
        return read_json(path) if path.exists() else None

    def write_result(self, result: dict[str, Any]) -> None:
        """Writes result.json, which says that the run is finished."""
        write_json(self.path / "result.json", result)


def _create(config: TrainConfig) -> Path:
    if config.output is not None:
        config.output.mkdir(parents=True, exist_ok=True)
        return config.output
    stem = f"{config.job}-{datetime.now():%Y%m%d-%H%M%S}"
    number = 1
    while True:
        path = Path("runs", stem if number == 1 else f"{stem}-{number}")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return path


def _tensorboard(path: Path) -> Any:
    from tensorboardX import SummaryWriter  # slow to import

    return SummaryWriter(str(path))
