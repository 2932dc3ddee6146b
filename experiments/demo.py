"""From training to small files: `python -m experiments.demo --output FOLDER`.

Trains the main job in full precision and with 1-bit weights, writes each network to a packed file and to ONNX, runs all
files over the test set, and puts sizes and accuracies side by side.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from experiments import export
from experiments.config import MethodName
from experiments.configs import JOBS
from experiments.rows import expand
from experiments.run_folder import environment, read_json, write_json
from experiments.tables import Columns, markdown
from experiments.train import run_job

METHODS: tuple[MethodName, ...] = ("full_precision", "laq")
RUNTIMES = {"safetensors": "packed file, JAX", "onnx": "ONNX, onnxruntime"}
COLUMNS: Columns = {
    "label": ("digits, seed 0", str),
    "runtime": ("file", str),
    "bytes": ("bytes", "{:,}".format),
    "share": ("of full precision", "{:.2f}".format),
    "accuracy": ("test accuracy %", "{:.2f}".format),
    "same": ("same predictions as JAX", str),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Train, export, and compare the files."""

    epochs: int | None = None
    """Passes over the training images, instead of the job's own."""
    runs: Path
    """Folder of the training; finished runs that it has are not repeated."""
    output: Path
    """Folder for the files and the table; files of the same name are replaced."""


def main(arguments: Sequence[str]) -> None:
    """Writes ROW.safetensors and ROW.onnx for each row, each with its report as JSON, and demo.md."""
    config = tyro.cli(DemoConfig, args=arguments, prog="python -m experiments.demo")
    console = Console(width=None if sys.stdout.isatty() else 120)
    job = dataclasses.replace(JOBS["digits"], methods=METHODS, seeds=(0,), output=config.runs)
    if config.epochs is not None:
        job = dataclasses.replace(job, epochs=config.epochs)
    run_job(job, console)
    config.output.mkdir(parents=True, exist_ok=True)
    records: list[dict[str, Any]] = []
    for file_format, runtime in RUNTIMES.items():
        for row in expand(job):
            path = config.output / f"{row.name}{export.SUFFIXES[file_format]}"
            folder = config.runs / row.name / "seed-0"
            export.main([str(folder), "--format", file_format, "--verify", "--output", str(path)])
            report = read_json(path.with_name(f"{path.name}.json"))
            same = f"{report['same_predictions']} of {report['test_images']}"
            records.append(
                {"label": row.label, "runtime": runtime, "bytes": report["bytes"], "same": same}
                | {"accuracy": 100 * report["accuracy"], "share": report["bytes"] / (records or [report])[0]["bytes"]}
            )
    table = markdown(COLUMNS, records)
    (config.output / "demo.md").write_text(table, encoding="utf-8")
    write_json(config.output / "demo.json", {"environment": environment(), "files": records})
    console.out(table, highlight=False)


if __name__ == "__main__":
    main(sys.argv[1:])
