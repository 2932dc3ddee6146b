"""What exported files cost where they run: `python -m experiments deployment --output FOLDER`.

For each network, runtime and batch: bytes, time to load, time of a run, peak of memory, and the difference from JAX, of
files in float32, in the portable and the fast form, and of the runtime's own quantization of the network in float32.
Times are medians of rounds in which all files run in turn, in units of float32 in the same runtime.
"""

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

import fobt
from experiments.core.cli import make_console, parse_options
from experiments.core.config import require
from experiments.core.records import read_json, write_results
from experiments.deployment.networks import FEED_FORWARD, FORMS, Timed, make_network
from experiments.deployment.runtimes import Run, load, peak_memory
from experiments.reporting.tables import Columns, markdown

NetworkName: TypeAlias = Literal["lenet5", "mlp", "vgg", "resnet18", "decoder"]
RuntimeName: TypeAlias = Literal["onnx", "litert"]
TITLES = {"onnx": "ONNX Runtime", "litert": "LiteRT"}
PACKAGES = ("onnx", "onnxruntime", "ai-edge-litert", "litert-converter")
_LONG_ROUND = 4.0  # seconds, after which there are only few rounds
_FEW_ROUNDS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeploymentConfig:
    """Measure exported files in their runtimes."""

    networks: tuple[NetworkName, ...] = get_args(NetworkName)
    """What is exported, with random weights; the decoder takes one token at a time of each of a batch."""
    runtimes: tuple[RuntimeName, ...] = get_args(RuntimeName)
    """Where it runs."""
    batches: tuple[int, ...] = (1, 64)
    """Inputs at a time; the files are exported for them."""
    rounds: int = 25
    """How often each file runs; 3 times where all together take longer than 4 seconds."""
    threads: int = 1
    """Threads of the runtimes."""
    width: float = 1
    """Units of the layers as a multiple of the network's own."""
    output: Path | None = None
    """Folder for the results: NETWORK-RUNTIME.json and a table of each, and summary.md with all that are there."""

    def __post_init__(self) -> None:
        require(self.rounds >= 1, "rounds", "at least 1", self.rounds)
        require(self.threads >= 1, "threads", "at least 1", self.threads)
        require(all(batch >= 1 for batch in self.batches), "batches", "all at least 1", self.batches)


def main(arguments: Sequence[str]) -> None:
    """Measures, prints, and writes."""
    config = parse_options(DeploymentConfig, arguments, "deployment")
    console = make_console()
    settings: dict[str, Any] = {"threads": config.threads, "rounds": config.rounds, "width": config.width}
    settings |= {"runtime_versions": {package: version(package) for package in PACKAGES}}
    for network in config.networks:
        for runtime in config.runtimes:
            records = [record for batch in config.batches for record in measure(config, network, runtime, batch)]
            table = markdown(columns(config.batches), side_by_side(records))
            console.out(f"{TITLES[runtime]}\n{table}", highlight=False)
            if config.output is not None:
                write_results(config.output, f"{network}-{runtime}", table, {**settings, "files": records})
    if config.output is not None:
        (config.output / "summary.md").write_text(summary(config.output), encoding="utf-8")


def summary(folder: Path) -> str:
    """The tables of all networks in a folder, one for each runtime."""
    tables = []
    for runtime, title in TITLES.items():
        files = [folder / f"{network}-{runtime}.json" for network in get_args(NetworkName)]
        records = [record for file in files if file.is_file() for record in read_json(file)["files"]]
        if records:
            batches = sorted({record["batch"] for record in records})
            tables.append(f"{title}\n\n{markdown(columns(batches), side_by_side(records))}")
    return "\n".join(tables)


def measure(config: DeploymentConfig, name: str, runtime: str, batch: int) -> list[dict[str, Any]]:
    """A record for each form of a network in a runtime."""
    networks: dict[tuple[fobt.Quantizer, bool], Timed] = {}
    contents, runs, references, records = {}, {}, {}, {}
    for form, (write, grid, rounded) in FORMS[runtime].items():
        if rounded and name not in FEED_FORWARD:
            continue
        if (grid, rounded) not in networks:
            networks[grid, rounded] = make_network(name, grid, config.width, rounded=rounded)
        network = networks[grid, rounded]
        inputs = _inputs(batch, network.inputs)
        contents[form] = write(network, inputs)
        runs[form], loaded = _loaded(contents[form], runtime, config.threads)
        references[form] = np.asarray(network.function(network.weights, inputs))
        records[form] = {"load": loaded, **_differences(runs[form](inputs), references[form])}
    seconds = _medians(runs, inputs, config.rounds)
    unit = next(iter(FORMS[runtime]))
    with tempfile.TemporaryDirectory() as folder:
        return [
            {
                "network": name,
                "runtime": runtime,
                "batch": batch,
                "form": form,
                "bytes": len(contents[form]),
                "seconds": seconds[form],
                "ratio": seconds[form] / seconds[unit],
                "memory": peak_memory(contents[form], runtime, inputs, Path(folder)),
                **record,
            }
            for form, record in records.items()
        ]


def _inputs(batch: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(batch, *shape)).astype(np.float32)


def _loaded(content: bytes, runtime: str, threads: int) -> tuple[Run, float]:
    """A file in its runtime, and the fewest seconds that loading it took."""
    seconds = []
    for _ in range(_FEW_ROUNDS):
        start = time.perf_counter()
        run = load(content, runtime, threads)
        seconds.append(time.perf_counter() - start)
    return run, min(seconds)


def _differences(got: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """The largest difference in units of the root mean square, and the share of equal largest outputs."""
    same = got.argmax(-1) == expected.argmax(-1)
    return {
        "difference": float(np.max(np.abs(got - expected)) / np.sqrt(np.mean(expected**2))),
        "same": float(np.mean(same)),
    }


def _medians(runs: Mapping[str, Run], inputs: np.ndarray, rounds: int) -> dict[str, float]:
    """The median seconds of each over rounds in which all run once, after one that does not count."""
    times: dict[str, list[float]] = {form: [] for form in runs}
    first = time.perf_counter()
    for run in runs.values():
        run(inputs)
    is_long = time.perf_counter() - first > _LONG_ROUND
    for _ in range(min(rounds, _FEW_ROUNDS) if is_long else rounds):
        for form, run in runs.items():
            start = time.perf_counter()
            run(inputs)
            times[form].append(time.perf_counter() - start)
    return {form: statistics.median(values) for form, values in times.items()}


def side_by_side(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each network and form, with the times and the memory of every batch."""
    rows: dict[str, dict[str, Any]] = {}
    for record in records:
        batch = record["batch"]
        row = rows.setdefault(f"{record['network']}: {record['form']}", {})
        row.setdefault("bytes", record["bytes"])
        row.setdefault("load", 1e3 * record["load"])
        row[f"ratio {batch}"] = record["ratio"]
        row[f"memory {batch}"] = record["memory"] / 2**20
        row[f"difference {batch}"] = record["difference"]
    return [{"name": name, **row} for name, row in rows.items()]


def columns(batches: Sequence[int]) -> Columns:
    """The columns of the table; bytes and loading are those of the first batch."""
    return {
        "name": ("network: file", str),
        "bytes": ("bytes", "{:,}".format),
        "load": ("load, ms", "{:.0f}".format),
        **{f"ratio {batch}": (f"time, batch {batch}", "{:.2f}".format) for batch in batches},
        **{f"memory {batch}": (f"MiB, batch {batch}", "{:.0f}".format) for batch in batches},
        **{f"difference {batch}": (f"difference, batch {batch}", "{:.0e}".format) for batch in batches},
    }
