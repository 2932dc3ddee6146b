"""What a training job is: every setting, its meaning and its allowed values."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import tyro

import fobt
from experiments.core.schedules import Schedule
from experiments.methods.method import Hyperparameters
from experiments.methods.registry import METHODS
from experiments.methods.rows import Row

if TYPE_CHECKING:  # type checkers take no computed choices
    MethodName: TypeAlias = str
else:
    MethodName = Literal[tuple(name for name, entry in METHODS.items() if entry.title)]
QuantizerName = Literal["binary", "ternary", "linear", "logarithmic"]
FIXED_BITS = {"binary": 1, "ternary": 2}
# What all rows of a table have in common.
SHARED = (
    "job",
    "dataset",
    "network",
    "width",
    "loss",
    "schedule",
    "learning_rate",
    "epochs",
    "batch_size",
    "b1",
    "b2",
    "mu_dtype",
    "weight_bounds",
    "limit",
    "reestimate_batch_stats",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train one network with several methods and seeds, and compare them.

    Attributes:
        job: Name of the job, as on the command line.
        dataset: Key of `experiments.data.DATASETS`.
        network: Key of `experiments.models.NETWORKS`.
        loss: Key of `experiments.core.losses.LOSSES`.
        schedules: The learning-rate schedules that the job offers, by name.

    Raises:
        ValueError: A value is out of range; the message is one line.
    """

    job: tyro.conf.Suppress[str]
    dataset: tyro.conf.Suppress[str]
    network: tyro.conf.Suppress[str]
    loss: tyro.conf.Suppress[str] = "squared_hinge"
    schedules: tyro.conf.Suppress[Mapping[str, Schedule]]

    methods: tuple[MethodName, ...] = ("full_precision", "laq", "two_steps", "forward_backtrack")
    """Rows of the table; forward_backtrack gives one row for each period in --every."""
    quantizer: QuantizerName | None = None
    """Grid of laq and the methods built on it; by default binary, or linear where --bits is above 1."""
    bits: int | None = None
    """Bits per weight: 2 to 8 for linear, 2 to 5 for logarithmic, 1 to 4 for dorefa, 2 to 4 for lsq."""
    solver: Literal["exact", "candidates", "alternating"] | None = None
    """How the projection onto the grid is solved; by default by candidates. Binary weights need none."""
    scales: Literal[2] | None = None
    """2 gives positive and negative ternary weights a scale each."""
    a: float = 0.6
    """Backtracking coefficient of forward_backtrack and optimistic in (0, 1]; 1 is laq."""
    every: tuple[int, ...] = (1,)
    """Periods of the two-stage update of forward_backtrack; several give several rows."""
    every_unit: Literal["steps", "epochs"] = "steps"
    """What --every counts: every m-th step is two-stage, or every step of epochs m, 2m, ..."""
    rho: float = 0.05
    """Radius of the perturbation of sam."""
    freezing_threshold: float = 0.01
    """Oscillation frequency above which laq_freezing freezes a weight at the end of training; from a quarter of the
    training on the threshold falls to it from ten times that."""
    dampening: float = 0.1
    """Weight of the dampening loss of laq_dampening at the end of training; from a quarter of the training on it rises
    to it from 0."""
    budget: Literal["epochs", "gradients"] = "epochs"
    """What is equal: all rows take --epochs, or rows with more gradients per minibatch take fewer epochs, with their
    schedule compressed."""
    weight_bounds: tuple[float, float] = (-1.0, 1.0)
    """Bounds to which the full-precision copies of quantized weights are clipped."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of initial weights and batch order; each method runs once with each."""
    epochs: int
    """Passes over the training images."""
    batch_size: int
    """Images per step; what is left over at the end of an epoch is dropped."""
    width: float = 1.0
    """Hidden units and channels, as a multiple of the paper's."""
    schedule: Literal["paper", "laq", "cosine"]
    """Learning-rate schedule: of the paper, of LAQ's published code, or cosine."""
    learning_rate: float | None = None
    """Learning rate at the start, instead of the schedule's own."""
    b1: float = 0.9
    """Decay rate of the first moment of Adam; 0 is no momentum."""
    b2: float = 0.999
    """Decay rate of the second moment of Adam."""
    mu_dtype: Literal["bfloat16"] | None = None
    """Dtype in which the first moment of Adam is stored, by default that of the parameters, float32."""
    limit: int | None = None
    """Use only so many images of each part of the data set."""
    reestimate_batch_stats: int = 50
    """Before every evaluation replace the running averages of batch normalisation by averages over so many training
    batches, the same ones every time, at the evaluated weights; 0 keeps the running averages, with which the training
    loss moves by factors while the weights stand still."""
    quick: bool = False
    """Shrink the job to seconds, to see whether it works: 2 epochs, 1 seed, 512 images, networks of 1/8 width."""
    checkpoint_seconds: float = 60.0
    """Time between two checkpoints, from which a run that was ended goes on."""
    tensorboard: bool = False
    """Write TensorBoard scalars beside metrics.jsonl."""
    output: Path | None = None
    """Folder for the results, by default a new one in runs/. In the folder of an earlier call of the same job, finished
    runs are kept, unfinished ones go on, and new rows and seeds are added."""

    def __post_init__(self) -> None:
        for option, value in [("epochs", self.epochs), ("batch-size", self.batch_size), ("limit", self.limit)]:
            require(value is None or value >= 1, option, "at least 1", value)
        halved = self.budget == "gradients"
        require(not halved or self.epochs > 1, "epochs", "at least 2 with --budget gradients", self.epochs)
        for option, values in [("methods", self.methods), ("seeds", self.seeds), ("every", self.every)]:
            require(bool(values) and len(set(values)) == len(values), option, "one or more different values", values)
        require(min(self.every) >= 1, "every", "at least 1", min(self.every))
        require(min(self.seeds) >= 0, "seeds", "at least 0", min(self.seeds))
        require(0 < self.a <= 1, "a", "in (0, 1]", self.a)
        require(self.schedule in self.schedules, "schedule", f"one of {', '.join(self.schedules)}", self.schedule)
        for option, rate in [("learning-rate", self.learning_rate), ("rho", self.rho), ("width", self.width)]:
            require(rate is None or 0 < rate < float("inf"), option, "positive and finite", rate)
        for option, rate in [("freezing-threshold", self.freezing_threshold), ("dampening", self.dampening)]:
            require(0 < rate < float("inf"), option, "positive and finite", rate)
        batches = self.reestimate_batch_stats
        require(batches >= 0, "reestimate-batch-stats", "at least 0", batches)
        for option, rate in [("b1", self.b1), ("b2", self.b2)]:
            require(0 <= rate < 1, option, "in [0, 1)", rate)
        require(self.checkpoint_seconds >= 0, "checkpoint-seconds", "at least 0", self.checkpoint_seconds)
        low, high = self.weight_bounds
        require(low < high, "weight-bounds", "two increasing numbers", self.weight_bounds)
        for name in self.methods:
            if bits := METHODS[name].bits:
                least, most = bits
                allowed = f"{least} to {most} for {name}"
                require(self.bits is None or least <= self.bits <= most, "bits", allowed, self.bits)
        if any(METHODS[name].on_grid for name in self.methods):
            self._check_grid()

    @property
    def grid(self) -> str:
        """The grid of --quantizer and --bits, with its bits where it has a choice."""
        name = self._spacing
        return name if name in FIXED_BITS else f"{name}{self.bits}"

    @property
    def _spacing(self) -> str:
        return self.quantizer or ("binary" if self.bits in (None, 1) else "linear")

    def _check_grid(self) -> None:
        name = self._spacing
        if name in FIXED_BITS:
            require(self.bits in (None, FIXED_BITS[name]), "bits", f"{FIXED_BITS[name]} for {name} weights", self.bits)
        elif self.bits is None:
            raise ValueError(f"--bits must be given for {name} weights")
        else:
            getattr(fobt, name)(self.bits)  # raises where the bits are out of range
        require(self.solver is None or name != "binary", "solver", "left out for binary weights", self.solver)
        require(self.scales is None or name == "ternary", "scales", "left out unless weights are ternary", self.scales)

    def initial_learning_rate(self) -> float:
        """The learning rate at the start: --learning-rate, or the schedule's own."""
        return self.schedules[self.schedule].learning_rate if self.learning_rate is None else self.learning_rate

    def rows(self) -> list[Row]:
        """The rows of the table, in the order of --methods."""
        options = {"a": self.a, "rho": self.rho, "threshold": self.freezing_threshold, "dampening": self.dampening}
        options |= {"bits": self.bits or 2}
        halved = self.budget == "gradients"
        rows = []
        for name in self.methods:
            entry = METHODS[name]
            settings: dict[str, Any] = {option: options[option] for option in entry.options}
            if entry.on_grid:
                settings |= {"grid": self.grid, "solver": self.solver, "scales": self.scales}
            row = Row(method=name, equal_gradients=halved and entry.gradients == 2, **settings)
            if entry.periodic:
                units = {every: "steps" if every == 1 else self.every_unit for every in self.every}
                rows += [dataclasses.replace(row, every=every, every_unit=unit) for every, unit in units.items()]
            else:
                rows.append(row)
        return rows

    def hyperparameters(self, row: Row, steps_per_epoch: int) -> Hyperparameters:
        """What the optimizer of a row gets; a shorter training has the same schedule in less time."""
        epochs = row.epochs(self.epochs)
        schedule = self.schedules[self.schedule]
        return Hyperparameters(
            schedule.in_steps(self.initial_learning_rate(), self.epochs, steps_per_epoch * (epochs / self.epochs)),
            self.b1,
            self.b2,
            self.mu_dtype,
            self.weight_bounds,
            epochs * steps_per_epoch,
        )

    def shared(self) -> dict[str, Any]:
        """What all rows of a table have in common."""
        settings = {key: getattr(self, key) for key in SHARED}
        return settings | {"learning_rate": self.initial_learning_rate(), "weight_bounds": list(self.weight_bounds)}

    def effective(self) -> "TrainConfig":
        """The configuration that runs: this one, or with `quick` a small one that still meets every program."""
        if not self.quick:
            return self
        return dataclasses.replace(
            self,
            epochs=2,
            seeds=self.seeds[:1],
            limit=512,
            width=self.width / 8 if self.network != "digits_cnn" else self.width,
            every=tuple(sorted({min(m, 2) for m in self.every})),
        )


def require(condition: bool, option: str, allowed: str, value: object) -> None:
    """Raises ValueError, with the option and what it allows, unless the condition holds."""
    if not condition:
        raise ValueError(f"--{option} must be {allowed}, got {value}")
