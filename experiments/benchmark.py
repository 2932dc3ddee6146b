"""What fobt costs, as ratios taken in one run: `python -m experiments.benchmark [--output FOLDER]`.

Projections of one 2048×2048 tensor against one Adam update of it, and their time against its size; training steps
against a float32 Adam step, two-stage and one-gradient steps against loss-aware ones, steps whose oscillations are
tracked against those that are not; the optimizer state against Adam's, and packed weights against float32 ones.
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import jax
import optax
import tyro
from flax import nnx
from rich.console import Console

import fobt
from experiments.models import NETWORKS
from experiments.packing_costs import packing_ratios, product_ratios
from experiments.projection_costs import exponents, plot_scaling, projection_ratios, scaling
from experiments.run_folder import environment
from experiments.step_costs import TIMED, branch_ratios, instrument_ratios, step_ratios
from experiments.steps import split_model
from experiments.tables import Columns, markdown

Part: TypeAlias = Literal["projections", "scaling", "steps", "packing"]
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
    output: Path | None = None
    """Folder for the results: for each part a JSON file and a table, PART.json and PART.md, and the plot scaling.png.
    Files of other parts stay."""


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
            measured["rows"] = measure(part, config.rounds)
        table = markdown(STEP_COLUMNS if part == "steps" else COLUMNS, measured["rows"])
        Console().print(table, highlight=False, soft_wrap=True)
        if config.output is not None:
            content = json.dumps(measured, indent=2) + "\n"
            (config.output / f"{part}.json").write_text(content, encoding="utf-8")
            (config.output / f"{part}.md").write_text(table, encoding="utf-8")


def measure(part: Part, rounds: int) -> list[dict[str, Any]]:
    """The rows of a table."""
    if part == "projections":
        return projection_ratios(SIDE, rounds)
    if part == "packing":
        return packing_ratios(SIDE, rounds) + [
            row for batch_size in (1, 100) for row in product_ratios(SIDE, batch_size, rounds)
        ]
    rows = [row for network in TIMED for row in step_ratios(network, rounds)]
    for network in TIMED:
        if network.name == "lenet5" or (network.name, network.shape[0]) == ("mlp", 100):
            rows += branch_ratios(network, rounds) + instrument_ratios(network, rounds)
    return [*rows, state_ratio()]


def state_ratio() -> dict[str, Any]:
    """Bytes of optimizer state, the step count aside, against those of Adam."""
    _, params, _ = split_model(NETWORKS["mlp"](nnx.Rngs(0), 1.0))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))

    def bytes_per_parameter(optimizer: optax.GradientTransformation) -> float:
        state = jax.tree.leaves(jax.eval_shape(optimizer.init, params))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in state if leaf.ndim) / parameters

    adam = bytes_per_parameter(optax.adam(1e-3))
    ours = bytes_per_parameter(fobt.forward_backtrack(1e-3, fobt.binary()))
    return {
        "what": f"state of forward_backtrack, {ours:g} bytes per parameter",
        "bytes_per_parameter": ours,
        "ratio": ours / adam,
        "unit": "state of optax.adam",
        "target": 1.0,
    }


if __name__ == "__main__":
    main(sys.argv[1:])
