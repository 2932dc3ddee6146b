"""The folder that a job leaves behind: configuration, one JSON line per epoch, results, table and plot."""

import dataclasses
import errno
import json
import math
import platform
import subprocess
import sys
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax

from experiments.config import TrainConfig

PACKAGES = ("fobt", "jax", "jaxlib", "flax", "optax", "numpy", "scikit-learn", "tensorflow-datasets")


class RunFolder:
    """A folder that was empty before.

    Args:
        config: The job; its configuration and the environment are written at once.

    Attributes:
        path: Where it is.

    Raises:
        OSError: The folder cannot be written, or has something in it.
    """

    def __init__(self, config: TrainConfig):
        self.path = _create(config)
        self._write("config.json", {"config": dataclasses.asdict(config), "environment": environment()})

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Adds one line to metrics.jsonl."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(_jsonable(record)) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        return [json.loads(line) for line in (self.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]

    def write_summary(self, rows: list[dict[str, Any]], runs: list[dict[str, Any]], table: str) -> None:
        """Writes summary.json and summary.md, replacing those of fewer runs."""
        self._write("summary.json", {"table": rows, "runs": runs})
        (self.path / "summary.md").write_text(table, encoding="utf-8")

    def _write(self, name: str, content: dict[str, Any]) -> None:
        (self.path / name).write_text(json.dumps(_jsonable(content), indent=2) + "\n", encoding="utf-8")


def environment() -> dict[str, Any]:
    """Versions, machine and commit that a result came from; the commit is None outside of a git checkout."""
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {
        "command": ["python", "-m", f"experiments.{Path(sys.argv[0]).stem}", *sys.argv[1:]],
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": jax.devices()[0].device_kind,
        "versions": versions,
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": _git("status", "--porcelain") is not None,
    }


def _create(config: TrainConfig) -> Path:
    if config.output is not None:
        config.output.mkdir(parents=True, exist_ok=True)
        if any(config.output.iterdir()):
            raise FileExistsError(errno.EEXIST, "it is not empty", str(config.output))
        (config.output / "metrics.jsonl").touch()
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
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() or None
    except (OSError, subprocess.CalledProcessError):
        return None


def _jsonable(value: Any) -> Any:
    """The value with paths as strings and None for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
