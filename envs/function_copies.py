"""Copies of an author's functions, and of all they reach, made otherwise than the originals.

Checked: Numba checks indices (`boundscheck`) only in the function that asks for it, not in what
that one calls, and keeps one machine code per function and argument types. So, to leave the
unchecked ones alone, every plain function that is reached is copied, with the copies in place of
what it names.

Plain: a helper that its author has decorated with `numba.njit` takes no views of records, and a
debugger does not see into it. So plain Python runs copies that have the helpers as they were
written.
"""

import contextlib
import types
from collections.abc import Callable, Mapping
from typing import Any

import numba
from numba.core.dispatcher import Dispatcher

from rollout.envs.authoring.authored import as_written, is_of_kit, reached_from
from rollout.envs.fingerprints import LIBRARIES, named_in

OPTIONS: dict[str, Any] = {"error_model": "numpy", "nogil": True}


def checked_copies() -> Callable[[Any], Any]:
    """What makes a function's checked copy, compiled; the same one for the same function.

    Anything else it returns as it is.
    """

    def compiled(copy: types.FunctionType, options: Mapping[str, Any] | None) -> Dispatcher:
        checked: dict[str, Any] = {**(options or OPTIONS), "nopython": True, "boundscheck": True}
        return numba.jit(**checked)(copy)

    return _Copies(compiled).of


def undecorated(function: types.FunctionType) -> types.FunctionType:
    """The function itself, or a copy with helpers as they were written, if any is decorated."""
    reached = reached_from(function)
    if any(isinstance(value, Dispatcher) for one in reached for value in named_in(one).values()):
        return _Copies(lambda copy, _: copy).of(function)
    return function


class _Copies:
    """Copies of functions, one of each.

    finish: (copy, the options that its author compiles it with, or None) → what takes its place.
    """

    def __init__(self, finish: Callable[[types.FunctionType, Mapping[str, Any] | None], Any]):
        self._finish = finish
        self._copies: dict[Callable, Any] = {}
        self._modules: dict[tuple[int, frozenset[str]], types.ModuleType] = {}

    def of(self, value: Any) -> Any:
        """A function's copy, anything else as it is."""
        function = as_written(value)
        if function is None or is_of_kit(function):
            return value
        options = value.targetoptions if isinstance(value, Dispatcher) else None
        return self._copies.get(function) or self._copy(function, options)

    def _copy(self, function: types.FunctionType, options: Mapping[str, Any] | None) -> Any:
        cells = tuple(types.CellType() for _ in function.__closure__ or ())
        names = dict(function.__globals__)
        copy = types.FunctionType(
            function.__code__, names, function.__name__, function.__defaults__, cells or None
        )
        copy.__qualname__, copy.__module__ = function.__qualname__, function.__module__
        copy.__dict__["__wrapped__"] = function  # for messages
        finished = self._finish(copy, options)
        self._copies[function] = finished  # before what follows: it may call itself
        named = frozenset(_names(function.__code__))
        for name in named & names.keys():
            names[name] = self._member(names[name], named)
        for cell, original in zip(cells, function.__closure__ or (), strict=True):
            with contextlib.suppress(ValueError):  # not assigned yet
                cell.cell_contents = self.of(original.cell_contents)
        return finished

    def _member(self, value: Any, named: frozenset[str]) -> Any:
        """What a name means in a copy; of a module, with copies in it of the functions `named`."""
        if not isinstance(value, types.ModuleType):
            return self.of(value)
        if value.__name__.partition(".")[0] in LIBRARIES:
            return value
        if (id(value), named) in self._modules:  # modules may name each other
            return self._modules[id(value), named]
        module = self._modules[id(value), named] = types.ModuleType(value.__name__)
        module.__dict__.update(vars(value))
        for name in named & vars(value).keys():
            setattr(module, name, self._member(getattr(value, name), named))
        return module


def _names(code: types.CodeType) -> set[str]:
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return set(code.co_names).union(*map(_names, inner))
