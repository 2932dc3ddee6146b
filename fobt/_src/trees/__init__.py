"""Quantized weights of whole trees, as functions of params and optimizer state."""
