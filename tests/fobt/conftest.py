"""Settings of the library's tests."""

from pathlib import Path

import pytest


@pytest.hookimpl(tryfirst=True)  # before pytest looks at the markers
def pytest_collection_modifyitems(items: list[pytest.Item]):
    """Marks the cases of a parametrised test after its first as slow: the quick check sees every test once."""
    seen = set()
    for item in items:
        if isinstance(item, pytest.Function) and Path(__file__).parent in item.path.parents:
            if item.function in seen:
                item.add_marker(pytest.mark.slow)
            seen.add(item.function)
