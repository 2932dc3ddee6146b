"""What fobt costs, as ratios taken in one run: `python -m experiments.benchmark [--output FOLDER]`.

Projections of one 2048×2048 tensor against one Adam update of it, and their time against its size; training steps
against a float32 Adam step, two-stage and one-gradient steps against loss-aware ones, steps whose oscillations are
tracked against those that are not; what steps need of memory and of the compiler; packed weights against float32 ones.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import tyro
from rich.console import Console

from experiments.memory_costs import accumulation_ratios, memory_ratios, state_ratios
from experiments.packing_costs import packing_ratios, product_ratios
from experiments.projection_costs import exponents, plot_scaling, projection_ratios, scaling
from experiments.run_folder import environment, read_json
from experiments.step_costs import ADAM_STEP, TIMED, branch_ratios, instrument_ratios, step_ratios
from experiments.tables import Columns, markdown

Part: TypeAlias = Literal["projections", "scaling", "steps", "memory", "packing"]
Network: TypeAlias = Literal["mlp", "lenet5", "resnet18", "transformer"]
SIDE = 2048
SIZES = tuple(round(10**exponent) for exponent in (4, 4.5, 5, 5.5, 6, 6.5, 7, 7.5, 8))
COLUMNS: Columns = {
    "what": ("what", str),
    "ratio": ("ratio", "{:.2f}".format),
    "target": ("target", "≤ {:g}".format),
    "unit": ("in units of", str),
}
STEP_COLUMNS: Columns = {"what": COLUMNS["what"], "ratio": ("time", "{:.2f}".format)} | {
    "target": COLUMNS["target"],
    "traffic": ("bytes read and written", "{:.2f}".format),
    "unit": COLUMNS["unit"],
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """Measure the cost of projections, of training steps, and of packed weights."""

    rounds: int = 25
    """How often each program runs, large ones less often; the ratios are of medians."""
    parts: tuple[Part, ...] = get_args(Part)
    """What is measured."""
    networks: tuple[Network, ...] = get_args(Network)
    """Whose steps are measured."""
    output: Path | None = None
    """Folder for the results: for each part a JSON file and a table, PART.json and PART.md; the plot scaling.png; and
    summary.md, what has a target or a peer. Files of other parts stay."""


def main(arguments: list[str]) -> None:
    """Measures, prints, and writes."""
    config = tyro.cli(BenchmarkConfig, args=arguments, prog="python -m experiments.benchmark")
    if config.rounds < 1:
        raise SystemExit(f"python -m experiments.benchmark: --rounds must be at least 1, got {config.rounds}")
    if config.output is not None:
        config.output.mkdir(parents=True, exist_ok=True)
    for part in config.parts:
        measured: dict[str, Any] = {"environment": environment(), "rounds": config.rounds}
        if part == "scaling":
            records = scaling(SIZES, min(config.rounds, 7))
            measured |= {"records": records, "rows": exponents(records, 10**6)}
            if config.output is not None:
                plot_scaling(records, config.output / "scaling.png")
        else:
            measured["rows"] = measure(part, config)
        table = markdown(STEP_COLUMNS if part == "steps" else COLUMNS, measured["rows"])
        Console().print(table, highlight=False, soft_wrap=True)
        if config.output is not None:
            content = json.dumps(measured, indent=2) + "\n"
            (config.output / f"{part}.json").write_text(content, encoding="utf-8")
            (config.output / f"{part}.md").write_text(table, encoding="utf-8")
    if config.output is not None:
        (config.output / "summary.md").write_text(markdown(COLUMNS, summary(config.output)), encoding="utf-8")


def summary(folder: Path) -> list[dict[str, Any]]:
    """The rows in a folder that have a target, and the steps that are compared with Adam's."""
    paths = [path for part in ("projections", "steps") if (path := folder / f"{part}.json").is_file()]
    rows = [row for path in paths for row in read_json(path)["rows"]]
    return [row for row in rows if row["target"] is not None or row["unit"] == ADAM_STEP]


def measure(part: Part, config: BenchmarkConfig) -> list[dict[str, Any]]:
    """The rows of a table."""
    rounds = config.rounds
    if part == "projections":
        return projection_ratios(SIDE, rounds)
    if part == "memory":
        rows = state_ratios("mlp") + accumulation_ratios("mlp", 1000)
        return rows + [row for name, size in (("mlp", 100), ("lenet5", 128)) for row in memory_ratios(name, size, 3)]
    if part == "packing":
        return packing_ratios(SIDE, rounds) + [
            row for batch_size in (1, 100) for row in product_ratios(SIDE, batch_size, rounds)
        ]
    timed = [network for network in TIMED if network.name in config.networks]
    rows = [row for network in timed for row in step_ratios(network, rounds)]
    for network in timed:
        if network.name == "lenet5" or (network.name, network.shape[0]) == ("mlp", 100):
            rows += branch_ratios(network, rounds) + instrument_ratios(network, rounds)
    return rows


if __name__ == "__main__":
    main(sys.argv[1:])
