"""Timings that hold on a noisy machine: programs run in turn, and only ratios of medians count."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

_LEAST_SECONDS = 0.01


class Program:
    """A compiled function that is timed, several calls at a time where one takes less than 10 ms, so that no GPU waits.

    Args:
        function: What is timed.
        *arguments: Its arguments. With `carry` the first ones are donated, and replaced by the results.
        carry: How many arguments the function gives back as results, in the same order.
    """

    def __init__(self, function: Callable[..., Any], *arguments: Any, carry: int = 0):
        # Donated buffers are lost, and arguments may be shared with other programs.
        self._carried = jax.tree.map(jax.numpy.copy, arguments[:carry])
        self._constant = arguments[carry:]
        donated = tuple(range(carry))
        self._function = jax.jit(function, donate_argnums=donated, keep_unused=True).lower(*arguments).compile()
        self._calls = 1
        self.seconds()  # The first call takes longer.
        self._calls = max(1, round(_LEAST_SECONDS / self.seconds()))

    @property
    def memory(self) -> int:
        """Bytes of arguments, results and temporary memory, as the compiler plans them."""
        plan = self._function.memory_analysis()
        assert plan is not None
        return plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes

    @property
    def traffic(self) -> float:
        """Bytes that its operations read and write, as the compiler counts them."""
        cost = self._function.cost_analysis()
        assert cost is not None
        return cost["bytes accessed"]

    def seconds(self) -> float:
        """Runs, and returns the time of a call."""
        start = time.perf_counter()
        for _ in range(self._calls):
            result = self._function(*self._carried, *self._constant)
            if self._carried:
                self._carried = result
        jax.block_until_ready(result)
        return (time.perf_counter() - start) / self._calls


class PlainProgram:
    """A function of NumPy arrays that is timed as it is.

    Args:
        function: What is timed.
        *arguments: Its arguments.
    """

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        self._function, self._arguments = function, arguments

    def seconds(self) -> float:
        """Runs once and returns the time that it took."""
        start = time.perf_counter()
        self._function(*self._arguments)
        return time.perf_counter() - start


def median_seconds(programs: Mapping[str, Program | PlainProgram], rounds: int) -> dict[str, float]:
    """The median time of each program over rounds in which all run once, after one that does not count."""
    return {name: float(np.median(values)) for name, values in round_seconds(programs, rounds).items()}


def least_seconds(programs: Mapping[str, Program], rounds: int) -> dict[str, float]:
    """The least time of each program over such rounds: what else a machine does only makes programs slower."""
    return {name: min(values) for name, values in round_seconds(programs, rounds).items()}


def round_seconds(programs: Mapping[str, Program | PlainProgram], rounds: int) -> dict[str, list[float]]:
    """The times of each program in rounds in which all run once, after one that does not count.

    In another order in every round, as a program may find memory and caches as the one before leaves them.
    """
    times: dict[str, list[float]] = {name: [] for name in programs}
    rng = np.random.default_rng(0)
    for round_ in range(rounds + 1):
        for name in rng.permutation(list(programs)):
            elapsed = programs[name].seconds()
            if round_ > 0:
                times[name].append(elapsed)
    return times


def ratios(
    title: str, amounts: Mapping[str, float], unit: str, targets: Mapping[str, float], measure: str = "milliseconds"
) -> list[dict[str, Any]]:
    """Rows of the table: the amount of every program but the unit, in times of `unit`.

    Args:
        title: How every row begins.
        amounts: By program: seconds, which are written as milliseconds, or bytes.
        unit: The program that is the unit.
        targets: What ratios should be, for some programs.
        measure: "milliseconds" or "bytes".
    """
    factor = 1e3 if measure == "milliseconds" else 1
    return [
        {
            "what": title + name,
            measure: factor * value,
            "ratio": value / amounts[unit],
            "unit": unit,
            f"unit_{measure}": factor * amounts[unit],
            "target": targets.get(name),
        }
        for name, value in amounts.items()
        if name != unit
    ]
