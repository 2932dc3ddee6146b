"""Flax NNX: optimizer and gradients for its standard training loop. Needs Flax: pip install flax."""

from fobt._src.adapters.nnx import Optimizer, value_and_grad
from fobt._src.adapters.nnx_activations import FakeQuantize, calibrate_ranges

__all__ = ["FakeQuantize", "Optimizer", "calibrate_ranges", "value_and_grad"]
