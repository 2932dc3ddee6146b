"""What fobt costs, as ratios taken in one run: `python -m experiments.benchmark [--output FOLDER]`.

Projections of one 2048×2048 tensor against one Adam update of it, training steps against a float32 Adam step and
two-stage steps against loss-aware ones, steps whose oscillations are tracked against those that are not, the
optimizer state against Adam's, and packed weights against float32 ones.
"""

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import nnx
from rich.console import Console

import fobt
from experiments.losses import squared_hinge
from experiments.models import NETWORKS
from experiments.packing_costs import packing_ratios, product_ratios
from experiments.run_folder import environment
from experiments.steps import split_model
from experiments.tables import Columns, markdown
from experiments.timing import Program, median_seconds, ratios

Part: TypeAlias = Literal["projections", "steps", "packing"]
SIDE = 2048
STEP_NETWORKS = {"mlp": 100, "lenet5": 128}
ADAM_UPDATE, ADAM_STEP = "Adam update of the tensor", "float32 Adam step"
COLUMNS: Columns = {
    "what": ("what", str),
    "ratio": ("ratio", "{:.2f}".format),
    "target": ("target", "≤ {:g}".format),
    "unit": ("in units of", str),
}
QUANTIZERS = {"binary": fobt.binary(), "linear(2)": fobt.linear(2)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """Measure the cost of projections and of training steps."""

    rounds: int = 25
    """How often each program runs; the ratios are of medians."""
    parts: tuple[Part, ...] = get_args(Part)
    """What is measured."""
    output: Path | None = None
    """Folder for the results: results.json, and the tables as summary.md."""


def main(arguments: list[str]) -> None:
    """Measures, prints, and writes."""
    config = tyro.cli(BenchmarkConfig, args=arguments, prog="python -m experiments.benchmark")
    if config.rounds < 1:
        raise SystemExit(f"python -m experiments.benchmark: --rounds must be at least 1, got {config.rounds}")
    if config.output is not None:
        config.output.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    if "projections" in config.parts:
        rows += projection_ratios(config.rounds)
    if "steps" in config.parts:
        for network, batch_size in STEP_NETWORKS.items():
            rows += step_ratios(network, batch_size, config.rounds)
            rows += instrument_ratios(network, batch_size, config.rounds)
        rows.append(state_ratio())
    if "packing" in config.parts:
        rows += packing_ratios(SIDE, config.rounds)
        for batch_size in (1, 100):
            rows += product_ratios(SIDE, batch_size, config.rounds)
    table = markdown(COLUMNS, rows)
    Console().print(table, highlight=False, soft_wrap=True)
    if config.output is not None:
        results = {"environment": environment(), "rounds": config.rounds, "rows": rows}
        (config.output / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        (config.output / "summary.md").write_text(table, encoding="utf-8")


def projection_ratios(rounds: int) -> list[dict[str, Any]]:
    """Times of quantizers, from weights and curvature to dequantized weights, in Adam updates of the same tensor.

    The unit is `optax.adam(...).update` under jit. Neither side is given buffers to write its results to, so both pay
    for new memory; the row of the update in place shows how much that is.
    """
    keys = jax.random.split(jax.random.key(0), 4)
    weights, grads, noise = (jax.random.normal(key, (SIDE, SIDE)) for key in keys[:3])
    curvature = jnp.exp(2 * jax.random.normal(keys[3], (SIDE, SIDE)))
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
    targets = {"binary": 0.5} | {
        name: 3.0 for name in programs if name.endswith(("histogram", "warm start")) and "(8)" not in name
    }
    return ratios(f"{SIDE}×{SIDE} projection: ", median_seconds(programs, rounds), ADAM_UPDATE, targets)


def step_programs(network: str, batch_size: int) -> Callable[[optax.GradientTransformation, Any], Program]:
    """Makes training steps of a network, given an optimizer and a quantizer."""
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(batch_size, 28, 28, 1)), jnp.float32)
    labels = jnp.asarray(rng.integers(10, size=batch_size), jnp.int32)
    graph, params, batch_stats = split_model(NETWORKS[network](nnx.Rngs(0), 1.0))

    def loss_fn(weights: Any, batch_stats: Any) -> tuple[jax.Array, Any]:
        model = nnx.merge(graph, weights, batch_stats)
        return squared_hinge(model(images, training=True), labels), nnx.as_pure(nnx.state(model, nnx.BatchStat))

    def program(optimizer: optax.GradientTransformation, quantizer: Any) -> Program:
        optimizer = optax.with_extra_args_support(optimizer)

        def step(params: Any, state: Any, batch_stats: Any) -> tuple[Any, Any, Any]:
            evaluate: Callable[..., Any] = fobt.value_and_grad(loss_fn, quantizer, has_aux=True)
            (_, batch_stats), grads, grad_fn = evaluate(params, state, batch_stats)
            updates, state = optimizer.update(grads, state, params, grad_fn=grad_fn)
            return optax.apply_updates(params, updates), state, batch_stats

        return Program(step, params, optimizer.init(params), batch_stats, carry=3)

    return program


def step_ratios(network: str, batch_size: int, rounds: int) -> list[dict[str, Any]]:
    """Times of training steps in float32 Adam steps, and of two-stage steps in loss-aware ones."""
    program = step_programs(network, batch_size)
    programs = {ADAM_STEP: program(optax.adam(1e-3), fobt.identity())}
    for name, quantizer in QUANTIZERS.items():
        programs[f"loss-aware, {name}"] = program(optax.adam(1e-3), quantizer)
        programs[f"two-stage, {name}"] = program(fobt.forward_backtrack(1e-3, quantizer), quantizer)
    seconds = median_seconds(programs, rounds)
    targets = {"loss-aware, binary": 1.15, "loss-aware, linear(2)": 2.6}
    title = f"{network} step, batch {batch_size}: "
    rows = ratios(title, {k: v for k, v in seconds.items() if not k.startswith("two-stage")}, ADAM_STEP, targets)
    for name in QUANTIZERS:
        pair = {key: seconds[key] for key in (f"loss-aware, {name}", f"two-stage, {name}")}
        rows += ratios(title, pair, f"loss-aware, {name}", {f"two-stage, {name}": 2.15})
    return rows


def instrument_ratios(network: str, batch_size: int, rounds: int) -> list[dict[str, Any]]:
    """Times of training steps whose oscillations are tracked, in the same steps without the instrument."""
    program = step_programs(network, batch_size)
    rows = []
    for name, quantizer in QUANTIZERS.items():
        optimizers = {
            f"loss-aware, {name}": optax.adam(1e-3),
            f"two-stage, {name}": fobt.forward_backtrack(1e-3, quantizer),
        }
        for bare, optimizer in optimizers.items():
            tracked = f"{bare}, tracked"
            programs = {
                bare: program(optimizer, quantizer),
                tracked: program(fobt.track_oscillations(optimizer, quantizer), quantizer),
            }
            seconds = median_seconds(programs, rounds)
            rows += ratios(f"{network} step, batch {batch_size}: ", seconds, bare, {tracked: 1.1})
    return rows


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
