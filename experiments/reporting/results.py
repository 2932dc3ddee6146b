"""Runs, read back from their folders or from the records of their rows: what the reports are made of."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.core.records import read_json, read_lines, write_text
from experiments.methods.rows import Row
from experiments.reporting import paper


@dataclass(frozen=True)
class Run:
    """One row and seed.

    Attributes:
        row: Which method.
        seed: Of initial weights and batch order.
        metrics: A record per epoch, in order.
        result: What came out, or None while the run is not finished.
    """

    row: Row
    seed: int
    metrics: list[dict[str, Any]]
    result: dict[str, Any] | None


@dataclass(frozen=True)
class Job:
    """A job folder.

    Attributes:
        path: Where it is.
        settings: What all its rows have in common.
        runs: Its runs by row, rows in the order of the registry of methods, seeds increasing.
    """

    path: Path
    settings: dict[str, Any]
    runs: dict[Row, list[Run]]

    @property
    def name(self) -> str:
        """The name of the job."""
        return self.settings["job"]

    def paper_accuracy(self, row: Row) -> float | None:
        """The paper's test accuracy of a row in %; None where it has none, or network or data are smaller."""
        smaller = self.settings["width"] != 1 or self.settings["limit"] is not None
        return None if smaller else paper.accuracy(self.name, row)

    def results(self, row: Row, key: str) -> dict[int, float]:
        """A number of the results of the finished runs of a row, by seed."""
        return {run.seed: run.result[key] for run in self.runs.get(row, []) if run.result is not None}

    def last_epoch(self, row: Row, key: str) -> dict[int, float]:
        """A number of the last epoch of the finished runs of a row, by seed."""
        return {run.seed: run.metrics[-1][key] for run in self.runs.get(row, []) if run.result is not None}


def read_job(path: Path) -> Job:
    """Reads a job folder.

    Raises:
        FileNotFoundError: It is no job folder.
    """
    description = path / "job.json"
    if not description.exists():
        raise FileNotFoundError(f"{path} is no folder of `python -m experiments.train`: it has no job.json")
    runs: dict[tuple[Row, int], Run] = {}
    for record in _records(path):
        settings = record["config"]
        run = Run(Row(**settings["row"]), settings["seed"], record["metrics"], record["result"])
        runs[run.row, run.seed] = run
    by_row: dict[Row, list[Run]] = {}
    for run in sorted(runs.values(), key=lambda run: (run.row.sort_key, run.seed)):
        by_row.setdefault(run.row, []).append(run)
    return Job(path, read_json(description), by_row)


def write_rows(path: Path) -> None:
    """Writes a record of each row of a job folder, rows/ROW.jsonl, with a line for each seed.

    A line has all that the folder of the run has, but for checkpoints, so that it can be kept where the folder is not.
    """
    rows: dict[str, dict[int, str]] = {}
    for record in _records(path):
        row, seed = Row(**record["config"]["row"]), record["config"]["seed"]
        rows.setdefault(row.name, {})[seed] = json.dumps(record) + "\n"
    for name, lines in rows.items():
        (path / "rows").mkdir(exist_ok=True)
        write_text(path / "rows" / f"{name}.jsonl", "".join(lines[seed] for seed in sorted(lines)))


def _records(path: Path) -> Iterator[dict[str, Any]]:
    """All runs of a job folder: config, environment, metrics and result. Folders come last, as they are the newer."""
    for record in sorted(path.glob("rows/*.jsonl")):
        yield from read_lines(record)
    for config in sorted(path.glob("*/seed-*/config.json")):
        result = config.parent / "result.json"
        yield {
            **read_json(config),
            "metrics": read_lines(config.parent / "metrics.jsonl"),
            "result": read_json(result) if result.exists() else None,
        }
