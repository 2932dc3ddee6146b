"""Packed weights and packed files; what reads them needs no JAX."""
