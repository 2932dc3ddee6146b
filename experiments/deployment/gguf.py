"""A language model for llama.cpp: `python -m experiments gguf_export WEIGHTS --output FILE`.

The decoder of `experiments.models.decoder` is llama.cpp's architecture arcee: RMSNorm, rotary positions, squared ReLU
without a gate, no biases. Tokens are bytes, so that the file has no tokenizer.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro

import fobt
from experiments.core.cli import fail, parse_options
from experiments.models.decoder import BYTES, HEAD_DIM

COMMAND = "gguf_export"
ARCHITECTURE = "arcee"
_OF_LAYERS = {
    "query": "attn_q",
    "key": "attn_k",
    "value": "attn_v",
    "output": "attn_output",
    "up": "ffn_up",
    "down": "ffn_down",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GgufExportConfig:
    """Write the decoder of a finished job as a GGUF file."""

    weights: Annotated[Path, tyro.conf.Positional]
    """The packed file of a row and seed of `python -m experiments language`, weights.safetensors."""
    ternary: Literal["TQ1_0", "TQ2_0", "Q4_0"] = "TQ2_0"
    """Type of binary and ternary weights; TQ1_0 and TQ2_0 are for widths that are multiples of 256."""
    context: int = 256
    """Most tokens of a text."""
    output: Path
    """The file; one of the same name is replaced."""


def main(arguments: Sequence[str]) -> None:
    """Writes the file and prints its size."""
    config = parse_options(GgufExportConfig, arguments, COMMAND)
    try:
        quantized = fobt.packed.load_packed(config.weights).quantized()
        content = to_gguf(quantized, context=config.context, ternary=config.ternary)
        config.output.write_bytes(content)
    except (OSError, ValueError, KeyError) as error:
        fail(f"cannot write {config.output}: {error}", code=2, command=COMMAND)
    print(f"{config.output}: {len(content):,} bytes")


def to_gguf(quantized: Any, *, context: int, ternary: Literal["TQ1_0", "TQ2_0", "Q4_0"] = "TQ2_0") -> bytes:
    """The content of a GGUF file.

    Args:
        quantized: Weights of a decoder, codes and scales where they are quantized.
        context: Most tokens of a text.
        ternary: Type of binary and ternary weights.
    """
    shapes = jax.tree.map(np.shape, fobt.dequantize(quantized), is_leaf=lambda leaf: isinstance(leaf, fobt.Quantized))
    depth, width, hidden = shapes["layers"]["up"]["kernel"]
    settings = {
        "block_count": depth,
        "context_length": context,
        "embedding_length": width,
        "feed_forward_length": hidden,
        "attention.head_count": width // HEAD_DIM,
        "attention.head_count_kv": width // HEAD_DIM,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.dimension_count": HEAD_DIM,
        "rope.freq_base": 10_000.0,
        "vocab_size": BYTES,
    }
    metadata = {
        "general.architecture": ARCHITECTURE,
        **{f"{ARCHITECTURE}.{key}": value for key, value in settings.items()},
        "tokenizer.ggml.model": "none",
    }
    return fobt.export.to_gguf(named, quantized, metadata, ternary=ternary)


def named(weights: Any) -> dict[str, Any]:
    """The weights under their names in llama.cpp, matrices as outputs × inputs."""
    layers = weights["layers"]
    tensors = {
        "token_embd.weight": weights["embedding"]["table"],
        "output_norm.weight": weights["norm"]["scale"],
        "output.weight": weights["head"]["kernel"].T,
    }
    for i in range(len(layers["attention_norm"]["scale"])):
        tensors[f"blk.{i}.attn_norm.weight"] = layers["attention_norm"]["scale"][i]
        tensors[f"blk.{i}.ffn_norm.weight"] = layers["hidden_norm"]["scale"][i]
        for name, name_there in _OF_LAYERS.items():
            kernel = layers[name]["kernel"][i].T
            tensors[f"blk.{i}.{name_there}.weight"] = _paired(kernel) if name in ("query", "key") else kernel
    return tensors


def _paired(kernel: Any) -> Any:
    """Outputs of each head in pairs (i, i + 16) side by side, as llama.cpp turns them for this architecture."""
    heads = kernel.reshape(-1, 2, HEAD_DIM // 2, kernel.shape[-1])
    return heads.swapaxes(1, 2).reshape(kernel.shape)
