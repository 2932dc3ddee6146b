"""A small problem with its gradient by hand, ½ Σ (tanh(x W + b) V - y)², and the projections of its layers."""

import functools

import jax.numpy as jnp
import numpy as np
import reference

import fobt

LEARNING_RATE, B1, B2, EPS = 0.05, 0.9, 0.99, 1e-8


def initial_params(seed):
    rng = np.random.default_rng(seed)
    return {"W": rng.normal(size=(5, 8)), "b": rng.normal(size=8), "V": rng.normal(size=(8, 3))}


def minibatch(seed, step):
    rng = np.random.default_rng([seed, step])
    return rng.normal(size=(6, 5)), rng.normal(size=(6, 3))


def numpy_grads(weights, x, y):
    hidden = np.tanh(x @ weights["W"] + weights["b"])
    error = hidden @ weights["V"] - y
    before = error @ weights["V"].T * (1 - hidden**2)
    return {"W": x.T @ before, "b": before.sum(0), "V": hidden.T @ error}


def loss_fn(weights, x, y):
    hidden = jnp.tanh(x @ weights["W"] + weights["b"][None])
    return jnp.sum((hidden @ weights["V"] - y) ** 2) / 2


QUANTIZERS = {
    "binary": (fobt.binary(), "binary", None),
    "ternary": (fobt.ternary(solver="exact"), "ternary", None),
    "linear3": (fobt.linear(3, solver="exact"), "linear", 3),
    "linear4": (fobt.linear(4, solver="exact"), "linear", 4),
    "logarithmic3": (fobt.logarithmic(3, solver="exact"), "logarithmic", 3),
    "logarithmic4": (fobt.logarithmic(4, solver="exact"), "logarithmic", 4),
}
PROJECTIONS = {
    name: (quantizer, functools.partial(reference.quantize_tensor, Q=reference.levels(grid, bits)))
    for name, (quantizer, grid, bits) in QUANTIZERS.items()
} | {
    "alternating": (
        fobt.linear(3, solver="alternating"),
        functools.partial(
            reference.quantize_tensor, Q=reference.levels("linear", 3), project=reference.project_alternating
        ),
    ),
    "channels": (
        fobt.ternary(solver="exact", granularity=fobt.per_channel()),
        functools.partial(reference.quantize_tensor, Q=reference.levels("ternary"), granularity=("channel", (-1,))),
    ),
    "blocks": (
        fobt.linear(3, solver="exact", granularity=fobt.per_block(3)),
        functools.partial(reference.quantize_tensor, Q=reference.levels("linear", 3), granularity=("block", 3, 0)),
    ),
}
