"""Where modules of the user's own are looked for."""

import contextlib
import importlib.machinery
import os
import sys
from collections.abc import Iterator
from typing import Any

from rollout import NEEDED


@contextlib.contextmanager
def first_on_path(folder: str) -> Iterator[None]:
    """Only while an import lasts: a file there must not shadow what is imported later."""
    sys.path.insert(0, folder)
    try:
        with needed_packages_unshadowed():
            yield
    finally:
        with contextlib.suppress(ValueError):  # a module may have put it right itself
            sys.path.remove(folder)


@contextlib.contextmanager
def needed_packages_unshadowed() -> Iterator[None]:
    """Let the user's modules import the packages that we need, not files of their names."""
    finder: Any = _Unshadowed()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.meta_path.remove(finder)


class _Unshadowed:
    """Finds those packages behind such files."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if path is not None or name not in NEEDED:
            return None
        folders = [one for one in sys.path if not os.path.isfile(os.path.join(one, f"{name}.py"))]
        return importlib.machinery.PathFinder.find_spec(name, folders, target)


def shadowed(folder: str, name: str) -> str | None:
    """The file in a folder that would be module `name`, if there is another one elsewhere."""
    top = name.partition(".")[0]
    for file in (os.path.join(folder, f"{top}.py"), os.path.join(folder, top, "__init__.py")):
        if os.path.isfile(file):
            elsewhere = [one for one in sys.path if os.path.abspath(one) != os.path.abspath(folder)]
            is_builtin = top in sys.builtin_module_names
            other = is_builtin or importlib.machinery.PathFinder.find_spec(top, elsewhere)
            return file if other else None
    return None
