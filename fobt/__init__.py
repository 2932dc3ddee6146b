"""Training weights of 1 to 4 bits in JAX: loss-aware quantization and one step forward and backtrack, for Optax."""

import importlib.util

from fobt._src.packed.packed_array import PackedArray
from fobt._src.packed.packed_file import PackedFile, load_packed
from fobt._src.packed.size_report import LeafSize, SizeReport, size_report

if importlib.util.find_spec("jax") is not None:  # without JAX, packed files can be read, and that is all
    from fobt._src.export.folding import fold_batch_norm
    from fobt._src.export.litert.convert import to_litert
    from fobt._src.export.onnx.convert import to_onnx
    from fobt._src.optimizers.forward_backtrack import forward_backtrack
    from fobt._src.optimizers.optimistic import optimistic, trial_params
    from fobt._src.optimizers.preconditioner import Preconditioner, adam_preconditioner
    from fobt._src.oscillations.batch_stats import reestimate_batch_stats
    from fobt._src.oscillations.dampening import dampening_loss
    from fobt._src.oscillations.freezing import freeze_oscillations, frozen_weights
    from fobt._src.oscillations.metrics import oscillation_metrics
    from fobt._src.oscillations.plot import plot_oscillations
    from fobt._src.oscillations.tracking import OscillationState, track_oscillations
    from fobt._src.packed.packed_matmul import packed_matmul
    from fobt._src.packed.packing import Packed, pack, unpack
    from fobt._src.packed.save_packed import save_packed
    from fobt._src.post_training.lapq import LapqResult, lapq
    from fobt._src.quantizers.granularity import per_block, per_channel, per_tensor
    from fobt._src.quantizers.quantized import Quantized
    from fobt._src.quantizers.quantizer import Quantizer, binary, linear, logarithmic, ternary
    from fobt._src.training import Training
    from fobt._src.trees.bounds import bound_weights
    from fobt._src.trees.leaves import identity, per_leaf
    from fobt._src.trees.params import dequantize, quantize, quantized_params
    from fobt._src.trees.value_and_grad import value_and_grad

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
    "Training",
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
