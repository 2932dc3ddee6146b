"""The decoder of a training as files: `python -m experiments language_export RUN_FOLDER [options]`.

The folder is that of one row and seed of `python -m experiments language`. Two files are written: one from windows of
bytes to the logits of all their positions, and one that takes a byte at a time, with keys and values of those before it
as inputs and outputs. Both run over held-out text, are compared with JAX, and the second one writes a text.
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
from experiments.core.cli import fail, parse_options
from experiments.core.records import environment, read_json, write_json
from experiments.data import MissingDataError
from experiments.data.text import TEXTS, even_windows
from experiments.models import decoder
from experiments.models.generation import sample

COMMAND = "language_export"
SUFFIXES = {"onnx": ".onnx", "litert": ".tflite"}
Run: TypeAlias = Callable[..., list[np.ndarray]]  # a function in a runtime, from and to flat lists of arrays


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageExportConfig:
    """Write the decoder of a finished training to files, and compare them with JAX."""

    folder: Annotated[Path, tyro.conf.Positional]
    """Folder of one row and seed of `python -m experiments language`."""
    format: Literal["onnx", "litert"] = "onnx"
    """In onnx batch and length of windows are free; in litert they are those of the training, and one window."""
    windows: int = 64
    """Windows of test text over which the files run."""
    output: Path | None = None
    """Folder for the files and the report; by default that of the training."""


def main(arguments: Sequence[str]) -> None:
    """Writes decoder and decoder_step, and the report as JSON, and prints it."""
    config = parse_options(LanguageExportConfig, arguments, COMMAND)
    try:
        job = read_json(config.folder.parents[1] / "job.json")
        quantized = fobt.packed.load_packed(config.folder / "weights.safetensors").quantized()
        text = TEXTS[job["text"]]()
    except (OSError, KeyError, MissingDataError) as error:
        fail(f"{config.folder} is no finished training of a language model: {error}", code=2, command=COMMAND)
    windows = even_windows(text.test, job["context"] + 1, config.windows)
    output = config.output or config.folder
    output.mkdir(parents=True, exist_ok=True)
    try:
        report = export(quantized, config.format, windows, output)
    except ImportError as error:
        fail(f"cannot write {config.format}: {error}", code=2, command=COMMAND)
    print("\n".join(lines(report)))
    write_json(output / f"decoder{SUFFIXES[config.format]}.json", report | {"environment": environment()})


def export(quantized: Any, format_: str, windows: np.ndarray, output: Path) -> dict[str, Any]:
    """Writes both files and compares them with JAX.

    Args:
        quantized: Weights of a decoder, codes and scales where they are quantized.
        format_: Key of `SUFFIXES`.
        windows: int32 of shape (n, length + 1), as training has them.
        output: Folder of the files.
    """
    length = windows.shape[1] - 1
    tokens, targets = windows[:, :-1], windows[:, 1:]
    weights = fobt.dequantize(quantized)
    symbols = jax.export.symbolic_shape("batch, length") if format_ == "onnx" else (1, length)
    batch = symbols[0]
    cache = jax.eval_shape(lambda: decoder.init_cache(weights, 1, length))
    spec = {k: jax.ShapeDtypeStruct((leaf.shape[0], batch, *leaf.shape[2:]), leaf.dtype) for k, leaf in cache.items()}
    paths = [output / f"{name}{SUFFIXES[format_]}" for name in ("decoder", "decoder_step")]
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
    return {
        "format": format_,
        "files": {path.name: path.stat().st_size for path in paths},
        "float32_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(weights)),
        "predictions": targets.size,
        "same_predictions": int(np.sum(whole.argmax(-1) == expected.argmax(-1))),
        "largest_logit_difference": float(np.max(np.abs(whole - expected))),
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
    """The function of an ONNX file in onnxruntime on CPU, with activations in float32."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
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


def lines(report: dict[str, Any]) -> list[str]:
    """The report as text."""
    sizes = ", ".join(f"{name}: {size:,} bytes" for name, size in report["files"].items())
    return [
        f"{sizes}; the weights alone take {report['float32_bytes']:,} bytes in float32",
        f"same predictions as JAX: {report['same_predictions']:,} of {report['predictions']:,}; logits differ by at "
        f"most {report['largest_logit_difference']:.1e}, with a cache by {report['largest_difference_of_steps']:.1e}",
        f"{report['bits_per_byte']:.3f} bits per byte of test text",
        report["text"],
    ]
