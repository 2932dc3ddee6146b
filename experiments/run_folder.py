"""What a job leaves behind: a folder with the settings of the table, and in it a folder for each row and seed."""

import dataclasses
import errno
import json
import math
import os
import platform
import subprocess
import sys
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
from tensorboardX import SummaryWriter

from experiments.config import TrainConfig
from experiments.rows import Row

PACKAGES = ("fobt", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tensorflow-datasets")


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
        self._writer = SummaryWriter(str(path / "tensorboard")) if config.tensorboard else None
        if not (path / "config.json").exists():
            settings = {**config.shared(), "seed": seed, "row": dataclasses.asdict(row)}
            write_json(path / "config.json", {"config": settings, "environment": environment()})

    def keep_metrics_before(self, epoch: int) -> None:
        """Drops the lines of this epoch and later ones, which a run that goes on will write again."""
        lines = [line for line in read_lines(self._metrics) if line["epoch"] < epoch]
        _write(self._metrics, "".join(json.dumps(line) + "\n" for line in lines))

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


def environment() -> dict[str, Any]:
    """Versions, machine and commit that a result came from; the commit is None outside of a git checkout."""
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {
        "command": ["python", "-m", f"experiments.{_module(Path(sys.argv[0]))}", *sys.argv[1:]],
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": jax.devices()[0].device_kind,
        "versions": versions,
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": _git("status", "--porcelain", "--", "fobt", "experiments/*.py") is not None,
    }


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON file, as a whole or not at all."""
    _write(path, json.dumps(jsonable(content), indent=2) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file with one JSON object a line, up to one that was cut off."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def jsonable(value: Any) -> Any:
    """The value with paths as strings and None for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def _module(program: Path) -> str:
    return program.parent.name if program.stem == "__main__" else program.stem


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


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


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(Path(__file__).parent.parent), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() or None
    except (OSError, subprocess.CalledProcessError):
        return None
