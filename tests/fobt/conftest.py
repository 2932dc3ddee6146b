"""Settings of the library's tests."""

from pathlib import Path

import jax
import pytest


@pytest.fixture(autouse=True)
def compile_fast(request: pytest.FixtureRequest):
    """Programs here compile for long and run for microseconds, so LLVM optimizes only those marked `optimized`."""
    jax.config.update("jax_disable_most_optimizations", request.node.get_closest_marker("optimized") is None)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.hookimpl(tryfirst=True)  # before pytest looks at the markers
def pytest_collection_modifyitems(items: list[pytest.Item]):
    """Marks the cases of a parametrised test after its first as slow: the quick check sees every test once."""
    seen = set()
    for item in items:
        if isinstance(item, pytest.Function) and Path(__file__).parent in item.path.parents:
            if item.function in seen:
                item.add_marker(pytest.mark.slow)
            seen.add(item.function)
