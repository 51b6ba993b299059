"""Compiling a kernel template for one environment, and loading it from disk the next time.

A template is a Python file of loops whose free names are filled in with `bound` (see
batch_kernel.py). `load_kernels` runs it with those names bound. What Numba compiled is kept in

    $XDG_CACHE_HOME/rollout/HASH/      (ROLLOUT_CACHE_DIR overrides; 0700)

where HASH covers everything the machine code depends on: the template, the source of every function
reached from what was bound, this kit, the versions of Numba and NumPy, and the CPU. Numba's own cache
keys miss changes in callees, and two processes that fill one entry at once can corrupt it silently.
So an entry is filled beside its place under an exclusive lock and renamed when whole, and whoever
needs a kernel comes through here. Functions without a file (notebooks) compile without the cache.
"""

import contextlib
import fcntl
import hashlib
import inspect
import os
import shutil
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import llvmlite.binding
import numba
import numpy as np
from numba.core import config as numba_config
from numba.extending import register_jitable

from rollout.envs import philox_compiled  # noqa: F401  (gives philox.py its compiled bodies)

_bindings: Mapping[str, Any] = {}  # of the template that runs now
_preamble: Mapping[str, Any] = {}  # what the source before it has defined


def bound(name: str) -> Any:
    """The value that the running `load_kernels` binds to `name`, inside a template."""
    return _bindings[name] if name in _bindings else _preamble[name]


class Uncached(Exception):
    """The function has no source file, so its machine code cannot be kept."""


def load_kernels(
    template: Path,
    bindings: Mapping[str, Any],
    examples: Callable[[Any], Mapping[str, tuple]] | None,
    jit: bool = True,
    preamble: str = "",
) -> types.SimpleNamespace:
    """The template's functions, compiled for the given bindings.

    preamble: generated source that runs before the template and whose names the template may bind.

    examples(kernels) returns, for each function to call from Python, arguments of the types it will
    be called with; those functions are compiled (or loaded) here and never again, so a call with
    other types raises TypeError. With jit=False the template runs as plain Python.
    """
    source = preamble + template.read_text()
    if not jit:
        plain = {"jit": _identity, "jit_fma": _identity, "entry": _identity}
        return _run(source, template, plain | dict(bindings), "rollout_plain")
    for value in bindings.values():
        if inspect.isfunction(value):
            _make_reachable_jitable(value)
    compiled = {name: _compiled_if_function(value) for name, value in bindings.items()}
    try:
        digest = _digest(source, bindings)
    except Uncached:
        return _compile(source, template, compiled, examples, cache=False, name="rollout_kernel")
    name = f"rollout_kernel_{digest[:16]}"
    with _cache_entry(digest) as folder:
        if folder is None:
            return _compile(source, template, compiled, examples, cache=False, name=name)
        place = folder / template.name
        if not place.exists():
            place.write_text(source)
        return _compile(source, place, compiled, examples, cache=True, name=name)


def cache_directory() -> Path:
    """Where compiled kernels are kept on this machine."""
    if chosen := os.environ.get("ROLLOUT_CACHE_DIR"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "rollout"


def _identity(function):
    return function


def _compiled_if_function(value: Any) -> Any:
    return numba.njit(error_model="numpy")(value) if inspect.isfunction(value) else value


def _compile(source, place, bindings, examples, cache, name):
    flags = {"error_model": "numpy", "nogil": True}
    jits = {
        "jit": numba.njit(**flags),
        # a * b + c in one rounding: twice as fast in a policy, but not what an author's step says
        "jit_fma": numba.njit(fastmath={"contract"}, **flags),
        "entry": numba.njit(cache=cache, **flags),
    }
    kept_elsewhere, numba_config.CACHE_DIR = numba_config.CACHE_DIR, ""  # beside `place`, always
    try:
        kernels = _run(source, place, jits | dict(bindings), name)
        for function, arguments in (examples(kernels) if examples else {}).items():
            dispatcher = getattr(kernels, function)
            dispatcher.compile(tuple(numba.typeof(argument) for argument in arguments))
            dispatcher.disable_compile()
    finally:
        numba_config.CACHE_DIR = kept_elsewhere
    return kernels


def _run(source: str, place: Path, bindings: Mapping[str, Any], name: str):
    global _bindings, _preamble
    module = types.ModuleType(name)
    module.__file__ = str(place)
    sys.modules[name] = module  # machine code loaded from the cache looks its globals up by name
    outer = _bindings, _preamble
    _bindings, _preamble = bindings, module.__dict__
    module.__dict__.update({name: bindings[name] for name in ("jit", "jit_fma", "entry")})
    try:
        exec(compile(source, str(place), "exec"), module.__dict__)
    finally:
        _bindings, _preamble = outer
    return types.SimpleNamespace(**vars(module))


@contextlib.contextmanager
def _cache_entry(digest: str) -> Iterator[Path | None]:
    """A folder to load from or to fill; None where this machine's cache cannot be written."""
    home = cache_directory()
    entry = home / digest
    if entry.is_dir():
        yield entry
        return
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(home / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:
        yield None
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if entry.is_dir():  # filled by another process while this one waited
            yield entry
            return
        beside = home / f"{digest}.partial"  # of a process that died: nobody else holds the lock
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(mode=0o700)
        yield beside
        beside.rename(entry)
    finally:
        os.close(lock)


def _digest(source: str, bindings: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()

    def add(*parts: str) -> None:
        for part in parts:
            digest.update(part.encode() + b"\0")

    add(sys.version, numba.__version__, np.__version__, str(llvmlite.binding.llvm_version_info))
    add(llvmlite.binding.get_host_cpu_name(), str(llvmlite.binding.get_host_cpu_features()))
    for file in sorted(Path(__file__).parent.glob("*.py")):  # the kit itself
        if file.name in ("philox.py", "philox_compiled.py", "kernels.py", "batch_kernel.py"):
            add(file.name, file.read_text())
    add(source)
    for name in sorted(bindings):
        value = bindings[name]
        if inspect.isfunction(value):
            for function, source in _reached(value):
                add(name, function.__qualname__, source, _constants(function))
        elif not isinstance(
            value, numba.core.dispatcher.Dispatcher
        ):  # those: by their own bindings
            add(name, repr(value))
    return digest.hexdigest()


def _reached(function: types.FunctionType) -> list[tuple[types.FunctionType, str]]:
    """`function` and every plain Python function it reaches, with their sources."""
    found: dict[types.FunctionType, str] = {}
    waiting = [function]
    while waiting:
        one = waiting.pop()
        if one in found:
            continue
        try:
            found[one] = inspect.getsource(one)
            if not Path(inspect.getfile(one)).is_file():
                raise Uncached(one.__qualname__)
        except (OSError, TypeError) as error:
            raise Uncached(one.__qualname__) from error
        waiting += [value for value in _named_in(one).values() if inspect.isfunction(value)]
    return sorted(found.items(), key=lambda item: (item[0].__module__, item[0].__qualname__))


def _named_in(function: types.FunctionType) -> dict[str, Any]:
    """The globals and closure variables a function's code names, `module.name` included."""
    names: list[str] = []
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        names += code.co_names
        codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    closure = inspect.getclosurevars(function).nonlocals
    values = {name: function.__globals__[name] for name in names if name in function.__globals__}
    values |= closure
    for name, value in list(values.items()):
        if isinstance(value, types.ModuleType) and value.__name__.split(".")[0] not in (
            "numpy",
            "math",
        ):
            values |= {f"{name}.{n}": getattr(value, n) for n in names if hasattr(value, n)}
    return values


def _constants(function: types.FunctionType) -> str:
    """The values Numba will freeze into the machine code of `function`."""
    lines = []
    for name, value in sorted(_named_in(function).items()):
        if isinstance(value, np.ndarray):
            lines.append(
                f"{name}={value.dtype}{value.shape}{hashlib.sha256(value.tobytes()).hexdigest()}"
            )
        elif isinstance(value, int | float | str | bool | tuple | np.generic):
            lines.append(f"{name}={value!r}")
    return "\n".join(lines)


def _make_reachable_jitable(function: types.FunctionType) -> None:
    """Let compiled code call the plain Python helpers that `function` reaches."""
    waiting = [function]
    seen = set()
    while waiting:
        for value in _named_in(waiting.pop()).values():
            if inspect.isfunction(value) and value not in seen and not _is_of_kit(value):
                seen.add(value)
                waiting.append(value)
                if value not in _jitable:
                    _jitable.add(value)
                    register_jitable(value)


_jitable: set[types.FunctionType] = set()


def _is_of_kit(function: types.FunctionType) -> bool:
    return function.__module__.startswith(("rollout.envs.philox", "numba.", "numpy"))
