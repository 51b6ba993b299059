"""A digest of everything that machine code depends on, so that it can be kept and found again.

Numba freezes what a function names (helpers, global constants, closure variables) into its machine
code. So a fingerprint follows every name to its value: of functions it takes the bytecode that this
process would compile, not the text of a file that may have changed since.
"""

import enum
import hashlib
import inspect
import os
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import llvmlite.binding
import numba
import numpy as np
from numba.core.dispatcher import Dispatcher
from numba.core.types import Type

KIT = (
    "batch_kernel.py",
    "function_copies.py",
    "kernels.py",
    "philox.py",
    "philox_compiled.py",
    "records.py",
)


FROZEN_BYTES = 10**6  # of an array: larger ones, Numba's machine code has by their address


class Uncached(Exception):
    """Machine code that cannot be kept: of a function without a file, or with an odd constant."""


def fingerprint(source: str, bindings: Mapping[str, Any], types_of: Mapping[str, tuple]) -> str:
    """The name of the machine code of a template's functions.

    source: of the template. bindings: what its free names mean. types_of: argument types of each
    function that is called from Python. Raises Uncached.
    """
    hashed = hashlib.sha256()

    def add(*parts: str) -> None:
        for part in parts:
            hashed.update(f"{len(part)}:{part}".encode())

    add(sys.version, numba.__version__, np.__version__, str(llvmlite.binding.llvm_version_info))
    add(*(f"{name}={os.environ[name]}" for name in sorted(os.environ) if _changes_code(name)))
    add(llvmlite.binding.get_host_cpu_name(), str(llvmlite.binding.get_host_cpu_features()))
    for name in KIT:
        add((Path(__file__).parent / name).read_text())
    add(source, repr(sorted(types_of.items())))
    values = _Values(add)
    for name in sorted(bindings):
        if not isinstance(bindings[name], Dispatcher):  # those: by their own bindings
            values.add(name, bindings[name])
    return hashed.hexdigest()


def _changes_code(variable: str) -> bool:
    """Whether Numba reads this environment variable and may generate other code for it."""
    about_the_process = ("NUMBA_CACHE", "NUMBA_NUM_THREADS", "NUMBA_THREADING")
    return variable.startswith("NUMBA_") and not variable.startswith(about_the_process)


class _Values:
    """Adds values, and whatever functions among them name, to a digest; each function once."""

    def __init__(self, add: Callable[..., None]) -> None:
        self._add = add
        self._functions: dict[types.FunctionType, int] = {}

    def add(self, name: str, value: Any) -> None:
        self._add(name, type(value).__qualname__)
        if isinstance(value, Dispatcher):
            self._add(repr(sorted(value.targetoptions.items())))
            value = value.py_func
        if inspect.isfunction(value):
            self._add_function(value)
        elif isinstance(value, tuple | list):
            self._add(repr(getattr(value, "_fields", ())))
            for i, one in enumerate(value):
                self.add(f"[{i}]", one)
        elif isinstance(value, np.ndarray):
            is_contiguous = value.flags.c_contiguous or value.flags.f_contiguous
            if value.dtype.hasobject or value.nbytes > FROZEN_BYTES or not is_contiguous:
                raise Uncached(name)
            self._add(str(value.dtype), str(value.shape), value.tobytes().hex())
        elif isinstance(value, enum.EnumType):
            for member_name, member in value.__members__.items():
                self.add(member_name, getattr(member, "value", None))
        elif isinstance(value, types.CodeType):
            self._add_code(value)
        elif isinstance(value, _COMPARED_BY_REPR) or value is None:
            self._add(repr(value))
        elif isinstance(value, types.ModuleType) or _is_of_library(value):
            # a module: its functions and constants come by their own names, see named_in
            names = (
                getattr(value, name, "") for name in ("__module__", "__qualname__", "__name__")
            )
            self._add(*map(str, names))
        else:  # a C function, a class or a vectorized function of the author's, any object
            raise Uncached(name)

    def _add_function(self, function: types.FunctionType) -> None:
        if function in self._functions:
            self._add(str(self._functions[function]))
            return
        self._functions[function] = len(self._functions)
        if not Path(function.__code__.co_filename).is_file():
            raise Uncached(function.__qualname__)
        # Numba looks its module up by name when it loads the machine code.
        self._add(function.__module__, function.__qualname__)
        self._add_code(function.__code__)
        self.add("defaults", function.__defaults__)
        named = named_in(function)
        for name in sorted(named):
            self.add(name, named[name])

    def _add_code(self, code: types.CodeType) -> None:
        self._add(code.co_code.hex(), repr(code.co_names), repr(code.co_varnames))
        for constant in code.co_consts:
            self.add("constant", constant)


_COMPARED_BY_REPR = (
    int | float | complex | str | bytes | bool | frozenset | np.generic | np.dtype | Type
)


def named_in(function: types.FunctionType) -> dict[str, Any]:
    """The globals and closure variables a function's code names, `module.name` included."""
    names: list[str] = []
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        names += code.co_names
        codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    found = {name: function.__globals__[name] for name in names if name in function.__globals__}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    waiting = list(found.items())
    seen: set[int] = set()  # modules, which may name each other
    while waiting:
        place, value = waiting.pop()
        is_module = isinstance(value, types.ModuleType)
        if is_module and value.__name__.split(".")[0] not in LIBRARIES and id(value) not in seen:
            seen.add(id(value))
            members = {f"{place}.{n}": getattr(value, n) for n in names if hasattr(value, n)}
            new = {place: member for place, member in members.items() if place not in found}
            found |= new
            waiting += new.items()
    return found


LIBRARIES = ("numpy", "math", "cmath", "numba")  # known by their versions


def _is_of_library(value: Any) -> bool:
    """Whether a function or class comes with Python or a library, and so its name says it all."""
    if isinstance(value, type) or inspect.isroutine(value):
        module = value.__module__ or type(getattr(value, "__self__", None)).__module__
        return module.partition(".")[0] in (*LIBRARIES, "builtins", "operator", "_operator")
    return (
        type(value).__module__.partition(".")[0] == "numpy"
    )  # a ufunc; Numba has those of authors
