"""The networks whose files are timed, their files, and the peers: those of the runtime's own quantization."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import fobt
from experiments.core.network import split_model
from experiments.deployment.folding import fold, with_rounded_activations
from experiments.models import NETWORKS
from experiments.models.transformer import Transformer

IMAGES = {"lenet5": (28, 28, 1), "mlp": (28, 28, 1), "vgg": (32, 32, 3), "resnet18": (224, 224, 3)}
FEED_FORWARD = ("lenet5", "mlp", "vgg")
DECODER_UNITS, DECODER_DEPTH = 768, 4
Function: TypeAlias = Callable[[Any, Any], jax.Array]
Content: TypeAlias = Callable[["Timed", np.ndarray], bytes]


@dataclass(frozen=True, eq=False)
class Timed:
    """A network with random weights on a grid, in front of which nothing is left to fold.

    Attributes:
        function: From weights and inputs to outputs.
        quantized: The weights.
        inputs: The shape of one input; the decoder has one token at a time.
    """

    function: Function
    quantized: Any
    inputs: tuple[int, ...]

    @property
    def weights(self) -> Any:
        """The weights in float32."""
        return fobt.dequantize(self.quantized)


def make_network(name: str, grid: fobt.Quantizer, width: float = 1, *, rounded: bool = False) -> Timed:
    """A network whose weights are rounded to a grid: fast, and as good as trained ones where only time counts.

    Args:
        name: Which.
        grid: That of its weights.
        width: Units as a multiple of its own.
        rounded: Whether activations are rounded to 8 bits; for those in `FEED_FORWARD`.
    """
    if name == "decoder":
        model: Any = Transformer(nnx.Rngs(0), width, DECODER_DEPTH)
        graph, params, rest = split_model(model)
        units = model.blocks[0].attention_norm.num_features
        return Timed(
            lambda weights, tokens: nnx.merge(graph, weights, rest)(tokens, training=False),
            _rounded(params, grid),
            (1, units),
        )
    model = NETWORKS[name](nnx.Rngs(0), width)
    _, params, batch_stats = split_model(model)
    network = fold(model, _rounded(params, grid), batch_stats)
    if rounded:
        images = np.random.default_rng(1).normal(size=(8, 16, *IMAGES[name])).astype(np.float32)
        network = with_rounded_activations(network, jnp.asarray(images))
    return Timed(network, network.quantized, IMAGES[name])


def _rounded(params: Any, quantizer: fobt.Quantizer) -> Any:
    grid = quantizer.grid

    def leaf(weights: Any) -> Any:
        if weights.ndim < 2:
            return weights
        values = np.asarray(weights)
        size, largest = values.std(), grid.max_code
        codes = np.where(values < 0, -1, 1)
        if grid.spacing != "binary":
            codes = np.clip(np.round(values / size * largest / 2), -largest, largest)
        return fobt.Quantized(
            jnp.asarray(codes, jnp.int8), jnp.asarray(size, jnp.float32), grid, fobt.per_tensor(), 1, weights.dtype
        )

    return jax.tree.map(leaf, params)


def onnx_float32(network: Timed, inputs: np.ndarray) -> bytes:
    """The same network with weights in float32."""
    return fobt.export.to_onnx(network.function, network.weights, inputs).SerializeToString()


def onnx_portable(network: Timed, inputs: np.ndarray) -> bytes:
    """`to_onnx` as it is by default."""
    return fobt.export.to_onnx(network.function, network.quantized, inputs).SerializeToString()


def onnx_fast(network: Timed, inputs: np.ndarray) -> bytes:
    """The fast form."""
    return fobt.export.to_onnx(network.function, network.quantized, inputs, form="fast").SerializeToString()


def onnx_int8(network: Timed, inputs: np.ndarray) -> bytes:
    """The network in float32, quantized by onnxruntime to 8 bits, its activations as it runs."""
    from onnxruntime.quantization import quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        source.write_bytes(onnx_float32(network, inputs))
        quantize_dynamic(source, target)
        return target.read_bytes()


def onnx_int4(network: Timed, inputs: np.ndarray) -> bytes:
    """The matrices of the network in float32, quantized by onnxruntime to 4 bits in blocks of 128."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    model = onnx.load_from_string(onnx_float32(network, inputs))
    quantizer = MatMulNBitsQuantizer(model, bits=4, block_size=128, is_symmetric=True, accuracy_level=4)
    quantizer.process()
    return quantizer.model.model.SerializeToString()


def litert_float32(network: Timed, inputs: np.ndarray) -> bytes:
    """The same network with weights in float32."""
    return fobt.export.to_litert(network.function, network.weights, inputs)


def litert_portable(network: Timed, inputs: np.ndarray) -> bytes:
    """`to_litert` as it is by default."""
    return fobt.export.to_litert(network.function, network.quantized, inputs)


def litert_fast(network: Timed, inputs: np.ndarray) -> bytes:
    """The fast form."""
    return fobt.export.to_litert(network.function, network.quantized, inputs, form="fast")


# For each runtime what is timed, the unit first: the file, the grid of its weights, whether activations are rounded.
FORMS: Mapping[str, Mapping[str, tuple[Content, fobt.Quantizer, bool]]] = MappingProxyType(
    {
        "onnx": {
            "float32": (onnx_float32, fobt.ternary(), False),
            "portable, binary": (onnx_portable, fobt.binary(), False),
            "fast, binary": (onnx_fast, fobt.binary(), False),
            "fast, ternary": (onnx_fast, fobt.ternary(), False),
            "fast, linear(4)": (onnx_fast, fobt.linear(4), False),
            "integers, binary": (onnx_fast, fobt.binary(), True),
            "integers, ternary": (onnx_fast, fobt.ternary(), True),
            "onnxruntime's int8": (onnx_int8, fobt.ternary(), False),
            "onnxruntime's int4": (onnx_int4, fobt.ternary(), False),
        },
        "litert": {
            "float32": (litert_float32, fobt.ternary(), False),
            "portable, ternary": (litert_portable, fobt.ternary(), False),
            "fast, ternary": (litert_fast, fobt.ternary(), False),
            "fast, linear(4)": (litert_fast, fobt.linear(4), False),
            "integers, ternary": (litert_fast, fobt.ternary(), True),
        },
    }
)
