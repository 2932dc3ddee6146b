"""What training steps cost: against a float32 Adam step, a loss-aware step, or the same step without an instrument."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import fobt
from experiments.core.network import split_model, training_pass
from experiments.core.step import take_step
from experiments.costs.timing import Program, least_seconds, ratios
from experiments.methods.baselines import full_precision
from experiments.methods.controls import sam
from experiments.methods.loss_aware import laq
from experiments.methods.method import Hyperparameters, Method
from experiments.methods.registry import METHODS
from experiments.models import NETWORKS
from experiments.models.transformer import Transformer

ADAM_STEP = "float32 Adam step"
QUANTIZERS = {"binary": fobt.binary(), "linear(2)": fobt.linear(2)}
# Without bounds, as Adam has none.
HYPER, OPTIONS = Hyperparameters(1e-3, weight_bounds=None), {"a": 0.6}
MakeProgram: TypeAlias = Callable[..., Program]


@dataclasses.dataclass(frozen=True)
class Timed:
    """A network that is timed.

    Attributes:
        name: How the tables call it.
        make: The network, from random numbers.
        shape: The shape of a batch.
        rounds: The most rounds that it is worth.
    """

    name: str
    make: Callable[[nnx.Rngs], Any]
    shape: tuple[int, ...]
    rounds: int = 25

    @property
    def title(self) -> str:
        """How rows of tables begin."""
        return f"{self.name} step, batch {self.shape[0]}: "


def _of_width_one(name: str) -> Callable[[nnx.Rngs], Any]:
    return lambda rngs: NETWORKS[name](rngs, 1.0)


TIMED = (
    Timed("mlp", _of_width_one("mlp"), (100, 28, 28, 1)),
    Timed("mlp", _of_width_one("mlp"), (1000, 28, 28, 1), rounds=11),
    Timed("lenet5", _of_width_one("lenet5"), (128, 28, 28, 1)),
    Timed("resnet18", _of_width_one("resnet18"), (4, 64, 64, 3), rounds=11),
    Timed("transformer", Transformer, (1, 64, 768), rounds=5),
    Timed("transformer", Transformer, (8, 64, 768), rounds=5),
)


def compared(comparison: Literal["step_costs", "memory_costs"]) -> dict[str, Method]:
    """The methods of a comparison on every quantizer, by name."""
    entries = {name: entry for entry in METHODS.values() if (name := getattr(entry, comparison))}
    return {
        f"{name}, {grid}": entry.make(HYPER, quantizer=quantizer, **{key: OPTIONS[key] for key in entry.options})
        for grid, quantizer in QUANTIZERS.items()
        for name, entry in entries.items()
    }


def step_programs(network: Timed) -> MakeProgram:
    """Makes training steps of a network."""
    inputs = jnp.asarray(np.random.default_rng(0).normal(size=network.shape), jnp.float32)
    graph, params, batch_stats = split_model(network.make(nnx.Rngs(0)))

    def program(method: Method, graph: Any = graph) -> Program:
        """A step of a method."""

        def step(params: Any, state: Any, batch_stats: Any) -> tuple[Any, Any, Any]:
            def loss_fn(weights: Any) -> tuple[jax.Array, Any]:
                outputs, batch_stats_after = training_pass(graph, weights, batch_stats, inputs)
                return jnp.mean(jnp.square(outputs)), batch_stats_after

            evaluate = jax.value_and_grad(loss_fn, has_aux=True)
            (_, batch_stats_after), params, state = take_step(method, params, state, evaluate)
            return params, state, batch_stats_after

        return Program(step, params, method.optimizer.init(params), batch_stats, carry=3)

    return program


def step_ratios(network: Timed, rounds: int) -> list[dict[str, Any]]:
    """Least times of the steps of every method."""
    program = step_programs(network)
    programs = {
        ADAM_STEP: program(full_precision(HYPER)),
        "SAM, float32": program(sam(HYPER, fobt.full_precision(), rho=0.05)),
        "Qwix, int4 weights": program(full_precision(HYPER), _qwix_graph(network)),
    }
    alone = (*programs, *(f"loss-aware, {name}" for name in QUANTIZERS))
    programs |= {name: program(method) for name, method in compared("step_costs").items()}
    seconds = least_seconds(programs, min(rounds, network.rounds))
    targets = {f"loss-aware, {name}": 1.1 for name in QUANTIZERS}
    rows = ratios(network.title, {name: seconds[name] for name in alone}, ADAM_STEP, targets)
    for name in QUANTIZERS:
        group = {key: value for key, value in seconds.items() if key.endswith(f", {name}")}
        targets = {
            key: 1.1 if key.startswith("one gradient") else 2.0 for key in group if not key.startswith("loss-aware")
        }
        rows += ratios(network.title, group, f"loss-aware, {name}", targets)
    for row in rows:
        name, unit = row["what"].removeprefix(network.title), row["unit"]
        row["traffic"] = programs[name].traffic / programs[unit].traffic
    return rows


def branch_ratios(network: Timed, rounds: int) -> list[dict[str, Any]]:
    """Times of one program for both kinds of steps, which `lax.cond` chooses from, in those of two programs."""
    program, quantizer = step_programs(network), fobt.binary()

    def two_stage(every: Any) -> Program:
        optimizer = fobt.forward_backtrack(HYPER.learning_rate, quantizer, every=every)
        return program(Method(optimizer, quantizer))

    kinds = {
        "two-stage, binary": (two_stage(1), two_stage(lambda count: count >= 0)),
        "loss-aware, binary": (program(laq(HYPER, quantizer)), two_stage(lambda count: count < 0)),
    }
    rows = []
    for name, (chosen_before, chosen_inside) in kinds.items():
        programs = {name: chosen_before, f"{name}, chosen by lax.cond": chosen_inside}
        rows += ratios(network.title, least_seconds(programs, min(rounds, network.rounds)), name, {})
    return rows


def instrument_ratios(network: Timed, rounds: int) -> list[dict[str, Any]]:
    """Times of training steps whose oscillations are tracked, in the same steps without the instrument."""
    program = step_programs(network)
    rows = []
    for name, method in compared("step_costs").items():
        if method.lookahead is None:
            tracked = fobt.oscillations.track_oscillations(method.optimizer, method.quantizer)
            programs = {
                name: program(method),
                f"{name}, tracked": program(dataclasses.replace(method, optimizer=tracked)),
            }
            seconds = least_seconds(programs, min(rounds, network.rounds))
            rows += ratios(network.title, seconds, name, {f"{name}, tracked": 1.1})
    return rows


def _qwix_graph(network: Timed) -> Any:
    """The network with Qwix's quantization-aware training of all its weights in 4 bits."""
    import qwix  # slow to import

    rules = [qwix.QtRule(module_path=".*", weight_qtype=jnp.int4)]
    model = qwix.quantize_model(
        network.make(nnx.Rngs(0)), qwix.QtProvider(rules), jnp.zeros(network.shape), training=True
    )
    return split_model(model)[0]
