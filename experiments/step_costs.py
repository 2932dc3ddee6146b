"""What training steps cost: against a float32 Adam step, a loss-aware step, or the same step without an instrument."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
import qwix
from flax import nnx

import fobt
from experiments.models import NETWORKS
from experiments.steps import split_model
from experiments.timing import Program, median_seconds, ratios
from experiments.transformer import Transformer

ADAM_STEP = "float32 Adam step"
QUANTIZERS = {"binary": fobt.binary(), "linear(2)": fobt.linear(2)}
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


def step_programs(network: Timed) -> MakeProgram:
    """Makes training steps of a network."""
    inputs = jnp.asarray(np.random.default_rng(0).normal(size=network.shape), jnp.float32)
    graph, params, batch_stats = split_model(network.make(nnx.Rngs(0)))

    def program(
        optimizer: optax.GradientTransformation,
        quantizer: Any = fobt.full_precision(),  # noqa: B008 - immutable
        *,
        looks_ahead: bool = False,
        graph: Any = graph,
    ) -> Program:
        """A step of an optimizer at quantized weights, or with `looks_ahead` at the trial ones."""
        optimizer = optax.with_extra_args_support(optimizer)

        def loss_fn(weights: Any, batch_stats: Any) -> tuple[jax.Array, Any]:
            model = nnx.merge(graph, weights, batch_stats)
            loss = jnp.mean(jnp.square(model(inputs, training=True)))
            return loss, nnx.as_pure(nnx.state(model, nnx.BatchStat))

        def step(params: Any, state: Any, batch_stats: Any) -> tuple[Any, Any, Any]:
            if looks_ahead:
                weights = fobt.quantized_trial_params(params, state, quantizer, optimizer)
                (_, batch_stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(weights, batch_stats)
                updates, state = optimizer.update(grads, state, params)
            else:
                evaluate: Callable[..., Any] = fobt.value_and_grad(loss_fn, quantizer, has_aux=True)
                (_, batch_stats), grads, grad_fn = evaluate(params, state, batch_stats)
                updates, state = optimizer.update(grads, state, params, grad_fn=grad_fn)
            return optax.apply_updates(params, updates), state, batch_stats

        return Program(step, params, optimizer.init(params), batch_stats, carry=3)

    return program


def step_ratios(network: Timed, rounds: int) -> list[dict[str, Any]]:
    """Times of the steps of every method."""
    program = step_programs(network)
    adam = optax.adam(1e-3)
    programs = {
        ADAM_STEP: program(adam),
        "SAM, float32": program(_sam(adam)),
        "Qwix, int4 weights": program(adam, graph=_qwix_graph(network)),
    }
    for name, quantizer in QUANTIZERS.items():
        two_stage = fobt.forward_backtrack(1e-3, quantizer)
        programs[f"loss-aware, {name}"] = program(adam, quantizer)
        programs[f"one gradient, Nesterov, {name}"] = program(adam, quantizer, looks_ahead=True)
        programs[f"one gradient, optimistic, {name}"] = program(fobt.optimistic(two_stage), quantizer, looks_ahead=True)
        programs[f"two-stage, {name}"] = program(two_stage, quantizer)
    seconds = median_seconds(programs, min(rounds, network.rounds))
    alone = (ADAM_STEP, "SAM, float32", "Qwix, int4 weights", *(f"loss-aware, {name}" for name in QUANTIZERS))
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

    def method(every: Any) -> Program:
        return program(fobt.forward_backtrack(1e-3, quantizer, every=every), quantizer)

    kinds = {
        "two-stage, binary": (method(1), method(lambda count: count >= 0)),
        "loss-aware, binary": (program(optax.adam(1e-3), quantizer), method(lambda count: count < 0)),
    }
    rows = []
    for name, (chosen_before, chosen_inside) in kinds.items():
        programs = {name: chosen_before, f"{name}, chosen by lax.cond": chosen_inside}
        rows += ratios(network.title, median_seconds(programs, min(rounds, network.rounds)), name, {})
    return rows


def instrument_ratios(network: Timed, rounds: int) -> list[dict[str, Any]]:
    """Times of training steps whose oscillations are tracked, in the same steps without the instrument."""
    program = step_programs(network)
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
                tracked: program(fobt.oscillations.track_oscillations(optimizer, quantizer), quantizer),
            }
            seconds = median_seconds(programs, min(rounds, network.rounds))
            rows += ratios(network.title, seconds, bare, {tracked: 1.1})
    return rows


def _sam(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Sharpness-aware minimisation as Optax has it, both gradients in one update."""
    uphill = optax.chain(optax.contrib.normalize(), optax.sgd(0.05))
    sam = optax.contrib.sam(optimizer, uphill, opaque_mode=True)

    def update(updates: Any, state: Any, params: Any = None, *, grad_fn: Any, **_: Any) -> tuple[Any, Any]:
        return sam.update(updates, state, params, grad_fn=lambda weights, _: grad_fn(weights))

    return optax.GradientTransformationExtraArgs(sam.init, update)


def _qwix_graph(network: Timed) -> Any:
    """The network with Qwix' quantization-aware training of all its weights in 4 bits."""
    rules = [qwix.QtRule(module_path=".*", weight_qtype=jnp.int4)]
    model = qwix.quantize_model(
        network.make(nnx.Rngs(0)), qwix.QtProvider(rules), jnp.zeros(network.shape), training=True
    )
    return split_model(model)[0]
