"""Settings all tests share."""

import pytest
from hypothesis import settings

# Same examples on every run, and no time limit per example: the first one may compile a kernel,
# and pytest has a timeout for each test.
settings.register_profile("rollout", deadline=None, derandomize=True)
settings.load_profile("rollout")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, so that no worker waits for them at the end."""
    items.sort(key=lambda item: item.path.name != "test_readme.py")
