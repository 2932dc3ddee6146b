"""Flax Linen: train state and gradients for its usual training loop. Needs Flax: pip install flax."""

from fobt._src.adapters.linen import TrainState, value_and_grad

__all__ = ["TrainState", "value_and_grad"]
