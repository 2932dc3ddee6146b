"""Timings that hold on a noisy machine: programs run in turn, and only ratios of medians count."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np


class Program:
    """A compiled function that is timed.

    Args:
        function: What is timed.
        *arguments: Its arguments. With `carry` the first ones are donated, and replaced by the results.
        carry: How many arguments the function gives back as results, in the same order.
    """

    def __init__(self, function: Callable[..., Any], *arguments: Any, carry: int = 0):
        # Donated buffers are lost, and arguments may be shared with other programs.
        self._carried = jax.tree.map(jax.numpy.copy, arguments[:carry])
        self._constant = arguments[carry:]
        self._function = jax.jit(function, donate_argnums=tuple(range(carry))).lower(*arguments).compile()

    def seconds(self) -> float:
        """Runs once and returns the time that it took."""
        start = time.perf_counter()
        result = jax.block_until_ready(self._function(*self._carried, *self._constant))
        elapsed = time.perf_counter() - start
        if self._carried:
            self._carried = result
        return elapsed


def median_seconds(programs: Mapping[str, Program], rounds: int) -> dict[str, float]:
    """The median time of each program over rounds in which all run once, after one that does not count."""
    times: dict[str, list[float]] = {name: [] for name in programs}
    for round_ in range(rounds + 1):
        for name, program in programs.items():
            elapsed = program.seconds()
            if round_ > 0:
                times[name].append(elapsed)
    return {name: float(np.median(values)) for name, values in times.items()}
