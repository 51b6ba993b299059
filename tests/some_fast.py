"""Tests of everything there is, of which most cases are only for `make test-slow`."""

from collections.abc import Iterable
from typing import Any

import pytest


def slow_unless(fast: Iterable[Any], names: Iterable[Any]) -> list[Any]:
    """The names, or tuples, for `parametrize`: those that are not among `fast` marked as slow."""
    chosen = set(fast)
    return [
        name
        if name in chosen
        else pytest.param(*(name if isinstance(name, tuple) else (name,)), marks=pytest.mark.slow)
        for name in names
    ]
