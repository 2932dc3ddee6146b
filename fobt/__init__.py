"""Training weights of 1 to 4 bits in JAX: loss-aware quantization and one step forward and backtrack, for Optax."""

from fobt._bounds import bound_weights
from fobt._forward_backtrack import forward_backtrack
from fobt._granularity import per_block, per_channel, per_tensor
from fobt._leaves import identity, per_leaf
from fobt._oscillation_metrics import oscillation_metrics
from fobt._oscillation_plot import plot_oscillations
from fobt._oscillations import OscillationState, track_oscillations
from fobt._params import quantize, quantized_params
from fobt._preconditioner import Preconditioner, adam_preconditioner
from fobt._quantized import Quantized
from fobt._quantizers import Quantizer, binary, linear, logarithmic, ternary
from fobt._value_and_grad import value_and_grad

__all__ = [
    "OscillationState",
    "Preconditioner",
    "Quantized",
    "Quantizer",
    "adam_preconditioner",
    "binary",
    "bound_weights",
    "forward_backtrack",
    "identity",
    "linear",
    "logarithmic",
    "oscillation_metrics",
    "per_block",
    "per_channel",
    "per_leaf",
    "per_tensor",
    "plot_oscillations",
    "quantize",
    "quantized_params",
    "ternary",
    "track_oscillations",
    "value_and_grad",
]
