"""Equations of a jaxpr that call another jaxpr, whose equations can stand in their place."""

from __future__ import annotations

from typing import Any

from jax.extend import core

from fobt._src.quantizers.activations import MARKER

# The primitives, and the parameter that holds the jaxpr.
_CALLS = {
    "checkpoint": "jaxpr",
    "closed_call": "call_jaxpr",
    "composite": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vmap_call": "call",
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "remat2": "jaxpr",
}


def called_jaxpr(eqn: Any) -> core.ClosedJaxpr | None:
    """The jaxpr that an equation calls with its inputs, or None where its primitive is no call."""
    name = eqn.primitive.name
    if name not in _CALLS:
        return None
    called = eqn.params[_CALLS[name]]
    return called if isinstance(called, core.ClosedJaxpr) else core.ClosedJaxpr(called, ())


def is_fake_quantize(eqn: Any) -> bool:
    """Whether an equation rounds activations to the levels of a scale: (x, scale, zero point, largest code) -> x̂."""
    return eqn.primitive.name in ("jit", "pjit") and eqn.params["name"] == MARKER
