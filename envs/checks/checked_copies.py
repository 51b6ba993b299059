"""Copies of functions that check every index, for Numba to compile.

Numba checks indices (`boundscheck`) only in the function that asks for it, not in what that one
calls, and keeps one machine code per function and argument types. So, to leave the unchecked ones
alone, every plain function that is reached is copied, with the copies in place of what it names.
"""

import contextlib
import inspect
import types
from collections.abc import Callable
from typing import Any

import numba
from numba.core.dispatcher import Dispatcher

from rollout.envs.authoring.authored import is_of_kit
from rollout.envs.fingerprints import LIBRARIES

OPTIONS: dict[str, Any] = {"error_model": "numpy", "nogil": True}


class CheckedCopies:
    """Checked copies of functions, one of each."""

    def __init__(self) -> None:
        self._copies: dict[Callable, Dispatcher] = {}

    def of(self, value: Any) -> Any:
        """A function's checked copy, compiled; anything else as it is."""
        function, options = value, OPTIONS
        if isinstance(value, Dispatcher):  # the author has decorated it
            function, options = value.py_func, value.targetoptions
        if not inspect.isfunction(function) or is_of_kit(function):
            return value
        return self._copies.get(function) or self._copy(function, options)

    def _copy(self, function: types.FunctionType, options: dict[str, Any]) -> Dispatcher:
        cells = tuple(types.CellType() for _ in function.__closure__ or ())
        names = dict(function.__globals__)
        copy = types.FunctionType(
            function.__code__, names, function.__name__, function.__defaults__, cells or None
        )
        copy.__qualname__, copy.__module__ = function.__qualname__, function.__module__
        copy.__dict__["__wrapped__"] = function  # for messages
        options = options | {"nopython": True, "boundscheck": True}
        dispatcher = numba.jit(**options)(copy)
        self._copies[function] = dispatcher  # before what follows: it may call itself
        named = _names(function.__code__)
        for name in named & names.keys():
            names[name] = self._member(names[name], named)
        for cell, original in zip(cells, function.__closure__ or (), strict=True):
            with contextlib.suppress(ValueError):  # not assigned yet
                cell.cell_contents = self.of(original.cell_contents)
        return dispatcher

    def _member(self, value: Any, named: set[str]) -> Any:
        """What a name means in a copy; of a module, with copies in it of the functions `named`."""
        if not isinstance(value, types.ModuleType):
            return self.of(value)
        if value.__name__.partition(".")[0] in LIBRARIES:
            return value
        module = types.ModuleType(value.__name__)
        module.__dict__.update(vars(value))
        for name in named & vars(value).keys():
            setattr(module, name, self._member(getattr(value, name), named))
        return module


def _names(code: types.CodeType) -> set[str]:
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return set(code.co_names).union(*map(_names, inner))
