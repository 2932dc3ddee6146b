"""Training over several processes: `python -m experiments distributed --processes 2 4 --output FOLDER`.

The processes run on this machine, connected by JAX's own `jax.distributed` with the collectives of gloo. Each reads its
part of every batch; params and optimizer state are replicated, or each process holds a part of them. The same training
in one process is what all others are compared with. Called again with the same folder, unfinished trainings go on from
their last checkpoint, and finished ones are kept.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import jax
from rich.console import Console

from experiments.configs import make_job
from experiments.core.cli import fail, make_console, parse_options
from experiments.core.config import MethodName, TrainConfig, require
from experiments.core.records import write_results
from experiments.data import Dataset, MissingDataError, load_dataset
from experiments.distributed.comparison import COLUMNS, compare
from experiments.distributed.training import Params, Training
from experiments.distributed.workers import WorkerDiedError, run
from experiments.reporting.tables import markdown

COMMAND = "distributed"
EXPLANATION = """
{job}, {epochs} epoch(s), seed {seed}, the weights after the last step. Processes share every batch, and batch
normalisation is over all of it, so that they compute what one process does with sums in another order. *Sharded* params
are cut, with the optimizer state and the codes, and each process holds a part. Same codes: share of the weights whose
code is that of the first training of the method in one process; largest difference: over all full-precision params.
What the order of sums alone does to these is seen in one process where the rows of each batch are reversed: Adam
magnifies rounding where gradients are close to 0, as for pixels that never change, and codes amplify it. *Killed*: the
last process was ended by SIGKILL after this step, and the training went on from the last checkpoint before it; the
state after the last step, optimizer and batch statistics included, is then compared with that of the training that was
not interrupted.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistributedConfig:
    """Train with several processes on this machine, and compare with the same training in one process."""

    job: Literal["mnist_small_mlp", "mnist_mlp", "mnist_lenet5", "digits"] = "mnist_small_mlp"
    """The job whose network, data and schedule are used."""
    processes: tuple[int, ...] = (2,)
    """How many processes share every batch; several give several rows."""
    params: tuple[Params, ...] = get_args(Params)
    """Whether every process holds all params and optimizer state, or its part of them; both give two rows."""
    methods: tuple[MethodName, ...] = ("laq", "forward_backtrack")
    """What is trained."""
    every: int = 1
    """Period of the two-stage update of forward_backtrack, in steps."""
    epochs: int | None = None
    """Passes over the training images, instead of the job's own."""
    batch_size: int | None = None
    """Images per step, instead of the job's own."""
    seed: int = 0
    """Seed of initial weights and batch order."""
    width: float = 1.0
    """Hidden units and channels, as a multiple of the job's."""
    limit: int | None = None
    """Use only so many images of each part of the data set."""
    checkpoint_steps: int = 100
    """Steps of an epoch between two checkpoints; there is always one at its end."""
    kill_after: int | None = None
    """For each number of processes, train the last row once more, kill a process after so many steps, and go on."""
    output: Path
    """Folder for the results: new, or of an earlier call with the same settings."""

    def __post_init__(self) -> None:
        batch_size = self.training_config().batch_size
        for option, value in [("processes", self.processes), ("params", self.params)]:
            require(bool(value) and len(set(value)) == len(value), option, "one or more different values", value)
        for count in self.processes:
            allowed = f"at least 2 and divide the batch size {batch_size}"
            require(count >= 2 and batch_size % count == 0, "processes", allowed, count)
        require(self.checkpoint_steps >= 1, "checkpoint-steps", "at least 1", self.checkpoint_steps)

    def training_config(self) -> TrainConfig:
        """What all trainings have in common."""
        return make_job(
            self.job,
            epochs=self.epochs,
            batch_size=self.batch_size,
            methods=self.methods,
            every=(self.every,),
            seeds=(self.seed,),
            width=self.width,
            limit=self.limit,
            # Adam's own averages: with shorter ones the differences of rounding between processes grow faster.
            learning_rate=0.01,
            b1=0.9,
            b2=0.999,
            reestimate_batch_stats=0,  # its evaluation has the running averages
            output=self.output,
        )

    def trainings(self, processes: int) -> list[Training]:
        """All trainings with a number of processes."""
        config = self.training_config()
        trainings = [
            Training(config=config, row=row, processes=processes, params=params, checkpoint_steps=self.checkpoint_steps)
            for params in (self.params if processes > 1 else ("replicated",))
            for row in config.rows()
        ]
        if processes == 1:
            trainings += [dataclasses.replace(training, reversed_rows=True) for training in trainings]
        elif self.kill_after is not None:
            trainings.append(dataclasses.replace(trainings[-1], killed_after=self.kill_after))
        return trainings


def main(arguments: Sequence[str]) -> None:
    """Trains, and writes distributed.md and distributed.json into the folder."""
    jax.config.update("jax_platforms", "cpu")
    console = make_console()
    try:
        config = parse_options(DistributedConfig, arguments, COMMAND)
        dataset = load(config)
        trainings = [config.trainings(count) for count in (1, *config.processes)]
        for some in trainings:
            train_all(some, config.output, console)
    except WorkerDiedError as error:
        fail(f"{error}; the same command goes on from the last checkpoint", code=1, command=COMMAND)
    except MissingDataError as error:
        fail(str(error), code=1, command=COMMAND)
    except (OSError, ValueError) as error:
        fail(str(error), code=2, command=COMMAND)
    except KeyboardInterrupt:
        fail("interrupted; the same command goes on from the last checkpoint", code=130, command=COMMAND)
    write(config, compare(list(itertools.chain(*trainings)), dataset), console)


def load(config: DistributedConfig) -> Dataset:
    """The data, if the options go with it.

    Raises:
        MissingDataError: It is not on this machine.
        ValueError: An option is out of range; the message is one line.
    """
    settings = config.training_config()
    dataset = load_dataset(settings.dataset, settings.limit)
    steps_per_epoch = len(dataset.train) // settings.batch_size
    allowed = f"at most {len(dataset.train)}, the training images"
    require(steps_per_epoch > 0, "batch-size", allowed, settings.batch_size)
    if config.kill_after is not None:
        first, last = min(config.checkpoint_steps, steps_per_epoch), settings.epochs * steps_per_epoch
        allowed = f"more than {first}, where the first checkpoint is, and less than {last}, the steps of the training"
        require(first < config.kill_after < last, "kill-after", allowed, config.kill_after)
    return dataset


def train_all(trainings: Sequence[Training], folder: Path, console: Console) -> None:
    """Does what is left of some trainings with the same number of processes.

    Raises:
        WorkerDiedError: A process ended early, and not as a training wanted it.
    """
    todo = unfinished(trainings)
    if not todo:
        return
    try:
        run(todo, folder)
    except WorkerDiedError as error:
        todo = unfinished(todo)
        if not todo or todo[0].killed_after is None:
            raise
        console.print(f"{error}; they start again", highlight=False, soft_wrap=True)
        run(todo, folder)


def unfinished(trainings: Sequence[Training]) -> list[Training]:
    """The trainings that have no result yet."""
    return [training for training in trainings if training.folder().read_result() is None]


def write(config: DistributedConfig, records: list[dict[str, Any]], console: Console) -> None:
    """Writes table and records."""
    table = markdown(COLUMNS, records)
    settings = config.training_config()
    explanation = EXPLANATION.format(job=settings.job, epochs=settings.epochs, seed=config.seed)
    write_results(config.output, COMMAND, f"{table}{explanation}", {"trainings": records})
    console.out(table, highlight=False)
