"""From float32 weights to few bits: `python -m experiments fine_tuning --output FOLDER [options]`.

Three stages on a vision and on a text network: training in float32, whose weights are read back from an Orbax
checkpoint and from a safetensors file; quantization after training (LAPQ); training at 1 to 4 bits from the float32
weights, with the second moment calibrated on some minibatches, and without. Finished parts are kept.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from rich.console import Console

import fobt
from experiments.configs import make_job
from experiments.core.cli import fail, make_console, parse_options
from experiments.core.config import TrainConfig, require
from experiments.core.evaluation import Evaluator
from experiments.core.fitting import fit
from experiments.core.losses import LOSSES
from experiments.core.network import split_model
from experiments.core.records import read_json, write_json, write_results
from experiments.data import Arrays, load_dataset
from experiments.data.text import even_windows, random_windows
from experiments.methods.rows import Row
from experiments.reporting.saved_run import read_run
from experiments.reporting.statistics import mean_and_deviation
from experiments.reporting.tables import Columns, markdown, spread
from experiments.studies.language import command as language
from experiments.studies.language.training import B1, B2, bits_per_byte, loss_fn, of_layers, read_weights
from experiments.train import run_job

COMMAND = "fine_tuning"
FULL_PRECISION = Row(method="full_precision")
CALIBRATION_BATCHES = 10
NORMS = (2.0, 3.0, 4.0)  # of LAPQ; its published ten take three times as long
# With 0.95, as of the decoder, the loss of ternary weights leaps: few weights of an output have most of its curvature,
# as many pixels are always 0.
VISION_B2 = 0.999
PER_CHANNEL = fobt.per_channel()
# None trains on in float32, for as long as the others.
GRIDS: dict[str, fobt.Quantizer | None] = {
    "float32": None,
    "4 bits": fobt.linear(4, granularity=PER_CHANNEL),
    "ternary": fobt.ternary(granularity=PER_CHANNEL),
    "binary": fobt.binary(granularity=PER_CHANNEL),
}
EXPLANATION = """
Both networks are trained in float32 first: the MLP 784-256-256-10 without normalisation on MNIST for {epochs} epoch(s),
and the decoder of `python -m experiments language` for {language_steps:,} steps. LAPQ searches clipping values on
{images} training images or {windows} windows of text, without gradients. Projected: the float32 weights at the first
step of a training at few bits, with curvature 1 and with the second moment of {calibration} minibatches
(`fobt.calibrate`). Trained: Adam from the float32 weights, {vision_steps:,} and {text_steps:,} steps, learning rate
{vision_rate:g} and {text_rate:g} at the start, along half a cosine; float32 has as many steps. One scale for each
output everywhere; b1 is 0.9, b2 {vision_b2:g} and {text_b2:g}. Means ± standard deviations over {seeds} seed(s) of both
trainings.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FineTuningConfig:
    """Quantize trained networks after training, then train them at few bits."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the trainings."""
    epochs: int = 3
    """Passes over the training images in float32."""
    limit: int | None = None
    """Use only so many images of each part of MNIST."""
    width: float = 1.0
    """Hidden units of the MLP, as a multiple of 256."""
    vision_steps: int = 500
    """Steps of the MLP at few bits."""
    vision_rate: float = 0.003
    """Highest learning rate of the MLP at few bits."""
    text_steps: int = 150
    """Steps of the decoder at few bits."""
    text_rate: float = 0.002
    """Highest learning rate of the decoder at few bits."""
    max_evaluations: int = 60
    """How often the joint search of LAPQ may evaluate its loss."""
    calibration_images: int = 512
    """LAPQ decides on the loss over so many training images."""
    calibration_windows: int = 32
    """LAPQ decides on the loss over so many windows of text."""
    decoder: Path | None = None
    """Folder of a finished `python -m experiments language`, whose float32 decoders are taken; by default one of the
    same options is trained in --output."""
    output: Path
    """Folder for the results."""

    def __post_init__(self) -> None:
        for option in ("vision_steps", "text_steps"):
            require(getattr(self, option) >= 2, option.replace("_", "-"), "at least 2", getattr(self, option))


@dataclasses.dataclass(frozen=True)
class Trained:
    """A network trained in float32, and what its fine-tuning needs.

    Attributes:
        name: In tables, with what is measured.
        folder: Of its fine-tunings.
        params: The float32 weights.
        loss_fn: From weights and what a minibatch holds to a scalar.
        measure: From weights to what the table shows.
        batches: Minibatches of the fine-tuning, each time from the first one on.
        calibration: What LAPQ decides on, arguments of `loss_fn`.
        select: From the quantizer of a matrix to that of the network.
        steps: Steps of the fine-tuning.
        learning_rate: Its highest learning rate.
        b2: Decay rate of the second moment, which is the curvature of the projection.
    """

    name: str
    folder: Path
    params: Any
    loss_fn: Callable[..., jax.Array]
    measure: Callable[[Any], float]
    batches: Callable[[], Iterator[tuple[Any, ...]]]
    calibration: tuple[Any, ...]
    select: Callable[[fobt.Quantizer], Any]
    steps: int
    learning_rate: float
    b2: float


def main(arguments: Sequence[str]) -> None:
    """Trains and quantizes what is missing, and writes fine_tuning.md and fine_tuning.json into the folder."""
    config = parse_options(FineTuningConfig, arguments, COMMAND)
    console = make_console()
    records = []
    for network in NETWORKS:
        for seed, (grid, quantizer) in itertools.product(config.seeds, GRIDS.items()):
            trained = network(config, seed, console)
            path = trained.folder / grid.replace(" ", "_") / "result.json"
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                write_json(path, fine_tune(config, trained, quantizer, path.parent))
            record = {"network": trained.name, "grid": grid, "seed": seed} | read_json(path)
            records.append(record)
            console.print(" ".join(f"{key}: {value}" for key, value in record.items()), highlight=False)
    write(config, records, console)


@functools.lru_cache(maxsize=1)
def vision_network(config: FineTuningConfig, seed: int, console: Console) -> Trained:
    """The MLP from the last Orbax checkpoint of its training."""
    job = vision_job(config)
    try:
        run = read_run(run_job(job, console).path / FULL_PRECISION.name / f"seed-{seed}")
    except ValueError as error:
        fail(str(error), code=2, command=COMMAND)
    dataset, loss = load_dataset(job.dataset, job.limit), LOSSES[job.loss]
    train, (graph, _, batch_stats) = dataset.train, split_model(run.model)
    assert isinstance(train, Arrays)
    evaluator = Evaluator(run.model, loss, dataset.prepare)

    def loss_of_images(weights: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        return loss(nnx.merge(graph, weights, batch_stats)(dataset.prepare(images), training=True), labels)

    def batches() -> Iterator[tuple[Any, ...]]:
        for epoch in itertools.count(job.epochs + 1):
            for batch in train.shuffled_batches(job.batch_size, seed, epoch):
                yield batch.images, batch.labels

    calibration = train.first(config.calibration_images)
    return Trained(
        "MLP: test accuracy %",
        config.output / "mlp_fine_tuned" / f"seed-{seed}",
        run.arrays.state.params,
        loss_of_images,
        lambda weights: 100 * evaluator(weights, batch_stats, dataset.test).accuracy,
        batches,
        (calibration.images, calibration.labels),
        lambda quantizer: quantizer,
        config.vision_steps,
        config.vision_rate,
        VISION_B2,
    )


def vision_job(config: FineTuningConfig) -> TrainConfig:
    """The training of the MLP."""
    return make_job(
        "mnist_plain_mlp",
        methods=(FULL_PRECISION.method,),
        epochs=config.epochs,
        limit=config.limit,
        width=config.width,
        seeds=config.seeds,
        reestimate_batch_stats=0,  # it has no batch normalisation
        output=config.output / "mlp",
    )


@functools.lru_cache(maxsize=1)
def text_network(config: FineTuningConfig, seed: int, console: Console) -> Trained:
    """The decoder from the safetensors file of its training."""
    job = language_job(config)
    text = language.prepare(job, COMMAND)
    language.train(job, text, console)
    length = job.context + 1
    test = even_windows(text.test, length, job.evaluation_windows)
    return Trained(
        "decoder: test bits per byte",
        config.output / "decoder_fine_tuned" / f"seed-{seed}",
        read_weights(language.folder_of(job.output, FULL_PRECISION, seed)),
        loss_fn,
        lambda weights: bits_per_byte(weights, test),
        # Other windows than those of the training in float32.
        lambda: ((windows,) for windows in random_windows(text.train, length, job.batch_size, 1000 + seed)),
        (even_windows(text.train, length, config.calibration_windows),),
        of_layers,
        config.text_steps,
        config.text_rate,
        B2,
    )


NETWORKS = (vision_network, text_network)


def language_job(config: FineTuningConfig) -> language.LanguageConfig:
    """The training of the decoder."""
    rows = ("full precision",)
    if config.decoder is None:
        return language.LanguageConfig(rows=rows, seeds=config.seeds, output=config.output / "decoder")
    settings = read_json(config.decoder / "job.json")
    return language.LanguageConfig(rows=rows, seeds=config.seeds, output=config.decoder, **settings)


def fine_tune(
    config: FineTuningConfig, trained: Trained, grid: fobt.Quantizer | None, folder: Path
) -> dict[str, float]:
    """What the network reaches at every stage; None trains on in float32."""
    result = {"float32": trained.measure(trained.params)}
    quantizer = fobt.full_precision() if grid is None else trained.select(grid)
    rate = optax.cosine_decay_schedule(trained.learning_rate, trained.steps)
    training = fobt.Training(optax.adam(rate, b1=B1, b2=trained.b2), quantizer)
    states = {"unweighted": training.init(trained.params)}
    if grid is not None:
        result["lapq"] = trained.measure(lapq(config, trained, quantizer))
        first = itertools.islice(trained.batches(), CALIBRATION_BATCHES)
        new = states["unweighted"]
        states["calibrated"] = fobt.calibrate(training.optimizer, trained.loss_fn, trained.params, new, first)
    step = jax.jit(training.step(trained.loss_fn), donate_argnums=(0, 1))
    for name, state in states.items():
        fitted = fit(step, trained.params, state, trained.batches(), trained.steps, folder / name)
        result[f"{name}_projection"] = trained.measure(training.weights(trained.params, state))
        result[f"{name}_trained"] = trained.measure(training.weights(fitted.params, fitted.state))
    return result


def lapq(config: FineTuningConfig, trained: Trained, quantizer: Any) -> Any:
    """The weights that LAPQ finds."""
    calibration = tuple(map(jnp.asarray, trained.calibration))

    def calibration_loss(weights: Any) -> jax.Array:
        return trained.loss_fn(weights, *calibration)

    found = fobt.lapq(calibration_loss, trained.params, quantizer, norms=NORMS, max_evaluations=config.max_evaluations)
    return fobt.dequantize(found.quantized)


COLUMNS: Columns = {
    "network": ("network", str),
    "grid": ("weights", str),
    "float32": ("float32", spread(".3f")),
    "lapq": ("LAPQ", spread(".3f")),
    "unweighted_projection": ("projected", spread(".3f")),
    "calibrated_projection": ("projected, calibrated", spread(".3f")),
    "unweighted_trained": ("trained", spread(".3f")),
    "calibrated_trained": ("trained, calibrated", spread(".3f")),
}


def write(config: FineTuningConfig, records: list[dict[str, Any]], console: Console) -> None:
    """Writes the table and the records."""
    rows = []
    for network, grid in dict.fromkeys((record["network"], record["grid"]) for record in records):
        runs = {r["seed"]: r for r in records if (r["network"], r["grid"]) == (network, grid)}
        measured = [key for key in next(iter(runs.values())) if key in COLUMNS and key not in ("network", "grid")]
        spreads = {key: mean_and_deviation({seed: run[key] for seed, run in runs.items()}) for key in measured}
        rows.append({"network": network, "grid": grid} | spreads)
    options = ("epochs", "vision_steps", "vision_rate", "text_steps", "text_rate")
    explanation = EXPLANATION.format(
        language_steps=language_job(config).steps,
        images=config.calibration_images,
        windows=config.calibration_windows,
        calibration=CALIBRATION_BATCHES,
        seeds=len(config.seeds),
        vision_b2=VISION_B2,
        text_b2=B2,
        **{option: getattr(config, option) for option in options},
    )
    table = markdown(COLUMNS, rows)
    write_results(config.output, COMMAND, table + explanation, {"table": rows, "records": records})
    console.out(table, highlight=False)
