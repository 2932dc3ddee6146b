"""Zig-zags of loss-aware quantization, and what one step forward and backtrack does about them."""
