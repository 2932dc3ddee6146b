"""What projections cost: against an Adam update of the same tensor, and with the size of the tensor."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fobt
from experiments.costs.excess import excess
from experiments.costs.timing import Program, round_seconds

ADAM_UPDATE = "donated Adam update"
ALLOCATING = "Adam update that allocates its results"
GRIDS: dict[str, Callable[..., fobt.Quantizer]] = {
    "binary": fobt.binary,
    **{f"linear({bits})": partial(fobt.linear, bits) for bits in (2, 3, 4, 8)},
    "logarithmic(3)": partial(fobt.logarithmic, 3),
}
GRANULARITIES = {
    "per tensor": fobt.per_tensor(),
    "per channel": fobt.per_channel(),
    "blocks of 128": fobt.per_block(128),
}
TARGETS = {"per tensor": 2.0, "per channel": 3.0, "blocks of 128": 3.0}
SCALED = ("linear(2)", "linear(4)")
LEAST_ROUNDS = 15


def projection_ratios(side: int, rounds: int) -> list[dict[str, Any]]:
    """Times of quantizers, from weights and curvature to dequantized weights, in Adam updates of the same tensor.

    The unit is `optax.adam(...).update` and `apply_updates` under jit, with params and state donated, as a training
    step has them; a projection writes to donated memory too. `ratio` is of the minima over rounds, `median` of the
    medians.
    """
    weights, curvature, grads = tensors(side)
    quantizers = {
        f"{grid}, {name}": make(granularity=granularity)
        for name, granularity in GRANULARITIES.items()
        for grid, make in GRIDS.items()
    }
    programs = adam_programs(weights, grads) | {
        name: projected(quantizer, weights, curvature) for name, quantizer in quantizers.items()
    }
    seconds = round_seconds(programs, max(rounds, LEAST_ROUNDS))
    excesses = {name: excess(quantizer, weights, curvature) for name, quantizer in quantizers.items()}
    targets = {name: TARGETS[name.rpartition("), ")[2].rpartition("binary, ")[2]] for name in quantizers}
    return rows_with_excess(f"{side}×{side} projection: ", seconds, excesses, targets)


def rows_with_excess(
    title: str,
    seconds: Mapping[str, Sequence[float]],
    excesses: Mapping[str, float],
    targets: Mapping[str, float],
) -> list[dict[str, Any]]:
    """Rows of the table: times in units of the donated Adam update, each projection with its excess.

    Raises:
        ValueError: The excess of a projection was not measured.
    """
    units = (ADAM_UPDATE, ALLOCATING)
    missing = [name for name in seconds if name not in units and name not in excesses]
    if missing:
        raise ValueError(f"excesses must have one for each projection that is timed, {missing} have none.")
    return [
        {
            "what": title + name,
            "milliseconds": 1e3 * min(times),
            "ratio": min(times) / min(seconds[ADAM_UPDATE]),
            "median": float(np.median(times) / np.median(seconds[ADAM_UPDATE])),
            "allocating": min(times) / min(seconds[ALLOCATING]),
            "excess": excesses.get(name),
            "unit": ADAM_UPDATE,
            "target": targets.get(name),
        }
        for name, times in seconds.items()
        if name != ADAM_UPDATE
    ]


def tensors(side: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Weights, curvature with a log-normal spread, and gradients."""
    keys = jax.random.split(jax.random.key(0), 3)
    weights, grads = (jax.random.normal(key, (side, side)) for key in keys[:2])
    return weights, jnp.exp(2 * jax.random.normal(keys[2], (side, side))), grads


def adam_programs(weights: jax.Array, grads: jax.Array) -> dict[str, Program]:
    """The update in donated memory, and the one that allocates."""
    adam = optax.adam(1e-3)

    def in_place(params: jax.Array, state: Any, grads: jax.Array) -> tuple[jax.Array, Any]:
        updates, state = adam.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return {
        ADAM_UPDATE: Program(in_place, weights, adam.init(weights), grads, carry=2),
        ALLOCATING: Program(adam.update, grads, adam.init(weights)),
    }


def projected(quantizer: fobt.Quantizer, weights: jax.Array, curvature: jax.Array) -> Program:
    """A projection whose result takes the memory of the one before."""
    return Program(lambda out, w, c: (quantizer(w, c).dequantize(),), weights, weights, curvature, carry=1)


def scaling(sizes: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """Times of a donated Adam update and of projections of square tensors, from small to large."""
    records = []
    for size in sizes:
        side = round(size**0.5)
        weights, curvature, grads = tensors(side)
        programs = {"Adam update": adam_programs(weights, grads)[ADAM_UPDATE]}
        for name, granularity in GRANULARITIES.items():
            for grid in SCALED:
                quantizer = GRIDS[grid](granularity=granularity)
                programs[f"{grid}, {name}"] = projected(quantizer, weights, curvature)
        seconds = round_seconds(programs, rounds)
        records += [{"weights": side**2, "program": name, "seconds": min(times)} for name, times in seconds.items()]
    return records


def exponents(records: Sequence[dict[str, Any]], smallest: int) -> list[dict[str, Any]]:
    """The slope of log time against log size from a size on: 1 where time is linear in the size."""
    rows = []
    for name in dict.fromkeys(record["program"] for record in records):
        points = [(r["weights"], r["seconds"]) for r in records if r["program"] == name and r["weights"] >= smallest]
        size, seconds = np.log(np.array(points, np.float64)).T
        slope = float(np.polyfit(size, seconds, 1)[0])
        what = f"{name}: exponent of the time from {smallest:.0e} to {max(points)[0]:.0e} weights"
        rows.append({"what": what, "ratio": slope, "target": None, "unit": "1 is linear"})
    return rows
