"""What a training job is: every setting, its meaning and its allowed values."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import tyro

import fobt
from experiments.schedules import Schedule

MethodName = Literal["full_precision", "laq", "forward_backtrack"]
QuantizerName = Literal["binary", "ternary", "linear", "logarithmic"]
FIXED_BITS = {"binary": 1, "ternary": 2}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train one network with several methods and seeds, and compare them.

    Attributes:
        job: Name of the job, as on the command line.
        dataset: Key of `experiments.data.DATASETS`.
        network: Key of `experiments.models.NETWORKS`.
        schedules: The learning-rate schedules that the job offers, by name.

    Raises:
        ValueError: A value is out of range; the message is one line.
    """

    job: tyro.conf.Suppress[str]
    dataset: tyro.conf.Suppress[str]
    network: tyro.conf.Suppress[str]
    schedules: tyro.conf.Suppress[Mapping[str, Schedule]]

    methods: tuple[MethodName, ...] = ("full_precision", "laq", "forward_backtrack")
    """Rows of the table; forward_backtrack gives one row for each period in --every."""
    quantizer: QuantizerName | None = None
    """Grid of the quantized weights; by default binary, or linear where --bits is above 1."""
    bits: int | None = None
    """Bits per weight, 2 to 8 for linear and 2 to 5 for logarithmic; binary has 1 and ternary 2."""
    a: float = 0.6
    """Backtracking coefficient of forward_backtrack in (0, 1]; 1 is laq."""
    every: tuple[int, ...] = (1,)
    """Periods of the two-stage update of forward_backtrack; several give several rows."""
    every_unit: Literal["steps", "epochs"] = "steps"
    """What --every counts: every m-th step is two-stage, or every step of epochs m, 2m, ..."""
    weight_bounds: tuple[float, float] = (-1.0, 1.0)
    """Bounds to which the full-precision copies of quantized weights are clipped."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of initial weights and batch order; each method runs once with each."""
    epochs: int
    """Passes over the training images."""
    batch_size: int
    """Images per step; what is left over at the end of an epoch is dropped."""
    schedule: Literal["paper", "laq", "cosine"]
    """Learning-rate schedule: of the paper, of LAQ's published code (mnist jobs), or cosine (digits)."""
    learning_rate: float | None = None
    """Learning rate at the start, instead of the schedule's own."""
    limit: int | None = None
    """Use only so many images of each part of the data set."""
    quick: bool = False
    """Shrink the job to seconds, to see whether it works: 2 epochs, 1 seed, 512 images."""
    output: Path | None = None
    """Folder for the results, new or empty; by default a new one in runs/."""

    def __post_init__(self) -> None:
        for option, value in [("epochs", self.epochs), ("batch-size", self.batch_size), ("limit", self.limit)]:
            _require(value is None or value >= 1, option, "at least 1", value)
        for option, values in [("methods", self.methods), ("seeds", self.seeds), ("every", self.every)]:
            _require(bool(values) and len(set(values)) == len(values), option, "one or more different values", values)
        _require(min(self.every) >= 1, "every", "at least 1", min(self.every))
        _require(min(self.seeds) >= 0, "seeds", "at least 0", min(self.seeds))
        _require(0 < self.a <= 1, "a", "in (0, 1]", self.a)
        _require(self.schedule in self.schedules, "schedule", f"one of {', '.join(self.schedules)}", self.schedule)
        rate = self.learning_rate
        _require(rate is None or 0 < rate < float("inf"), "learning-rate", "positive and finite", rate)
        low, high = self.weight_bounds
        _require(low < high, "weight-bounds", "two increasing numbers", self.weight_bounds)
        self.make_quantizer()

    def make_quantizer(self) -> fobt.Quantizer:
        """The quantizer of --quantizer and --bits."""
        name = self.quantizer or ("binary" if self.bits in (None, 1) else "linear")
        if name in FIXED_BITS:
            _require(self.bits in (None, FIXED_BITS[name]), "bits", f"{FIXED_BITS[name]} for {name} weights", self.bits)
            return fobt.binary() if name == "binary" else fobt.ternary()
        if self.bits is None:
            raise ValueError(f"--bits must be given for {name} weights")
        return fobt.linear(self.bits) if name == "linear" else fobt.logarithmic(self.bits)

    def initial_learning_rate(self) -> float:
        """The learning rate at the start: --learning-rate, or the schedule's own."""
        return self.schedules[self.schedule].learning_rate if self.learning_rate is None else self.learning_rate

    def effective(self) -> "TrainConfig":
        """The configuration that runs: this one, or with `quick` a small one that still meets every program."""
        if not self.quick:
            return self
        return dataclasses.replace(
            self, epochs=2, seeds=self.seeds[:1], limit=512, every=tuple(sorted({min(m, 2) for m in self.every}))
        )


def _require(condition: bool, option: str, allowed: str, value: object) -> None:
    if not condition:
        raise ValueError(f"--{option} must be {allowed}, got {value}")
