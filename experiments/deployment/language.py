"""A language model as files: `python -m experiments language_export FOLDER --output FILES [options]`.

The first folder is that of `python -m experiments language`. For each row and format two files are written: one from
windows of bytes to the logits of all their positions, and one that takes a byte at a time, with keys and values of
those before it as inputs and outputs. Both run over held-out text, are compared with JAX, and the second one writes a
text.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import fobt
from experiments.core.cli import fail, make_console, parse_options
from experiments.core.records import read_json, write_results
from experiments.data import MissingDataError
from experiments.data.text import TEXTS, even_windows
from experiments.models import decoder
from experiments.models.generation import sample
from experiments.reporting.tables import Columns, markdown

COMMAND = "language_export"
SUFFIXES = {"onnx": ".onnx", "litert": ".tflite"}
Run: TypeAlias = Callable[..., list[np.ndarray]]  # a function in a runtime, from and to flat lists of arrays


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageExportConfig:
    """Write the decoders of a finished job to files, and compare them with JAX."""

    folder: Annotated[Path, tyro.conf.Positional]
    """Folder of `python -m experiments language`."""
    rows: tuple[str, ...] = ("full_precision", "laq-linear4", "laq-ternary", "laq-binary")
    """Names of rows, as folders have them."""
    seed: int = 0
    """Seed of the trainings."""
    formats: tuple[Literal["onnx", "litert"], ...] = ("onnx", "litert")
    """In onnx batch and length of windows are free; in litert they are those of the training, and one window."""
    windows: int = 64
    """Windows of test text over which the files run."""
    output: Path
    """Folder for the files and the table; files of the same name are replaced."""


def main(arguments: Sequence[str]) -> None:
    """Writes two files for each row and format, and files.md and files.json."""
    config = parse_options(LanguageExportConfig, arguments, COMMAND)
    records = []
    for format_ in config.formats:
        for row in config.rows:
            run = config.folder / row / f"seed-{config.seed}"
            try:
                job = read_json(config.folder / "job.json")
                quantized = fobt.packed.load_packed(run / "weights.safetensors").quantized()
                text = TEXTS[job["text"]]()
            except (OSError, KeyError, MissingDataError) as error:
                fail(f"{run} is no finished training of a language model: {error}", code=2, command=COMMAND)
            windows = even_windows(text.test, job["context"] + 1, config.windows)
            config.output.mkdir(parents=True, exist_ok=True)
            try:
                report = export(quantized, format_, windows, config.output / row)
            except ImportError as error:
                fail(f"cannot write {format_}: {error}", code=2, command=COMMAND)
            records.append({"row": row, "format": format_} | report)
    table = markdown(COLUMNS, records)
    samples = "\n".join(f"### {r['row']}, {r['format']}\n\n```text\n{r['text']}\n```\n" for r in records)
    write_results(config.output, "files", f"{table}\n{samples}", {"files": records})
    make_console().out(table, highlight=False)


def export(quantized: Any, format_: str, windows: np.ndarray, stem: Path) -> dict[str, Any]:
    """Writes both files and compares them with JAX.

    Args:
        quantized: Weights of a decoder, codes and scales where they are quantized.
        format_: Key of `SUFFIXES`.
        windows: int32 of shape (n, length + 1), as training has them.
        stem: Path of the files without `.onnx` or `_step.onnx`.
    """
    length = windows.shape[1] - 1
    tokens, targets = windows[:, :-1], windows[:, 1:]
    weights = fobt.dequantize(quantized)
    symbols = jax.export.symbolic_shape("batch, length") if format_ == "onnx" else (1, length)
    batch = symbols[0]
    cache = jax.eval_shape(lambda: decoder.init_cache(weights, 1, length))
    spec = {k: jax.ShapeDtypeStruct((leaf.shape[0], batch, *leaf.shape[2:]), leaf.dtype) for k, leaf in cache.items()}
    paths = [stem.with_name(f"{stem.name}{end}{SUFFIXES[format_]}") for end in ("", "_step")]
    write, load = FORMATS[format_]
    paths[0].write_bytes(write(decoder.logits, quantized, jax.ShapeDtypeStruct(symbols, jnp.int32)))
    one, place = jax.ShapeDtypeStruct((batch,), jnp.int32), jax.ShapeDtypeStruct((), jnp.int32)
    paths[1].write_bytes(write(decoder.step, quantized, one, spec, place))
    runs = [load(path) for path in paths]

    expected = np.asarray(jax.jit(decoder.logits)(weights, tokens))
    parts = [tokens] if format_ == "onnx" else np.split(tokens, len(tokens))
    whole = np.concatenate([runs[0](part)[0] for part in parts])
    stepped = cached_logits(runs[1], weights, tokens[:1])
    likelihoods = np.take_along_axis(np.asarray(jax.nn.log_softmax(whole)), targets[..., None], axis=-1)
    text = sample(functools.partial(next_byte, runs[1]), flat_cache(weights, 1, length), length)
    whole_bytes, step_bytes = (path.stat().st_size for path in paths)
    return {
        "bytes": whole_bytes,
        "step_bytes": step_bytes,
        "share": whole_bytes / sum(leaf.nbytes for leaf in jax.tree.leaves(weights)),
        "predictions": targets.size,
        "same_predictions": int(np.sum(whole.argmax(-1) == expected.argmax(-1))),
        "largest_difference": float(np.max(np.abs(whole - expected))),
        "largest_difference_of_steps": float(np.max(np.abs(stepped - expected[:1]))),
        "bits_per_byte": -float(np.mean(likelihoods)) / float(np.log(2)),
        "text": text,
    }


def cached_logits(run: Run, weights: Any, tokens: np.ndarray) -> np.ndarray:
    """What the file with a cache gives, token by token, in the shape of what `decoder.logits` gives at once."""
    cache, logits = flat_cache(weights, *tokens.shape), []
    for position, token in enumerate(tokens.T):
        here, *cache = run(token, *cache, np.array(position, np.int32))
        logits.append(here)
    return np.stack(logits, axis=1)


def next_byte(run: Run, byte: int, cache: list[np.ndarray], position: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """The file with a cache as `experiments.models.generation` takes it."""
    logits, *cache = run(np.array([byte], np.int32), *cache, np.array(position, np.int32))
    return logits[0], cache


def flat_cache(weights: Any, batch: int, length: int) -> list[np.ndarray]:
    """The empty cache in the order in which files have it."""
    return [np.asarray(leaf) for leaf in jax.tree.leaves(decoder.init_cache(weights, batch, length))]


def write_onnx(function: Any, quantized: Any, *inputs: Any) -> bytes:
    """The content of an ONNX file."""
    return fobt.export.to_onnx(function, quantized, *inputs).SerializeToString()


def load_onnx(path: Path) -> Run:
    """The function of an ONNX file in onnxruntime on CPU, in its default session."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return lambda *arrays: session.run(None, dict(zip(names, arrays, strict=True)))


def load_litert(path: Path) -> Run:
    """The function of a LiteRT file in its interpreter on CPU."""
    from ai_edge_litert.interpreter import Interpreter

    run = Interpreter(str(path)).get_signature_runner()
    names = sorted(run.get_input_details())
    outputs = sorted(run.get_output_details())

    def call(*arrays: np.ndarray) -> list[np.ndarray]:
        results = run(**dict(zip(names, arrays, strict=True)))
        return [results[name] for name in outputs]

    return call


FORMATS: dict[str, tuple[Callable[..., bytes], Callable[[Path], Run]]] = {
    "onnx": (write_onnx, load_onnx),
    "litert": (fobt.export.to_litert, load_litert),
}


COLUMNS: Columns = {
    "row": ("row", str),
    "format": ("file", str),
    "bytes": ("bytes", "{:,}".format),
    "step_bytes": ("bytes with cache", "{:,}".format),
    "share": ("of float32", "{:.2f}".format),
    "bits_per_byte": ("bits per byte", "{:.4f}".format),
    "predictions": ("predictions", "{:,}".format),
    "same_predictions": ("same as JAX", "{:,}".format),
    "largest_difference": ("largest difference of logits", "{:.1e}".format),
    "largest_difference_of_steps": ("with cache", "{:.1e}".format),
}
