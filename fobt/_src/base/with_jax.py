"""Whether what training needs is installed: without it packed files can be read, and that is all."""

from __future__ import annotations

import importlib.util

WITH_JAX = all(importlib.util.find_spec(name) is not None for name in ("jax", "optax", "chex"))


def require_jax(name: str) -> None:
    """Raises a ModuleNotFoundError for a name that needs JAX where it is not installed."""
    if not WITH_JAX:
        raise ModuleNotFoundError(f"{name} needs JAX, Optax and Chex, which `pip install fobt` installs", name="jax")
