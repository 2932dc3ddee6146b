"""The instrument on sequences of codes and latents, and params for it, which several of its tests share."""

import jax
import jax.numpy as jnp
import optax

import fobt

MOMENTUM = 0.1
QUANTIZER = fobt.binary()
STEP = 0.05
metrics = jax.jit(fobt.oscillations.oscillation_metrics)


def given_codes(params):
    """Codes that are given beside the latents."""
    return {"latents": params["codes"].astype(jnp.int8), "codes": None}


def followed(codes, latents, dtype="float32"):
    """State after updates that see these codes and latents, with time as the first axis."""
    tx = fobt.oscillations.track_oscillations(optax.sgd(0.0), given_codes, decay=1 - MOMENTUM)
    sequence = [
        {"latents": jnp.asarray(w, dtype), "codes": jnp.asarray(c, "float32")}
        for c, w in zip(codes, latents, strict=True)
    ]
    state = tx.init(sequence[0])
    update = jax.jit(tx.update)
    for params in sequence:
        _, state = update(params, state, params)
    return state


def make_params(dtype="float32"):
    """A leaf with the name of Adam's second moment, which must not be taken for one."""
    return {"nu": {"kernel": jax.random.normal(jax.random.key(0), (16, 8), dtype)}, "bias": jnp.zeros(8, dtype)}


def signs(params):
    return jax.tree.map(lambda w: jnp.sign(w).astype(jnp.int8) if w.ndim == 2 else None, params)
