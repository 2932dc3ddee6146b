"""What projections cost: against an Adam update of the same tensor, and with the size of the tensor."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import fobt
from experiments.costs.timing import Program, median_seconds, ratios

ADAM_UPDATE = "Adam update of the tensor"
SCALED = {"binary": fobt.binary(), "ternary": fobt.ternary(), "linear(4)": fobt.linear(4)}


def projection_ratios(side: int, rounds: int) -> list[dict[str, Any]]:
    """Times of quantizers, from weights and curvature to dequantized weights, in Adam updates of the same tensor.

    The unit is `optax.adam(...).update` under jit. Neither side is given buffers to write its results to, so both pay
    for new memory; the row of the update in place shows how much that is.
    """
    keys = jax.random.split(jax.random.key(0), 4)
    weights, grads, noise = (jax.random.normal(key, (side, side)) for key in keys[:3])
    curvature = jnp.exp(2 * jax.random.normal(keys[3], (side, side)))
    adam = optax.adam(1e-3)

    def adam_in_place(params: jax.Array, state: Any, grads: jax.Array) -> tuple[jax.Array, Any]:
        updates, state = adam.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def projected(quantizer: fobt.Quantizer) -> Program:
        return Program(lambda w, c: quantizer(w, c).dequantize(), weights, curvature)

    def warm_started(quantizer: fobt.Quantizer) -> Program:
        codes = quantizer(weights - 1e-3 * noise, curvature).codes
        return Program(lambda w, c, codes: quantizer(w, c, codes=codes).dequantize(), weights, curvature, codes)

    channel, block = fobt.per_channel(), fobt.per_block(128)
    programs = {
        ADAM_UPDATE: Program(adam.update, grads, adam.init(weights)),
        "Adam update and apply_updates, in place": Program(adam_in_place, weights, adam.init(weights), grads, carry=2),
        "binary": projected(fobt.binary()),
        "ternary, histogram": projected(fobt.ternary()),
        **{f"linear({bits}), histogram": projected(fobt.linear(bits)) for bits in (2, 3, 4, 8)},
        "logarithmic(3), histogram": projected(fobt.logarithmic(3)),
        **{
            f"linear({bits}), alternating, warm start": warm_started(fobt.linear(bits, solver="alternating"))
            for bits in (2, 3, 4)
        },
        "binary, per channel": projected(fobt.binary(granularity=channel)),
        "linear(4), histogram, per channel": projected(fobt.linear(4, granularity=channel)),
        "linear(4), histogram, blocks of 128": projected(fobt.linear(4, granularity=block)),
    }
    targets = {name: 1.0 for name in programs if name == "binary" or name.endswith(("histogram", "warm start"))}
    return ratios(f"{side}×{side} projection: ", median_seconds(programs, rounds), ADAM_UPDATE, targets)


def scaling(sizes: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """Times of an Adam update and of projections of square tensors, from small to large."""
    records = []
    for size in sizes:
        side = round(size**0.5)
        keys = jax.random.split(jax.random.key(0), 3)
        weights, grads = (jax.random.normal(key, (side, side)) for key in keys[:2])
        curvature = jnp.exp(2 * jax.random.normal(keys[2], (side, side)))
        adam = optax.adam(1e-3)
        programs = {"Adam update": Program(adam.update, grads, adam.init(weights))}
        for name, quantizer in SCALED.items():
            programs[name] = Program(lambda w, c, q=quantizer: q(w, c).dequantize(), weights, curvature)
        seconds = median_seconds(programs, rounds)
        records += [{"weights": side**2, "program": name, "seconds": value} for name, value in seconds.items()]
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


def plot_scaling(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Nanoseconds per weight against size, a line for each program."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for name in dict.fromkeys(record["program"] for record in records):
        points = [(r["weights"], 1e9 * r["seconds"] / r["weights"]) for r in records if r["program"] == name]
        axes.plot(*zip(*points, strict=True), "o-", label=name, color="black" if name == "Adam update" else None)
    axes.set(xscale="log", yscale="log", xlabel="weights of the tensor", ylabel="nanoseconds per weight")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110)
