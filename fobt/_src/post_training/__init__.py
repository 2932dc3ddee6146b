"""Quantization of trained weights without training."""
