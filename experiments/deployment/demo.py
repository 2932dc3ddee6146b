"""From training to small files: `python -m experiments demo --runs FOLDER --output FOLDER`.

Trains a job, by default the main one, in full precision and with LAQ on one or more grids, writes each network to files
of several formats, runs all files over the test set, and puts sizes and accuracies side by side.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from experiments.configs import make_job
from experiments.core.cli import make_console, parse_options
from experiments.core.config import TrainConfig
from experiments.core.records import read_json, write_results
from experiments.deployment import export
from experiments.methods.rows import Row
from experiments.reporting.tables import Columns, markdown
from experiments.train import run_job

Grid = Literal["binary", "ternary", "linear3", "linear4"]
OPTIONS: dict[Grid, dict[str, Any]] = {
    "binary": {"quantizer": "binary"},
    "ternary": {"quantizer": "ternary"},
    "linear3": {"quantizer": "linear", "bits": 3},
    "linear4": {"quantizer": "linear", "bits": 4},
}
RUNTIMES = {"safetensors": "packed file, JAX", "onnx": "ONNX, onnxruntime", "litert": "LiteRT, ai-edge-litert"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Train, export, and compare the files."""

    job: Literal["digits", "mnist_lenet5", "mnist_mlp", "mnist_small_mlp"] = "digits"
    """What is trained, with seed 0."""
    grids: tuple[Grid, ...] = ("binary",)
    """Grids of the weights, beside full precision."""
    formats: tuple[Literal["safetensors", "onnx", "litert"], ...] = ("safetensors", "onnx")
    """Formats of the files."""
    forms: tuple[export.Form, ...] = ("portable",)
    """Forms of the files of runtimes, as `export` has them."""
    epochs: int | None = None
    """Passes over the training images, instead of the job's own."""
    runs: Path
    """Folder of the training; finished runs that it has are not repeated."""
    output: Path
    """Folder for the files and the table; files of the same name are replaced."""


def main(arguments: Sequence[str]) -> None:
    """Writes a file for each row and format, each with its report as JSON, and demo.md."""
    config = parse_options(DemoConfig, arguments, "demo")
    console = make_console()
    rows = [row for job in jobs(config) for row in train(job, console)]
    config.output.mkdir(parents=True, exist_ok=True)
    records: list[dict[str, Any]] = []
    for file_format, form in itertools.product(config.formats, config.forms):
        for row in rows:
            if form != "portable" and (file_format == "safetensors" or row.method == "full_precision"):
                continue
            ending = "" if form == "portable" else f"-{form}"
            path = config.output / f"{row.name}{ending}{export.SUFFIXES[file_format]}"
            folder = config.runs / row.name / "seed-0"
            options = ["--format", file_format, "--form", form]
            export.main([str(folder), *options, "--verify", "--output", str(path)])
            report = read_json(path.with_name(f"{path.name}.json"))
            same = f"{report['same_predictions']:,} of {report['test_images']:,}"
            runtime = RUNTIMES[file_format] + ("" if form == "portable" else f", {form}")
            records.append(
                {"label": row.label, "runtime": runtime, "same": same}
                | {key: report[key] for key in ("bytes", "bits_per_weight")}
                | {"accuracy": 100 * report["accuracy"], "share": report["bytes"] / (records or [report])[0]["bytes"]}
            )
    table = markdown(columns(config.job), records)
    write_results(config.output, "demo", table, {"files": records})
    console.out(table, highlight=False)


def jobs(config: DemoConfig) -> list[TrainConfig]:
    """The trainings: one of full precision, and one for each grid."""
    job = make_job(config.job, epochs=config.epochs, seeds=(0,), output=config.runs)
    on_grids = [dataclasses.replace(job, methods=("laq",), **OPTIONS[grid]) for grid in config.grids]
    return [dataclasses.replace(job, methods=("full_precision",)), *on_grids]


def train(job: TrainConfig, console: Console) -> list[Row]:
    """Trains a job, and returns its rows."""
    run_job(job, console)
    return job.rows()


def columns(job: str) -> Columns:
    """The columns of the table."""
    return {
        "label": (f"{job}, seed 0", str),
        "runtime": ("file", str),
        "bytes": ("bytes", "{:,}".format),
        "bits_per_weight": ("bits per weight", "{:.2f}".format),
        "share": ("of full precision", "{:.2f}".format),
        "accuracy": ("test accuracy %", "{:.2f}".format),
        "same": ("same predictions as JAX", str),
    }
