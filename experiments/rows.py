"""The rows of a table: which methods a configuration asks for, and their names on disk and in tables."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from experiments.config import GRID_METHODS, TWO_GRADIENT_METHODS, TrainConfig

TITLES = {
    "full_precision": "full precision",
    "binary_connect": "BinaryConnect",
    "binary_connect_stochastic": "BinaryConnect, stochastic",
    "bwn": "BWN",
    "twn": "TWN",
    "laq": "LAQ",
    "laq_freezing": "LAQ with freezing",
    "laq_dampening": "LAQ with dampening",
    "nadam": "LAQ with NAdam",
    "nesterov": "quantized Nesterov",
    "optimistic": "optimistic",
    "dorefa": "DoReFa",
    "lsq": "LSQ",
    "sam": "LAQ with SAM",
    "two_steps": "two LAQ steps",
    "forward_backtrack": "forward-backtrack",
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a table; fields that its method does not have are None.

    Attributes:
        method: As on the command line.
        grid: Grid of the projection, with its bits: binary, ternary, linear3 ...
        solver: Solver of the projection, where it is not the default.
        scales: 2 where positive and negative weights have a scale each.
        bits: Bits of methods without a grid (dorefa, lsq).
        a: Backtracking coefficient.
        every: Period of the two-stage update.
        every_unit: What the period counts.
        rho: Radius of SAM.
        threshold: Last threshold of the freezing of oscillating weights.
        dampening: Last weight of the dampening loss.
        equal_gradients: The training is shortened, its schedule too, to as many gradient evaluations as a method with
            one per minibatch takes.
    """

    method: str
    grid: str | None = None
    solver: str | None = None
    scales: int | None = None
    bits: int | None = None
    a: float | None = None
    every: int | None = None
    every_unit: str | None = None
    rho: float | None = None
    threshold: float | None = None
    dampening: float | None = None
    equal_gradients: bool = False

    @property
    def name(self) -> str:
        """The name of the row on disk: its settings."""
        parts = [self.method, self.grid, self.solver]
        parts += [f"{self.scales}_scales" if self.scales else None, f"{self.bits}_bits" if self.bits else None]
        parts += [f"a{self.a:g}" if self.a else None, f"rho{self.rho:g}" if self.rho else None]
        parts += [f"threshold{self.threshold:g}" if self.threshold else None]
        parts += [f"dampening{self.dampening:g}" if self.dampening else None]
        parts += [f"every_{self.every}_{self.every_unit}" if self.every else None]
        parts += ["equal_gradients" if self.equal_gradients else None]
        return "-".join(part for part in parts if part)

    @property
    def label(self) -> str:
        """The name of the row in tables and plots."""
        parts = [TITLES[self.method]]
        if self.grid:
            parts.append(self.grid.rstrip("2345678") + (f" {self.grid[-1]} bits" if self.grid[-1].isdigit() else ""))
        parts += [self.solver] if self.solver else []
        parts += [f"{self.scales} scales"] if self.scales else []
        parts += [f"{self.bits} bits"] if self.bits else []
        parts += [f"a = {self.a:g}"] if self.a else []
        parts += [f"ρ = {self.rho:g}"] if self.rho else []
        parts += [f"threshold to {self.threshold:g}"] if self.threshold else []
        parts += [f"λ to {self.dampening:g}"] if self.dampening else []
        if self.every:
            parts.append("every step" if self.every == 1 else f"every {self.every} {self.every_unit}")
        parts += ["schedule compressed"] if self.equal_gradients else []
        return ", ".join(parts)

    @property
    def sort_key(self) -> tuple[Any, ...]:
        """The order of rows in a table: by method, bits, then the other settings."""
        bits = self.bits or (int(self.grid[-1]) if self.grid and self.grid[-1].isdigit() else 1)
        return (list(TITLES).index(self.method), self.equal_gradients, bits, -(self.every or 0), self.name)

    def reference(self, rows: Iterable["Row"]) -> "Row | None":
        """The LAQ row that this row is compared with: the one with the same grid, or as many levels.

        full_precision is compared with the only LAQ row, if there is one.
        """
        laq = [row for row in rows if row.method == "laq"]
        if self.method == "full_precision":
            return laq[0] if len(laq) == 1 else None
        if self.method == "laq" and self in laq:
            return None
        grids = {"bwn": ["binary"], "twn": ["ternary", "linear2"]}.get(self.method, [])
        if self.method.startswith("binary_connect"):
            grids = ["binary"]
        if self.bits:
            grids = ["binary"] if self.bits == 1 else [f"linear{self.bits}"] + ["ternary"] * (self.bits == 2)
        if self.grid:
            grids = [self.grid]
        same = [row for row in laq if row.grid in grids]
        exact = [row for row in same if (row.solver, row.scales) == (self.solver, self.scales)]
        return next(iter(exact + same), None)

    def gradient_evaluations(self, epoch: int, step: int) -> int:
        """Gradient evaluations of a step: 1, or 2; epoch and step are counted from 1."""
        if self.method in TWO_GRADIENT_METHODS:
            return 2
        if self.every is None or self.a == 1:
            return 1
        return 2 if (epoch if self.every_unit == "epochs" else step) % self.every == 0 else 1

    def epochs(self, epochs: int) -> int:
        """Epochs of this row where a method with one gradient per minibatch has `epochs`."""
        if not self.equal_gradients:
            return epochs
        if self.method in TWO_GRADIENT_METHODS:
            return round(epochs / 2)
        assert self.every is not None
        return round(epochs / (1 + 1 / self.every))


def expand(config: TrainConfig) -> list[Row]:
    """The rows that a configuration asks for, in its order."""
    rows = []
    for method in config.methods:
        row = Row(method=method)
        if method in GRID_METHODS:
            row = dataclasses.replace(row, grid=config.grid, solver=config.solver, scales=config.scales)
        if method in ("dorefa", "lsq"):
            row = dataclasses.replace(row, bits=config.bits or 2)
        if method == "sam":
            row = dataclasses.replace(row, rho=config.rho)
        if method == "laq_freezing":
            row = dataclasses.replace(row, threshold=config.freezing_threshold)
        if method == "laq_dampening":
            row = dataclasses.replace(row, dampening=config.dampening)
        if method == "optimistic":
            row = dataclasses.replace(row, a=config.a)
        if method == "forward_backtrack":
            rows += [
                dataclasses.replace(
                    row,
                    a=config.a,
                    every=every,
                    every_unit="steps" if every == 1 else config.every_unit,
                    equal_gradients=config.budget == "gradients",
                )
                for every in config.every
            ]
        else:
            equal = config.budget == "gradients" and method in TWO_GRADIENT_METHODS
            rows.append(dataclasses.replace(row, equal_gradients=equal))
    return rows
