"""How long programs take to come to be where trees have many leaves or many shapes, in those of the same with Adam."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fobt
from experiments.costs.timing import PlainProgram, ratios

ADAM_STEP = "float32 Adam step"
# From thousands of weights to almost a million, as in convolution networks and small transformers.
TREES = {
    "300 leaves of 20 shapes": [(64 * (1 + i % 5), 64 * (1 + i // 5 % 4)) for i in range(300)],
    "24 leaves of 24 shapes": [(64 + 32 * i, 96 + 40 * (7 * i % 24)) for i in range(24)],
}
QUANTIZERS = {
    "binary": fobt.binary(),
    "linear(2)": fobt.linear(2),
    "linear(4)": fobt.linear(4),
    "linear(4), per channel": fobt.linear(4, granularity=fobt.per_channel()),
    "linear(4), blocks of 128": fobt.linear(4, granularity=fobt.per_block(128)),
}
TARGETS = dict.fromkeys(QUANTIZERS, 2.0)


def compilation_ratios(rounds: int) -> list[dict[str, Any]]:
    """Times from a Python function of a loss-aware step to its program, in float32 Adam steps."""
    rows = []
    for name, shapes in TREES.items():
        programs = {ADAM_STEP: _step_compiler(shapes, fobt.full_precision())} | {
            grid: _step_compiler(shapes, quantizer) for grid, quantizer in QUANTIZERS.items()
        }
        rows += ratios(f"{name}, loss-aware: ", _median_seconds(programs, rounds), ADAM_STEP, TARGETS)
    return rows


def _median_seconds(programs: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median times, each with no trace of another one in the caches."""
    times: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, program in programs.items():
            jax.clear_caches()
            times[name].append(PlainProgram(program).seconds())
    return {name: float(np.median(values)) for name, values in times.items()}


def _step_compiler(shapes: Sequence[tuple[int, int]], quantizer: Any) -> Callable[[], Any]:
    """Traces and compiles a step on dense layers of these shapes side by side."""
    params = {
        f"layer{i}": {
            "kernel": jax.ShapeDtypeStruct(shape, jnp.float32),
            "bias": jax.ShapeDtypeStruct(shape[1:], jnp.float32),
        }
        for i, shape in enumerate(shapes)
    }
    training = fobt.Training(optax.adam(1e-3), quantizer)
    state = jax.eval_shape(training.optimizer.init, params)
    inputs = jax.ShapeDtypeStruct((8, max(shape[0] for shape in shapes)), jnp.float32)

    def loss_fn(weights: Any, inputs: jax.Array) -> jax.Array:
        outputs = (
            jax.nn.relu(inputs[:, : layer["kernel"].shape[0]] @ layer["kernel"] + layer["bias"][None])
            for layer in weights.values()
        )
        return sum((jnp.mean(jnp.square(x)) for x in outputs), jnp.zeros(()))

    def compile_step() -> Any:
        step = jax.jit(training.step(loss_fn), donate_argnums=(0, 1))
        return step.lower(params, state, inputs).compile()

    return compile_step
