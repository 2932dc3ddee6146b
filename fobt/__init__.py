"""Training weights of 1 to 4 bits in JAX: loss-aware quantization and one step forward and backtrack, for Optax.

Names that a training loop needs are here. `fobt.oscillations` sees zig-zagging and remedies it, `fobt.packed` keeps
weights in few bits, in memory and in files, `fobt.export` writes models for ONNX and LiteRT, and `fobt.nnx`
and `fobt.linen` fit into the training loops of Flax.
"""

import importlib
from typing import TYPE_CHECKING, Any

from fobt import packed
from fobt._src.base.with_jax import WITH_JAX, require_jax

if TYPE_CHECKING or WITH_JAX:  # without JAX, packed files can be read, and that is all
    from fobt import export, oscillations
    from fobt._src.export.folding import fold_batch_norm
    from fobt._src.optimizers.annealed import anneal
    from fobt._src.optimizers.calibration import calibrate
    from fobt._src.optimizers.forward_backtrack import forward_backtrack
    from fobt._src.optimizers.optimistic import optimistic, quantized_trial_params
    from fobt._src.optimizers.preconditioner import Preconditioner, adam_preconditioner
    from fobt._src.oscillations.batch_stats import reestimate_batch_stats
    from fobt._src.post_training.lapq import LapqResult, lapq
    from fobt._src.quantizers.activations import fake_quantize, moving_average_range
    from fobt._src.quantizers.constructors import binary, linear, logarithmic, ternary
    from fobt._src.quantizers.granularity import per_block, per_channel, per_tensor
    from fobt._src.quantizers.quantized import Quantized
    from fobt._src.quantizers.quantizer import Quantizer
    from fobt._src.training import Training
    from fobt._src.trees.annealing import annealed_params
    from fobt._src.trees.bounds import bound_weights
    from fobt._src.trees.choices import choices
    from fobt._src.trees.curvature import Curvature
    from fobt._src.trees.full_precision import full_precision
    from fobt._src.trees.leaves import per_leaf
    from fobt._src.trees.linear_maps import linear_maps
    from fobt._src.trees.params import dequantize, quantize, quantized_params
    from fobt._src.trees.value_and_grad import value_and_grad

if TYPE_CHECKING:
    from fobt import linen as linen
    from fobt import nnx as nnx

__version__ = "0.1.0"
__all__ = [
    "Curvature",
    "LapqResult",
    "Preconditioner",
    "Quantized",
    "Quantizer",
    "Training",
    "adam_preconditioner",
    "anneal",
    "annealed_params",
    "binary",
    "bound_weights",
    "calibrate",
    "choices",
    "dequantize",
    "export",
    "fake_quantize",
    "fold_batch_norm",
    "forward_backtrack",
    "full_precision",
    "lapq",
    "linear",
    "linear_maps",
    "logarithmic",
    "moving_average_range",
    "optimistic",
    "oscillations",
    "packed",
    "per_block",
    "per_channel",
    "per_leaf",
    "per_tensor",
    "quantize",
    "quantized_params",
    "quantized_trial_params",
    "reestimate_batch_stats",
    "ternary",
    "value_and_grad",
]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """The modules for Flax, imported when they are used; an error that says what is missing, JAX or Flax."""
        if name in (*__all__, "linen", "nnx"):
            require_jax(f"fobt.{name}")
        if name not in ("linen", "nnx"):
            raise AttributeError(f"module 'fobt' has no attribute {name!r}")
        try:
            return importlib.import_module(f"fobt.{name}")
        except ModuleNotFoundError as error:
            if not str(error.name).startswith("flax"):
                raise
            raise ModuleNotFoundError(f"fobt.{name} needs Flax: pip install flax", name=error.name) from None
