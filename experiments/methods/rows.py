"""The rows of a table: a method with its options, and its names on disk and in tables."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import fobt
from experiments.methods.method import Hyperparameters, Method, make_quantizer
from experiments.methods.registry import METHODS, Entry

# Options in names on disk and in tables.
NAMES = {"solver": "{}", "scales": "{}_scales", "bits": "{}_bits", "a": "a{:g}", "rho": "rho{:g}"}
NAMES |= {"threshold": "threshold{:g}", "dampening": "dampening{:g}"}
LABELS = {"solver": "{}", "scales": "{} scales", "bits": "{} bits", "a": "a = {:g}", "rho": "ρ = {:g}"}
LABELS |= {"threshold": "threshold to {:g}", "dampening": "λ to {:g}"}


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
        parts = [self.method, self.grid, *self._texts(NAMES)]
        parts += [f"every_{self.every}_{self.every_unit}"] if self.every else []
        parts += ["equal_gradients"] if self.equal_gradients else []
        return "-".join(part for part in parts if part)

    @property
    def label(self) -> str:
        """The name of the row in tables and plots."""
        parts = [self._entry.title or self.method]
        if self.grid:
            parts.append(self.grid.rstrip("2345678") + (f" {self.grid[-1]} bits" if self.grid[-1].isdigit() else ""))
        parts += self._texts(LABELS)
        if self.every:
            parts.append("every step" if self.every == 1 else f"every {self.every} {self.every_unit}")
        parts += ["schedule compressed"] if self.equal_gradients else []
        return ", ".join(parts)

    def _texts(self, formats: Mapping[str, str]) -> list[str]:
        return [text.format(value) for key, text in formats.items() if (value := getattr(self, key))]

    @property
    def sort_key(self) -> tuple[Any, ...]:
        """The order of rows in a table: by method, bits, then the other settings."""
        bits = self.bits or (int(self.grid[-1]) if self.grid and self.grid[-1].isdigit() else 1)
        return (list(METHODS).index(self.method), self.equal_gradients, bits, -(self.every or 0), self.name)

    def reference(self, rows: Iterable["Row"]) -> "Row | None":
        """The LAQ row that this row is compared with: the one with the same grid, or the same levels.

        full_precision is compared with the only LAQ row, if there is one.
        """
        laq = [row for row in rows if row.method == "laq"]
        if self.method == "full_precision":
            return laq[0] if len(laq) == 1 else None
        if self.method == "laq" and self in laq:
            return None
        grids = self._entry.grids
        if self.bits:
            grids = ("binary",) if self.bits == 1 else (f"linear{self.bits}",) + ("ternary",) * (self.bits == 2)
        if self.grid:
            grids = (self.grid,)
        same = [row for row in laq if row.grid in grids]
        exact = [row for row in same if (row.solver, row.scales) == (self.solver, self.scales)]
        return next(iter(exact + same), None)

    def gradient_evaluations(self, epoch: int, step: int) -> int:
        """Gradient evaluations of a step: 1, or 2; epoch and step are counted from 1."""
        if self.every is None:
            return self._entry.gradients
        if self.a == 1:
            return 1
        return 2 if (epoch if self.every_unit == "epochs" else step) % self.every == 0 else 1

    def epochs(self, epochs: int) -> int:
        """Epochs of this row where a method with one gradient per minibatch has `epochs`."""
        if not self.equal_gradients:
            return epochs
        return round(epochs / (self._entry.gradients if self.every is None else 1 + 1 / self.every))

    def build(self, hyper: Hyperparameters, of_tree: Callable[[fobt.Quantizer], Any] = lambda grid: grid) -> Method:
        """The method with its options; `of_tree` says which leaves have the grid, by default all matrices."""
        settings: dict[str, Any] = {option: getattr(self, option) for option in self._entry.options}
        if self._entry.on_grid:
            assert self.grid is not None
            settings["quantizer"] = of_tree(make_quantizer(self.grid, self.solver, self.scales))
        return self._entry.make(hyper, **settings)

    @property
    def _entry(self) -> Entry:
        return METHODS[self.method]
