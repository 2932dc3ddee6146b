"""Training weights of 1 to 4 bits in JAX: loss-aware quantization and one step forward and backtrack, for Optax."""

from fobt._bounds import bound_weights
from fobt._forward_backtrack import forward_backtrack
from fobt._granularity import per_block, per_channel, per_tensor
from fobt._leaves import identity, per_leaf
from fobt._params import dequantize, quantize, quantized_params
from fobt._post_training import LapqResult, lapq
from fobt._preconditioner import Preconditioner, adam_preconditioner
from fobt._quantized import Quantized
from fobt._quantizers import Quantizer, binary, linear, logarithmic, ternary
from fobt._value_and_grad import value_and_grad

__all__ = [
    "LapqResult",
    "Preconditioner",
    "Quantized",
    "Quantizer",
    "adam_preconditioner",
    "binary",
    "bound_weights",
    "dequantize",
    "forward_backtrack",
    "identity",
    "lapq",
    "linear",
    "logarithmic",
    "per_block",
    "per_channel",
    "per_leaf",
    "per_tensor",
    "quantize",
    "quantized_params",
    "ternary",
    "value_and_grad",
]
