"""Where modules of the user's own are looked for, and how `package.module:Name` is."""

import contextlib
import importlib
import importlib.machinery
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from rollout import NEEDED
from rollout.envs.errors import raised_at


class ImportFailed(Exception):
    """What `package.module:Name` says is not there; its cause is what the import raised."""


def import_named(named: str, folder: str, meant: str, is_one: Callable[[object], bool]) -> Any:
    """What `package.module:Name` is the name of, with modules of the folder first.

    meant: the kind of thing, in a word; is_one: whether something is one. Raises ImportFailed that
    says what is missing and the next move.
    """
    module_name, _, name = named.partition(":")
    try:
        with first_on_path(folder):
            module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise ImportFailed(_import_failure(module_name, folder, error)) from error
    if not hasattr(module, name):
        there = [name for name, value in vars(module).items() if is_one(value)]
        hint = f"; it has {', '.join(there)}" if there else f", nor any other {meant}"
        places = getattr(module, "__file__", None) or ", ".join(getattr(module, "__path__", ()))
        where = f" ({places})" if places else ""
        hint += _shadow_hint(folder, [module_name])
        raise ImportFailed(f"{module_name}{where} has no {name!r}{hint}")
    return getattr(module, name)


def is_named(text: str) -> bool:
    """Whether a text can be `package.module:Name`."""
    module_name, _, name = text.partition(":")
    is_path = "/" in module_name or module_name.endswith(".py")
    return bool(module_name and name) and not is_path


def _import_failure(module_name: str, folder: str, error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
        return (
            f"no module {error.name!r}; start the command in the folder that holds it, or install "
            "it"
        )
    if isinstance(error, SyntaxError):
        place = f"{error.filename}:{error.lineno}"
    else:
        place = raised_at(error)
    said = error.msg if isinstance(error, SyntaxError) else error
    beside = [
        name
        for name, module in list(sys.modules.items())
        if os.path.dirname(getattr(module, "__file__", None) or "") == folder
    ]
    return (
        f"importing {module_name} failed at {place}: {type(error).__name__}: {said}"
        f"{_shadow_hint(folder, beside)}"
    )


def _shadow_hint(folder: str, modules: Iterable[str]) -> str:
    """The next move where a file of the folder has the name of something else."""
    for name in modules:
        if file := shadowed(folder, name):
            return f"; {file} has the name of another module, {name.partition('.')[0]}: rename it"
    return ""


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
