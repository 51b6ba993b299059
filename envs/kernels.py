"""Compiling a kernel template for one environment, and loading it from disk the next time.

A template is a Python file of loops whose free names are filled in with `bound` (see
batch_kernel.py). `load_kernels` runs it with those names bound. What Numba compiled is kept in

    $XDG_CACHE_HOME/rollout/HASH/      (ROLLOUT_CACHE_DIR overrides; 0700)

where HASH covers everything the machine code depends on (fingerprints.py). Numba's own cache keys
miss changes in callees, and two processes that fill one entry at once can corrupt it silently. So
an entry is filled beside its place under an exclusive lock, sealed with a digest of its files and
renamed, and whoever needs a kernel comes through here. An entry that its seal does not fit is made
anew. Functions without a file (notebooks) compile without the cache; so does everything where the
cache cannot be written.
"""

import contextlib
import fcntl
import functools
import hashlib
import inspect
import os
import shutil
import sys
import threading
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numba
from numba.core import config as numba_config
from numba.extending import overload, register_jitable

from rollout.envs import philox_compiled  # noqa: F401  (gives philox.py its compiled bodies)
from rollout.envs.authoring.authored import AuthoredFunction, reached_from
from rollout.envs.authoring.compile_errors import compile_authored
from rollout.envs.errors import EnvError
from rollout.envs.fingerprints import Uncached, fingerprint
from rollout.envs.function_copies import OPTIONS, checked_copies
from rollout.envs.records import records

_loading = threading.RLock()  # of one template after the other, also by several threads
_bindings: Mapping[str, Any] = {}  # of the template that runs now
_preamble: Mapping[str, Any] = {}  # what the source before it has defined


def bound(name: str) -> Any:
    """The value that the running `load_kernels` binds to `name`, inside a template."""
    return _bindings[name] if name in _bindings else _preamble[name]


@overload(records)
def _records(record_bytes, dtype):
    return lambda record_bytes, dtype: record_bytes.view(dtype)


@dataclass(frozen=True)
class Authored:
    """The functions among the bindings that an environment's author wrote.

    They are compiled first, each alone, so that what is wrong with one is said of that one.
    owner: the environment's name. types: binding → argument types. may_hide_state: whether an
    episode may depend on more than its record.
    """

    owner: str
    types: Mapping[str, tuple]
    may_hide_state: bool


def load_kernels(
    template: Path,
    bindings: Mapping[str, Any],
    examples: Mapping[str, tuple],
    jit: bool = True,
    *,
    preamble: str = "",
    authored: Authored | None = None,
    checked: bool = False,
) -> types.SimpleNamespace:
    """The template's functions, compiled for the given bindings.

    examples: for each function to call from Python, arguments of the types it will be called with.
        Those functions are compiled (or loaded) here and never again, so a call with other types
        raises TypeError.
    preamble: generated source that runs before the template and whose names the template may bind.
    authored: what among the bindings has not been checked yet.
    checked: an index outside its array raises IndexError in the functions among the bindings and in
        all they call, where it would read or overwrite other memory (function_copies.py).

    With jit=False the template runs as plain Python. Raises EnvError where a function of the
    environment's does not compile.
    """
    with _loading:
        return _load_kernels(template, bindings, examples, jit, preamble, authored, checked)


def _load_kernels(
    template: Path,
    bindings: Mapping[str, Any],
    examples: Mapping[str, tuple],
    jit: bool,
    preamble: str,
    authored: Authored | None,
    checked: bool,
) -> types.SimpleNamespace:
    source = preamble + template.read_text()
    if not jit:
        plain = {"jit": _identity, "jit_fma": _identity, "entry": _identity}
        return _run(source, template, plain | dict(bindings), "rollout_plain")
    if numba_config.DISABLE_JIT:  # pyright: ignore[reportAttributeAccessIssue]
        raise EnvError(
            "NUMBA_DISABLE_JIT is set, so nothing compiles; unset it, or ask for jit=False"
        )
    for value in bindings.values():
        if inspect.isfunction(value):
            _make_reachable_jitable(value)
    types_of = {
        name: tuple(numba.typeof(argument) for argument in arguments)
        for name, arguments in examples.items()
    }
    make = checked_copies() if checked else _compiled_if_function
    compiled = {name: make(value) for name, value in bindings.items()}
    compile_in = functools.partial(_compile, source, template.name, compiled, authored, types_of)
    try:
        digest = fingerprint(source, {**bindings, "checked": checked}, types_of)
    except Uncached:
        return compile_in(None, "rollout_kernel")
    name = f"rollout_kernel_{digest[:16]}"
    try:
        return _through_cache(digest, functools.partial(compile_in, name=name))
    except OSError:  # a folder that cannot be written, a full disk
        return compile_in(None, name)


def cache_directory() -> Path:
    """Where compiled kernels are kept on this machine."""
    if chosen := os.environ.get("ROLLOUT_CACHE_DIR"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "rollout"


def _identity(function):
    return function


def _compiled_if_function(value: Any) -> Any:
    return numba.njit(**_INLINE)(value) if inspect.isfunction(value) else value


def _through_cache(digest: str, compile_in) -> types.SimpleNamespace:
    """compile_in(folder), in the folder of `digest`, which it fills unless it is whole already."""
    home = cache_directory()
    entry = home / digest
    if _is_whole(entry):
        return compile_in(entry)
    with _locked(home, digest):
        if _is_whole(entry):  # filled by another process while this one waited
            return compile_in(entry)
        beside = home / f"{digest}.partial"  # if there: of a process that died
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(mode=0o700)
        try:
            kernels = compile_in(beside)
        except BaseException:  # an author's mistake, which nobody compiles a second time
            shutil.rmtree(beside, ignore_errors=True)
            raise
        (beside / SEAL).write_text(_digest_of_files(beside))
        shutil.rmtree(entry, ignore_errors=True)  # if there: damaged
        beside.rename(entry)
        return kernels


SEAL = "digest"  # the file whose presence and content say that an entry is whole


def _is_whole(entry: Path) -> bool:
    """Whether all of an entry is there, ours, and as it was written.

    Half an entry (a full disk, a crashed machine) would otherwise end in an error from Numba, or
    worse. And machine code is only run from a folder of our own.
    """
    try:
        if entry.stat().st_uid != os.getuid():
            return False
        return (entry / SEAL).read_text() == _digest_of_files(entry)
    except (OSError, UnicodeDecodeError):
        return False


def _digest_of_files(entry: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(entry.rglob("*")):
        if file.is_file() and file.name != SEAL:
            content = file.read_bytes()
            digest.update(f"{file.relative_to(entry)} {len(content)}\n".encode() + content)
    return digest.hexdigest()


@contextlib.contextmanager
def _locked(home: Path, digest: str) -> Iterator[None]:
    """Keep other processes off an entry: the others go on, but for a 16th that shares its lock."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(home / f"lock-{digest[0]}", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


_ENTRY: dict[str, Any] = OPTIONS | {"no_cfunc_wrapper": True}
_INNER: dict[str, Any] = _ENTRY | {
    "no_cpython_wrapper": True
}  # called from compiled code only: quicker to compile
# LLVM holds an author's loop, and the kit's around it, too long to inline, at 20 ns a call.
_INLINE: dict[str, Any] = _INNER | {"forceinline": True}


def _compile(source, file_name, bindings, authored, types_of, folder, name):
    """Run the template and compile its entries; `folder` keeps the machine code, unless None."""
    is_kept = folder is not None and (folder / SEAL).exists()
    if authored and not is_kept:
        _compile_authored(authored, bindings)
    jits = {
        "jit": numba.njit(**_INLINE),
        # a * b + c in one rounding: twice as fast in a policy, but not what an author's step says
        "jit_fma": numba.njit(fastmath={"contract"}, **_INNER),
        "entry": numba.njit(cache=folder is not None, **_ENTRY),
    }
    place = Path(file_name)
    if folder is not None:
        place = folder / file_name  # Numba keeps machine code beside the source
        if not place.exists():
            place.write_text(source)
    with _beside_the_source():
        kernels = _run(source, place, jits | dict(bindings), name)
        for function, arguments in types_of.items():
            dispatcher = getattr(kernels, function)
            dispatcher.compile(arguments)
            dispatcher.disable_compile()
    return kernels


def _compile_authored(authored: Authored, bindings: Mapping[str, Any]) -> None:
    for name, argument_types in authored.types.items():
        dispatcher = bindings[name]
        function = inspect.unwrap(dispatcher.py_func)  # of a checked copy: what it is a copy of
        one = AuthoredFunction(authored.owner, function, name, argument_types)
        compile_authored(one, dispatcher, may_hide_state=authored.may_hide_state)


@contextlib.contextmanager
def _beside_the_source() -> Iterator[None]:
    """Let no setting of the user's send Numba's cache elsewhere."""
    settings = {"CACHE_DIR": "", "CACHE_LOCATOR_CLASSES": "InTreeCacheLocator"}
    kept = {name: getattr(numba_config, name, "") for name in settings}
    for name, value in settings.items():
        setattr(numba_config, name, value)
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(numba_config, name, value)


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


def _make_reachable_jitable(function: types.FunctionType) -> None:
    """Let compiled code call the plain Python helpers that `function` reaches."""
    for helper in set(reached_from(function)) - {function} - _jitable:
        _jitable.add(helper)
        register_jitable(helper)


_jitable: set[types.FunctionType] = set()
