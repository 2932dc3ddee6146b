"""Files of results: JSON, lines of JSON, and the environment that a result came from."""

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

ROOT = Path(__file__).parents[2]
PACKAGES = ("fobt", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tensorflow-datasets")


def environment() -> dict[str, Any]:
    """Versions, machine and commit that a result came from; the commit is None outside of a git checkout."""
    program = Path(sys.argv[0]).stem
    module = "experiments" if program == "__main__" else f"experiments.{program}"
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {
        "command": ["python", "-m", module, *sys.argv[1:]],
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
    write_text(path, json.dumps(jsonable(content), indent=2) + "\n")


def write_results(folder: Path, name: str, text: str, content: dict[str, Any]) -> None:
    """Writes what a command found: NAME.md, and NAME.json with the environment in front of the content."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / f"{name}.md", text)
    write_json(folder / f"{name}.json", {"environment": environment(), **content})


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


def write_text(path: Path, text: str) -> None:
    """Writes a file, as a whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(ROOT), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() or None
    except (OSError, subprocess.CalledProcessError):
        return None
