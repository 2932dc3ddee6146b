"""Settings of the library's tests."""

import jax
import pytest


@pytest.fixture(autouse=True)
def compile_fast(request: pytest.FixtureRequest):
    """Programs here compile for a second and run for microseconds; tests of what XLA makes of them are `optimized`."""
    jax.config.update("jax_disable_most_optimizations", request.node.get_closest_marker("optimized") is None)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
