"""What fobt costs, as ratios taken in one run: `python -m experiments benchmark [--output FOLDER]`.

Projections of one 2048×2048 tensor against one Adam update of it, their time against its size, and how far they are
above the optimum for weights of many kinds; training steps against a float32 Adam step, two-stage and one-gradient
steps against loss-aware ones, steps whose oscillations are tracked against those that are not; what steps need of
memory and of the compiler, also where leaves are many; packed weights against float32 ones.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from rich.console import Console

from experiments.core.cli import parse_options
from experiments.core.config import require
from experiments.core.records import read_json, write_results
from experiments.costs.accuracy import accuracy
from experiments.costs.compilation import compilation_ratios
from experiments.costs.memory import accumulation_ratios, memory_ratios, state_ratios
from experiments.costs.packing import packing_ratios, product_ratios
from experiments.costs.projections import exponents, projection_ratios, scaling
from experiments.costs.steps import TIMED, branch_ratios, instrument_ratios, step_ratios
from experiments.reporting.tables import Columns, markdown

Part: TypeAlias = Literal["projections", "scaling", "accuracy", "steps", "memory", "compilation", "packing"]
Network: TypeAlias = Literal["mlp", "lenet5", "resnet18", "transformer"]
SIDE = 2048
SIZES = tuple(round(10**exponent) for exponent in (4, 4.5, 5, 5.5, 6, 6.5, 7))
COLUMNS: Columns = {
    "what": ("what", str),
    "ratio": ("ratio", "{:.2f}".format),
    "target": ("target", "≤ {:g}".format),
    "unit": ("in units of", str),
}
PROJECTION_COLUMNS: Columns = {"what": COLUMNS["what"], "ratio": ("minima", "{:.2f}".format)} | {
    "median": ("medians", "{:.2f}".format),
    "allocating": ("in units of the allocating update", "{:.2f}".format),
    "excess": ("excess of the objective", "{:.0e}".format),
    "target": COLUMNS["target"],
    "unit": COLUMNS["unit"],
}
STEP_COLUMNS: Columns = {"what": COLUMNS["what"], "ratio": ("time", "{:.2f}".format)} | {
    "target": COLUMNS["target"],
    "traffic": ("bytes read and written", "{:.2f}".format),
    "unit": COLUMNS["unit"],
}
ACCURACY_COLUMNS: Columns = {
    "what": COLUMNS["what"],
    "count": ("projections", "{:,}".format),
    "median": ("median", "{:.0e}".format),
    "most": ("90 %", "{:.0e}".format),
    "nearly_all": ("99 %", "{:.0e}".format),
    "largest": ("largest", "{:.0e}".format),
}

TABLES = {"projections": PROJECTION_COLUMNS, "accuracy": ACCURACY_COLUMNS, "steps": STEP_COLUMNS}


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """Measure the cost of projections, of training steps, and of packed weights."""

    rounds: int = 25
    """How often each program runs, large ones less often; the ratios are of medians, those of steps of minima."""
    parts: tuple[Part, ...] = get_args(Part)
    """What is measured."""
    networks: tuple[Network, ...] = get_args(Network)
    """Whose steps are measured; rows of others stay in a folder of results."""
    output: Path | None = None
    """Folder for the results: for each part a JSON file and a table, PART.json and PART.md; and summary.md, projections
    that have a target, and steps side by side. Files of other parts stay."""

    def __post_init__(self) -> None:
        require(self.rounds >= 1, "rounds", "at least 1", self.rounds)


def main(arguments: Sequence[str]) -> None:
    """Measures, prints, and writes."""
    config = parse_options(BenchmarkConfig, arguments, "benchmark")
    if config.output is not None:
        config.output.mkdir(parents=True, exist_ok=True)
    for part in config.parts:
        measured: dict[str, Any] = {} if part in ("accuracy", "steps") else {"rounds": config.rounds}
        if part == "scaling":
            records = scaling(SIZES, min(config.rounds, 7))
            measured |= {"records": records, "rows": exponents(records, 10**6)}
        else:
            measured["rows"] = measure(part, config)
            if part == "steps" and config.output is not None:
                measured["rows"] = beside_earlier(measured["rows"], config.output / "steps.json", config.networks)
        table = markdown(TABLES.get(part, COLUMNS), measured["rows"])
        Console().print(table, highlight=False, soft_wrap=True)
        if config.output is not None:
            write_results(config.output, part, table, measured)
    if config.output is not None:
        (config.output / "summary.md").write_text(summary(config.output), encoding="utf-8")


def beside_earlier(rows: Sequence[dict[str, Any]], path: Path, networks: Sequence[Network]) -> list[dict[str, Any]]:
    """Rows of steps together with those of other networks in a file, in the order of the networks."""
    earlier = read_json(path)["rows"] if path.is_file() else []

    def network_of(row: Mapping[str, Any]) -> Network:
        return row["what"].partition(" step, ")[0]

    kept = [row for row in earlier if network_of(row) not in networks]
    order = get_args(Network)
    return sorted([*kept, *rows], key=lambda row: order.index(network_of(row)))


def summary(folder: Path) -> str:
    """Tables of the projections in a folder that have a target, and of its steps, a column for each network."""
    tables = []
    if (path := folder / "projections.json").is_file():
        rows = [row for row in read_json(path)["rows"] if row["target"] is not None]
        tables.append(markdown(PROJECTION_COLUMNS, rows))
    if (path := folder / "steps.json").is_file():
        tables.append(side_by_side(read_json(path)["rows"]))
    return "\n".join(tables)


def side_by_side(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of ratios with a row for each step and a column for each network.

    Example:
        >>> row = {"ratio": 1.5, "target": 2.0, "unit": "b"}
        >>> print(side_by_side([row | {"what": "x step, batch 1: a"}, row | {"what": "y step, batch 2: a"}]))
        | step | in units of | target | x, batch 1 | y, batch 2 |
        |------|-------------|--------|------------|------------|
        | a    |           b |    ≤ 2 |       1.50 |       1.50 |
        <BLANKLINE>
    """
    merged: dict[tuple[str, str], dict[str, Any]] = {}
    networks: dict[str, None] = {}
    for row in rows:
        network, _, step = row["what"].partition(": ")
        networks[network] = None
        record = merged.setdefault((step, row["unit"]), {"step": step, "unit": row["unit"], "target": row["target"]})
        record[network] = row["ratio"]
    columns: Columns = {
        "step": ("step", str),
        "unit": COLUMNS["unit"],
        "target": COLUMNS["target"],
        **{network: (network.replace(" step", ""), COLUMNS["ratio"][1]) for network in networks},
    }
    return markdown(columns, list(merged.values()))


def measure(part: Part, config: BenchmarkConfig) -> list[dict[str, Any]]:
    """The rows of a table."""
    rounds = config.rounds
    if part == "projections":
        return projection_ratios(SIDE, rounds)
    if part == "accuracy":
        return accuracy(seed=2026)
    if part == "memory":
        rows = state_ratios("mlp") + accumulation_ratios("mlp", 1000)
        return rows + [row for name, size in (("mlp", 100), ("lenet5", 128)) for row in memory_ratios(name, size, 3)]
    if part == "compilation":
        return compilation_ratios(min(rounds, 3))
    if part == "packing":
        return packing_ratios(SIDE, rounds) + [
            row for batch_size in (1, 100) for row in product_ratios(SIDE, batch_size, rounds)
        ]
    rows = []
    for network in TIMED:
        if network.name in config.networks:
            of_network = step_ratios(network, rounds)
            if network.name == "lenet5" or (network.name, network.shape[0]) == ("mlp", 100):
                of_network += branch_ratios(network, rounds) + instrument_ratios(network, rounds)
            rows += [row | {"rounds": min(rounds, network.rounds)} for row in of_network]
    return rows
