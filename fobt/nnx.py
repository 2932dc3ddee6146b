"""Flax NNX: optimizer and gradients for its standard training loop. Needs Flax: pip install flax."""

from fobt._src.adapters.nnx import Optimizer, value_and_grad

__all__ = ["Optimizer", "value_and_grad"]
