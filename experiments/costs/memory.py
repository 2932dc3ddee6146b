"""What training steps need of memory and of the compiler, as the compiled programs say: no step runs here."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import fobt
from experiments.core.losses import squared_hinge
from experiments.core.network import split_model, training_pass
from experiments.core.step import take_step
from experiments.costs.steps import ADAM_STEP, HYPER, OPTIONS, compared
from experiments.costs.timing import PlainProgram, ratios
from experiments.methods.baselines import full_precision
from experiments.methods.forward_backtrack import forward_backtrack
from experiments.methods.loss_aware import laq
from experiments.methods.method import Method
from experiments.methods.one_gradient import optimistic
from experiments.models import NETWORKS

WHOLE_BATCH = "the same step on the whole batch"
ACCUMULATED = ("loss-aware, binary", "two-stage, binary", "two-stage, linear(2)")


def methods() -> dict[str, Method]:
    """The methods that are compared, by name."""
    return {ADAM_STEP: full_precision(HYPER)} | compared("memory_costs")


def memory_ratios(network: str, batch_size: int, rounds: int) -> list[dict[str, Any]]:
    """Temporary memory of training steps, and the time from a Python function to its program, in float32 Adam steps."""
    steps = {name: step_compiler(network, batch_size, method) for name, method in methods().items()}
    # These compilations also warm up what the timed ones share.
    memory = {name: temporary_bytes(compile_step()) for name, compile_step in steps.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, compile_step in steps.items():
            times[name].append(PlainProgram(compile_step).seconds())
    seconds = {name: float(np.median(values)) for name, values in times.items()}
    title = f"{network} step, batch {batch_size}, "
    return ratios(f"{title}temporary memory: ", memory, ADAM_STEP, {}, "bytes") + ratios(
        f"{title}compilation: ", seconds, ADAM_STEP, {}
    )


def accumulation_ratios(
    network: str, batch_size: int, microbatches: Sequence[int] = (1, 4, 10)
) -> list[dict[str, Any]]:
    """Temporary memory of steps that accumulate gradients over parts of the batch, in steps that do not.

    Both gradients of a two-stage step are accumulated, by `optax.microbatching`. One part is the whole batch in a loop
    of one round: what accumulation costs by itself.
    """
    rows = []
    for name in ACCUMULATED:
        method = methods()[name]
        memory = {WHOLE_BATCH: temporary_bytes(step_compiler(network, batch_size, method)())}
        for count in microbatches:
            step = step_compiler(network, batch_size, method, batch_size // count)
            memory[f"{name}, {count} × {batch_size // count}"] = temporary_bytes(step())
        rows += ratios(f"{network} step, batch {batch_size}, temporary memory: ", memory, WHOLE_BATCH, {}, "bytes")
    return rows


def state_ratios(network: str) -> list[dict[str, Any]]:
    """Bytes of optimizer state per parameter, single numbers aside, against those of Adam in float32."""
    params = split_model(nnx.eval_shape(lambda: NETWORKS[network](nnx.Rngs(0), 1.0)))[1]
    bfloat16, binary = dataclasses.replace(HYPER, mu_dtype="bfloat16"), fobt.binary()
    compared_states = {
        ADAM_STEP: full_precision(HYPER),
        "two-stage": forward_backtrack(HYPER, binary, **OPTIONS),
        "optimistic": optimistic(HYPER, binary, **OPTIONS),
        "loss-aware, first moment in bfloat16": laq(bfloat16, binary),
        "two-stage, first moment in bfloat16": forward_backtrack(bfloat16, binary, **OPTIONS),
        "optimistic, first moment in bfloat16": optimistic(bfloat16, binary, **OPTIONS),
    }

    def state_bytes(method: Method) -> int:
        leaves = jax.tree.leaves(jax.eval_shape(method.optimizer.init, params))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves if leaf.ndim)

    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    state = {name: state_bytes(method) for name, method in compared_states.items()}
    rows = ratios("optimizer state: ", state, ADAM_STEP, {}, "bytes")
    return [row | {"bytes_per_parameter": row["bytes"] / parameters} for row in rows]


def step_compiler(
    network: str, batch_size: int, method: Method, microbatch_size: int | None = None
) -> Callable[[], jax.stages.Compiled]:
    """A function that traces and compiles the training step of a network on 28×28 images, each time anew.

    Args:
        network: Key of `experiments.models.NETWORKS`.
        batch_size: Images per step.
        method: How to train.
        microbatch_size: Images per gradient, where gradients are accumulated.
    """
    graph, params, batch_stats = split_model(nnx.eval_shape(lambda: NETWORKS[network](nnx.Rngs(0), 1.0)))
    state = jax.eval_shape(method.optimizer.init, params)
    images = jax.ShapeDtypeStruct((batch_size, 28, 28, 1), jnp.float32)
    labels = jax.ShapeDtypeStruct((batch_size,), jnp.int32)

    def loss_fn(weights: Any, batch_stats: Any, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, Any]:
        scores, batch_stats = training_pass(graph, weights, batch_stats, images)
        return squared_hinge(scores, labels), batch_stats

    accumulated = optax.microbatching.microbatch(
        jax.value_and_grad(loss_fn, has_aux=True),
        argnums=(2, 3),
        microbatch_size=microbatch_size,
        accumulator=optax.microbatching.AccumulationType.MEAN,
    )

    def compile_step() -> jax.stages.Compiled:
        def step(params: Any, state: Any, batch_stats: Any, images: Any, labels: Any) -> tuple[Any, Any, Any]:
            def evaluate(weights: Any) -> tuple[Any, Any]:
                return accumulated(weights, batch_stats, images, labels)

            (_, new_batch_stats), params, state = take_step(method, params, state, evaluate)
            return params, state, new_batch_stats

        # A function that was not seen before, so that no cache has its program.
        return jax.jit(step, donate_argnums=(0, 1, 2)).lower(params, state, batch_stats, images, labels).compile()

    return compile_step


def temporary_bytes(compiled: jax.stages.Compiled) -> int:
    """The most memory that a program holds at a time besides its arguments and results, as the compiler plans it."""
    plan = compiled.memory_analysis()
    assert plan is not None
    return plan.temp_size_in_bytes
