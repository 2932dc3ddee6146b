"""Training weights of 1 to 4 bits in JAX: loss-aware quantization and one step forward and backtrack, for Optax."""

import importlib.util

from fobt._packed_array import PackedArray
from fobt._packed_file import PackedFile, load_packed
from fobt._size_report import LeafSize, SizeReport, size_report

if importlib.util.find_spec("jax") is not None:  # without JAX, packed files can be read, and that is all
    from fobt._batch_stats import reestimate_batch_stats
    from fobt._bounds import bound_weights
    from fobt._dampening import dampening_loss
    from fobt._folding import fold_batch_norm
    from fobt._forward_backtrack import forward_backtrack
    from fobt._freezing import freeze_oscillations, frozen_weights
    from fobt._granularity import per_block, per_channel, per_tensor
    from fobt._leaves import identity, per_leaf
    from fobt._litert import to_litert
    from fobt._onnx import to_onnx
    from fobt._optimistic import optimistic, trial_params
    from fobt._oscillation_metrics import oscillation_metrics
    from fobt._oscillation_plot import plot_oscillations
    from fobt._oscillations import OscillationState, track_oscillations
    from fobt._packed_matmul import packed_matmul
    from fobt._packing import Packed, pack, unpack
    from fobt._params import dequantize, quantize, quantized_params
    from fobt._post_training import LapqResult, lapq
    from fobt._preconditioner import Preconditioner, adam_preconditioner
    from fobt._quantized import Quantized
    from fobt._quantizers import Quantizer, binary, linear, logarithmic, ternary
    from fobt._save_packed import save_packed
    from fobt._value_and_grad import value_and_grad

__version__ = "0.1.0"

__all__ = [
    "LapqResult",
    "LeafSize",
    "OscillationState",
    "Packed",
    "PackedArray",
    "PackedFile",
    "Preconditioner",
    "Quantized",
    "Quantizer",
    "SizeReport",
    "adam_preconditioner",
    "binary",
    "bound_weights",
    "dampening_loss",
    "dequantize",
    "fold_batch_norm",
    "forward_backtrack",
    "freeze_oscillations",
    "frozen_weights",
    "identity",
    "lapq",
    "linear",
    "load_packed",
    "logarithmic",
    "optimistic",
    "oscillation_metrics",
    "pack",
    "packed_matmul",
    "per_block",
    "per_channel",
    "per_leaf",
    "per_tensor",
    "plot_oscillations",
    "quantize",
    "quantized_params",
    "reestimate_batch_stats",
    "save_packed",
    "size_report",
    "ternary",
    "to_litert",
    "to_onnx",
    "track_oscillations",
    "trial_params",
    "unpack",
    "value_and_grad",
]
