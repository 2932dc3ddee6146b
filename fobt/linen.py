"""Flax Linen: train state and gradients for its usual training loop. Needs Flax: pip install flax."""

from fobt._src.adapters.linen import TrainState, value_and_grad
from fobt._src.adapters.linen_activations import FakeQuantize, calibrate_ranges

__all__ = ["FakeQuantize", "TrainState", "calibrate_ranges", "value_and_grad"]
