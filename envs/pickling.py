"""Environments on their way to another process of this machine, also those that have no module.

What others can import goes by its name, the rest (of a script, a notebook's cell, a function)
whole, by `cloudpickle`. Whoever unpickles runs the sender's code. So that is done only with what a
process has got from its parent through a pipe: never with what came from a network or lies in a
file.
"""

import functools
import io
import linecache
import os
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import msgspec

from rollout.env_source import OBJECT
from rollout.envs.compiled_env import CompiledEnv
from rollout.envs.errors import EnvError
from rollout.envs.import_path import needed_packages_unshadowed


class _Parcel(msgspec.Struct, frozen=True):
    """A value, and what the other process needs to unpickle it.

    path: the sender's sys.path. folders: those in which modules of environments lie; they need not
    be on that path any more. sources: the text of files that are none, such as a notebook's cells,
    for messages.
    """

    content: bytes
    path: list[str]
    folders: list[str]
    sources: dict[str, str]


def pickled(value: Any) -> bytes:
    """Raises whatever the parts of the value raise that cannot be pickled."""
    buffer = io.BytesIO()
    pickler = _Pickler(buffer)
    pickler.dump(value)
    folders = sorted(pickler.folders)
    return _encode(_Parcel(buffer.getvalue(), sys.path, folders, pickler.sources))


def unpickled(encoded: bytes) -> Any:
    """Modules are looked for where the sender would; later imports look there last."""
    parcel = _decode(encoded)
    for file, text in parcel.sources.items():
        linecache.cache[file] = len(text), None, text.splitlines(keepends=True), file
    own = list(sys.path)
    sys.path[:] = [*parcel.folders, *parcel.path]
    try:
        with needed_packages_unshadowed():
            return cloudpickle.loads(parcel.content)
    finally:
        sys.path[:] = [*own, *(folder for folder in parcel.path if folder not in own)]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Parcel).decode


def pickled_env(env: Any, env_id: str) -> bytes:
    """An environment that was given as an object. Raises EnvError that names what is in the way."""
    try:
        return pickled(env)
    except Exception as error:
        whole = _Part(env, env_id.removeprefix(OBJECT))
        culprit = _culprit(whole, error, set()) or f"{whole} ({error})"
        raise EnvError(
            f"environment {env_id!r} cannot be sent to the processes that act: {culprit}; make it "
            "where it is used, so that each process has its own"
        ) from error


class _Pickler(cloudpickle.Pickler):
    """Fills folders and sources, see _Parcel."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.folders: set[str] = set()
        self.sources: dict[str, str] = {}

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, types.CodeType) and not os.path.exists(obj.co_filename):
            self.sources[obj.co_filename] = "".join(linecache.getlines(obj.co_filename))
        if isinstance(obj, functools._lru_cache_wrapper) and not _is_importable(obj):
            return _cached, (obj.__wrapped__, obj.cache_parameters())  # cloudpickle: by its name
        if isinstance(obj, type) and issubclass(obj, CompiledEnv):
            if not _is_importable(obj):  # cloudpickle would make an empty class first
                namespace = {k: v for k, v in vars(obj).items() if k not in _OF_EVERY_CLASS}
                namespace["__qualname__"] = obj.__qualname__
                is_known = getattr(obj.step, "__globals__", {}).get(obj.__name__) is obj
                return _defined, (type(obj), obj.__name__, obj.__bases__, namespace, is_known)
            file = getattr(sys.modules[obj.__module__], "__file__", None)
            if file:
                depth = obj.__module__.count(".") + (Path(file).name == "__init__.py")
                self.folders.add(str(Path(file).resolve().parents[depth]))
        return super().reducer_override(obj)


_OF_EVERY_CLASS = ("__dict__", "__weakref__")


def _is_importable(value: Any) -> bool:
    found: Any = sys.modules.get(value.__module__)
    for name in value.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is value and value.__module__ != "__main__"


def _defined(
    kind: type, name: str, bases: tuple[type, ...], namespace: dict[str, Any], is_known: bool
) -> type:
    """is_known: to its functions by its name, which is where messages look for what was meant."""
    env = kind(name, bases, namespace)
    for member in namespace.values() if is_known else ():
        if isinstance(member, types.FunctionType):
            member.__globals__.setdefault(name, env)
    return env


def _cached(function: Any, parameters: dict[str, Any]) -> Any:
    return functools.lru_cache(**parameters)(function)


@dataclass(frozen=True)
class _Part:
    """Something that is pickled with an environment: where it is, and by whose use of it."""

    value: Any
    place: str
    user: str = ""

    def __str__(self) -> str:
        kind = type(self.value)
        of = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
        used = f", which {self.user} uses," if self.user else ""
        return f"{self.place}{used} is a {of}{kind.__qualname__}"


def _culprit(part: _Part, error: Exception, seen: set[int]) -> str:
    """The innermost part that cannot be pickled, and why.

    seen: ids of what others blame. Nothing for a part that fails by those alone, such as a method
    by its class, which `super()` uses.
    """
    seen.add(id(part.value))
    is_innermost = True
    for inner in _parts(part):
        inner_error = _error_of(inner.value)
        if inner_error is not None:
            is_innermost = False
            if id(inner.value) not in seen and (culprit := _culprit(inner, inner_error, seen)):
                return culprit
    return f"{part} ({error})" if is_innermost else ""


def _error_of(value: Any) -> Exception | None:
    try:
        pickled(value)
    except Exception as error:
        return error
    return None


def _parts(part: _Part) -> Iterator[_Part]:
    value, place, user = part.value, part.place, part.user
    if isinstance(value, types.FunctionType):
        from rollout.envs.fingerprints import named_in  # loads Numba, which only this error needs

        for name, inner in named_in(value).items():
            if "." not in name:  # else of a module, which goes by its name
                yield _Part(inner, name, place)
        for inner in (*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()):
            yield _Part(inner, f"a default of {place}", user)
    elif isinstance(value, functools.partial):
        yield _Part(value.func, place, user)
        for inner in (*value.args, *value.keywords.values()):
            yield _Part(inner, f"an argument of {place}", user)
    elif isinstance(value, staticmethod | classmethod):
        yield _Part(value.__func__, place, user)
    elif isinstance(value, property):
        for inner in (value.fget, value.fset, value.fdel):
            yield _Part(inner, place, user)
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield _Part(inner, f"{place}[{key!r}]", user)
    elif isinstance(value, list | tuple | set | frozenset):
        for i, inner in enumerate(value):
            yield _Part(inner, f"{place}[{i}]", user)
    else:
        for name, inner in dict(getattr(value, "__dict__", {})).items():
            if name not in _OF_EVERY_CLASS:
                yield _Part(inner, f"{place}.{name}", user)
        for base in value.__bases__ if isinstance(value, type) else ():
            yield _Part(base, base.__name__, user)
