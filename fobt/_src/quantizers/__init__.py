"""Quantizers: grids, granularities, and solvers of the curvature-weighted projection. They know no optimizers."""
