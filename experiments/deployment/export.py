"""Writes the network of a finished run to a small file: `python -m experiments export RUN_FOLDER [options]`.

The folder is that of one row and seed, such as FOLDER/laq-binary/seed-0. With --verify the file is read again, the
network runs in the runtime of the format over the whole test set, and its predictions are compared with those of JAX.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import fobt
from experiments.core.cli import fail, parse_options
from experiments.core.evaluation import EVALUATION_BATCH
from experiments.core.network import split_model
from experiments.core.records import environment, write_json
from experiments.data import Dataset, MissingDataError, load_dataset
from experiments.deployment.folding import Inference, fold, with_rounded_activations
from experiments.deployment.trained import Trained, read_trained
from experiments.models.feed_forward import FeedForward

COMMAND = "export"
SUFFIXES = {"safetensors": ".safetensors", "onnx": ".onnx", "litert": ".tflite"}
IMAGE_SHAPES = {
    "digits": (8, 8, 1),
    "mnist": (28, 28, 1),
    "cifar10_whitened": (32, 32, 3),
    "cifar10_augmented": (32, 32, 3),
    "svhn": (32, 32, 3),
    "imagenet": (224, 224, 3),
}
Form: TypeAlias = Literal["portable", "fast", "integers"]
CALIBRATION_BATCHES, CALIBRATION_BATCH = 10, 100
Scores: TypeAlias = Callable[[np.ndarray], np.ndarray]  # from prepared images to scores


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Write the network of a finished run to a small file."""

    folder: Annotated[Path, tyro.conf.Positional]
    """Folder of one row and seed of `experiments.train`."""
    format: Literal["safetensors", "onnx", "litert"] = "onnx"
    """safetensors has the codes of the network as it is; in the others batch normalisation is folded into scales."""
    form: Form = "portable"
    """What runs: float32 as in JAX; integers where the runtime is faster with them, and activations of 8 bits; or
    integers only, with activations of 8 bits in ranges of training images, in feed-forward networks. Not for
    safetensors."""
    batch: int | None = None
    """Images at a time in an onnx file, by default any number; the fast form has operators for one and for many."""
    base3: bool = False
    """Store ternary weights five to a byte, 1.6 bits each, instead of in 2 bits; not for litert or the fast form."""
    verify: bool = False
    """Run the file over the test set and compare it with JAX."""
    output: Path | None = None
    """The file; by default network.onnx, .safetensors or .tflite in the folder. A JSON report is written beside it."""


def main(arguments: Sequence[str]) -> None:
    """Exports, prints the report, and writes it as JSON."""
    config = parse_options(ExportConfig, arguments, COMMAND)
    if config.base3 and (config.format == "litert" or config.form != "portable"):
        fail("--base3 must be left out for litert and the fast form, got --base3", code=2, command=COMMAND)
    if config.form != "portable" and config.format == "safetensors":
        reason = f"--form must be portable for safetensors, which only has codes, got {config.form}"
        fail(reason, code=2, command=COMMAND)
    if config.batch is not None and (config.format != "onnx" or config.batch < 1):
        fail(f"--batch must be at least 1, and only for onnx, got {config.batch}", code=2, command=COMMAND)
    try:
        trained = read_trained(config.folder)
        is_read = config.verify or config.form == "integers"
        dataset = load_dataset(trained.run.config.dataset, trained.run.config.limit) if is_read else None
        network = shipped(trained, config.form, dataset)
    except (ValueError, MissingDataError) as error:
        fail(str(error), code=2, command=COMMAND)
    path = config.output or config.folder / f"network{SUFFIXES[config.format]}"
    try:
        scores = WRITERS[config.format](path, trained, network, config)
    except (OSError, ImportError) as error:
        fail(f"cannot write {path}: {error}", code=2, command=COMMAND)
    report = {
        "file": str(path),
        "format": config.format,
        "form": config.form,
        "row": trained.run.row.name,
        **sizes(path, trained.quantized),
    }
    if config.verify and dataset is not None:
        unfolded = Inference(split_model(trained.run.model)[0], trained.quantized, trained.batch_stats)
        reference = jax_scores(network if config.form == "integers" else unfolded)
        report |= compare(trained, dataset, scores, reference)
    print("\n".join(lines(report)))
    write_json(path.with_name(path.name + ".json"), report | {"environment": environment()})


def shipped(trained: Trained, form: Form, dataset: Dataset | None) -> Inference:
    """The network with its normalisation folded, and with activations of 8 bits in the form of integers.

    Raises:
        ValueError: The network has no such activations; the message is one line.
    """
    network = fold(trained.run.model, trained.quantized, trained.batch_stats)
    if form != "integers":
        return network
    if dataset is None or not isinstance(trained.run.model, FeedForward):
        raise ValueError("--form integers must be for a feed-forward network with normalisation")
    batches = itertools.islice(dataset.train.batches(CALIBRATION_BATCH), CALIBRATION_BATCHES)
    return with_rounded_activations(network, (dataset.prepare(batch.images) for batch in batches))


def write_onnx(path: Path, trained: Trained, network: Inference, config: ExportConfig) -> Scores:
    """Writes an ONNX file; the scores are those of onnxruntime on CPU."""
    import onnx
    import onnxruntime

    size = "batch" if config.batch is None else config.batch
    shape = jax.export.symbolic_shape(f"{size}, {', '.join(map(str, image_shape(trained)))}")
    model = fobt.export.to_onnx(
        network,
        network.quantized,
        jax.ShapeDtypeStruct(shape, jnp.float32),
        form="portable" if config.form == "portable" else "fast",
        base3=config.base3,
    )
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())
    if config.form != "portable":
        print(fobt.export.operator_report(model))
    # With default options, as users run it.
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return in_batches(lambda images: session.run(None, {"input": images})[0], config.batch)


def in_batches(scores: Scores, size: int | None) -> Scores:
    """The scores of any number of images from those of `size` at a time, or of any number where it is None."""
    if size is None:
        return scores

    def scores_of_all(images: np.ndarray) -> np.ndarray:
        padded = np.pad(images, ((0, -len(images) % size), *((0, 0),) * (images.ndim - 1)))
        parts = [scores(padded[begin : begin + size]) for begin in range(0, len(padded), size)]
        return np.concatenate(parts)[: len(images)]

    return scores_of_all


def write_safetensors(path: Path, trained: Trained, network: Inference, config: ExportConfig) -> Scores:
    """Writes a packed file; the scores are those of JAX with what is read from it."""
    packed = fobt.packed.pack(trained.quantized, base3=config.base3)
    fobt.packed.save_packed(path, packed, batch_stats=trained.batch_stats, metadata={"row": trained.run.row.label})
    loaded = fobt.packed.load_packed(path)
    return jax_scores(Inference(split_model(trained.run.model)[0], loaded.quantized(), loaded.batch_stats))


def write_litert(path: Path, trained: Trained, network: Inference, config: ExportConfig) -> Scores:
    """Writes a LiteRT file that takes one image; the scores are those of its interpreter on CPU."""
    image = jax.ShapeDtypeStruct((1, *image_shape(trained)), jnp.float32)
    form: Literal["portable", "fast"] = "portable" if config.form == "portable" else "fast"
    model = fobt.export.to_litert(network, network.quantized, image, form=form)
    path.write_bytes(model)
    if config.form != "portable":
        print(fobt.export.operator_report(model))
    from ai_edge_litert.interpreter import Interpreter

    run = Interpreter(str(path)).get_signature_runner()
    return in_batches(lambda images: run(input=images)["output"], 1)


WRITERS: dict[str, Callable[[Path, Trained, Inference, ExportConfig], Scores]] = {
    "safetensors": write_safetensors,
    "onnx": write_onnx,
    "litert": write_litert,
}


def image_shape(trained: Trained) -> tuple[int, int, int]:
    """Height, width and channels of prepared images."""
    return IMAGE_SHAPES[trained.run.config.dataset]


def jax_scores(network: Inference) -> Scores:
    """The scores of a network in JAX."""
    weights = fobt.dequantize(network.quantized)
    program = jax.jit(network)
    return lambda images: np.asarray(program(weights, images))


def sizes(path: Path, quantized: Any) -> dict[str, Any]:
    """The size of the file, and of its weights in float32."""
    leaves = [leaf for leaf in jax.tree.leaves(fobt.dequantize(quantized)) if leaf.ndim >= 2]
    weights, size = sum(leaf.size for leaf in leaves), path.stat().st_size
    return {"bytes": size, "weights": weights, "bits_per_weight": 8 * size / weights, "float32_bytes": 4 * weights}


def compare(trained: Trained, dataset: Dataset, scores: Scores, reference: Scores) -> dict[str, Any]:
    """Agreement with JAX over the test set, and accuracies."""
    images = same = right = expected_right = 0
    difference = 0.0
    for batch in dataset.test.batches(EVALUATION_BATCH):
        prepared = np.asarray(dataset.prepare(batch.images))
        got, expected = scores(prepared), reference(prepared)
        predicted, expected_classes = got.argmax(-1), expected.argmax(-1)
        images += len(batch)
        same += int(np.sum(predicted == expected_classes))
        right += int(np.sum(predicted == batch.labels))
        expected_right += int(np.sum(expected_classes == batch.labels))
        difference = max(difference, float(np.max(np.abs(got - expected))))
    return {
        "test_images": images,
        "same_predictions": same,
        "largest_score_difference": difference,
        "accuracy": right / images,
        "jax_accuracy": expected_right / images,
        "training_accuracy": trained.run.result["test_accuracy"],
    }


def lines(report: dict[str, Any]) -> list[str]:
    """The report as text."""
    text = [
        f"{report['file']}: {report['bytes']:,} bytes, {report['bits_per_weight']:.2f} bits for each of "
        f"{report['weights']:,} weights; these alone take {report['float32_bytes']:,} bytes in float32"
    ]
    if "accuracy" in report:
        text += [
            f"same predictions as JAX: {report['same_predictions']:,} of {report['test_images']:,} test images; scores "
            f"differ by at most {report['largest_score_difference']:.1e}",
            f"test accuracy: {100 * report['accuracy']:.2f} % from the file, {100 * report['jax_accuracy']:.2f} % in "
            f"JAX, {100 * report['training_accuracy']:.2f} % at the end of the training",
        ]
    return text
