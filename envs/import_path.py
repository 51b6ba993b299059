"""Where modules of the user's own are looked for."""

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def first_on_path(folder: str) -> Iterator[None]:
    """Only while an import lasts: a file there must not shadow what is imported later."""
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # a module may have put it right itself
            sys.path.remove(folder)
