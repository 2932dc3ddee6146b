"""The compiled programs of a training over several processes: each is one computation over the devices of all."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.core.config import TrainConfig
from experiments.core.evaluation import Evaluator
from experiments.core.losses import LOSSES
from experiments.core.network import abstract_network, make_network, split_model
from experiments.core.programs import Step, TrainState, initial_state, train_step
from experiments.data import Dataset
from experiments.distributed.placement import shardings
from experiments.methods.rows import Row


class ShardedPrograms:
    """What runs on the devices, of one method.

    Args:
        config: The job.
        row: The method.
        dataset: The data.
        mesh: The devices.
        sharded: Whether the state is cut, or replicated.

    Attributes:
        init: Makes state and totals before the first step, each process its part of them.
        example: Shapes and shardings of state and totals.
        totals: Makes the totals before the first step of an epoch.
        steps: For plain (False) and two-stage steps (True): from state, totals and minibatch to state and totals.
        evaluated: From a state to the weights and batch statistics that are evaluated, all of them on every device.
        codes: From a state to the codes of these weights.
        evaluator: Evaluates weights with batch statistics.
    """

    def __init__(self, config: TrainConfig, row: Row, dataset: Dataset, mesh: Mesh, *, sharded: bool):
        steps_per_epoch = len(dataset.train) // config.batch_size
        method = row.build(config.hyperparameters(row, steps_per_epoch))
        loss, model = LOSSES[config.loss], abstract_network(config)
        graph, _, _ = split_model(model)

        def init() -> tuple[TrainState, jax.Array]:
            seed = config.seeds[0]
            _, params, batch_stats = split_model(make_network(config, seed))
            return initial_state(method, params, batch_stats, jnp.uint32(seed)), jnp.zeros(2)

        shapes = jax.eval_shape(init)
        replicated = NamedSharding(mesh, P())
        placed = shardings(shapes[0], mesh, sharded=sharded), replicated
        self.init = jax.jit(init, out_shardings=placed)
        self.example = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, placed
        )
        self.totals = jax.jit(lambda: jnp.zeros(2), out_shardings=replicated)
        self.steps: dict[bool, Step] = {
            kind: jax.jit(
                functools.partial(train_step, graph, loss, dataset, method, kind),
                out_shardings=placed,
                donate_argnums=(0, 1),
            )
            for kind in (False, True)
        }
        self.evaluated = jax.jit(
            lambda state: (method.evaluated(state.params, state.optimizer), state.batch_stats), out_shardings=replicated
        )
        self.codes = jax.jit(lambda state: method.codes(state.params, state.optimizer, jax.random.key(0)))
        self.evaluator = Evaluator(model, loss, dataset.prepare)
