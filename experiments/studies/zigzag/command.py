"""Zig-zags, and what looking ahead does about them: `python -m experiments zigzag [PARTS ...] [options]`.

| part | what it shows |
|---|---|
| `trajectories` | two weights over the contours of a loss |
| `toy` | the paper's toy problem, one weight with exact derivatives |
| `regression` | one weight between two grid points: flips per step |
| `quadratic` | the paper's two theorems on a quadratic, and what holds instead |
| `strongly_convex` | random strongly convex quadratics with quantized weights |
| `digits` | softmax regression with quantized weights |
| `network` | single weights of a network on MNIST, only when asked for |
"""

import dataclasses
import importlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, get_args

import tyro

from experiments.core.cli import make_console, parse_options
from experiments.core.config import require
from experiments.core.records import ROOT

Part = Literal["trajectories", "toy", "regression", "quadratic", "strongly_convex", "digits", "network"]
# What `write` of a part takes from the command line beside the folder.
OPTIONS = {"strongly_convex": ("draws", "steps"), "digits": ("draws", "steps"), "network": ("epochs", "seeds")}
NEEDS_DATA = ("network",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ZigzagConfig:
    """Write figures, tables and numbers on zig-zags."""

    parts: Annotated[tuple[Part, ...], tyro.conf.Positional] = tuple(
        part for part in get_args(Part) if part not in NEEDS_DATA
    )
    """Which parts."""
    draws: int = 24
    """strongly_convex, digits: random problems for each setting."""
    steps: int = 60
    """strongly_convex, digits: two-stage steps of a run."""
    epochs: int = 3
    """network: passes over the training images."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """network: seeds."""
    output: Path = ROOT / "experiments" / "results" / "zigzag"
    """Folder for the results; files of the same name are replaced."""

    def __post_init__(self) -> None:
        for name, least in (("draws", 4), ("steps", 4), ("epochs", 1)):
            value = getattr(self, name)
            require(value >= least, name, f"at least {least}", value)


def main(arguments: Sequence[str]) -> None:
    """Writes PART.png, PART.json and, where numbers are to be read, PART.md for each part."""
    config = parse_options(ZigzagConfig, arguments, "zigzag")
    config.output.mkdir(parents=True, exist_ok=True)
    console = make_console()
    for part in config.parts:
        start = time.perf_counter()
        module = importlib.import_module(f"experiments.studies.zigzag.{part}")
        module.write(config.output, **{name: getattr(config, name) for name in OPTIONS.get(part, ())})
        console.print(f"{part}: {time.perf_counter() - start:.0f} s, {config.output / part}.*", highlight=False)
