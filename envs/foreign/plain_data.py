"""What the attributes of an object hold, as bytes: numbers, texts, arrays, and containers of these.

Nothing is executed where they are read, as unpickling would. Values that nobody changes (functions,
classes, modules, spaces) are passed over.
"""

import enum
import types
from collections import deque
from collections.abc import Callable, Container
from typing import Any

import msgspec
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

CONSTANT = (
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    types.ModuleType,
    type,
    enum.Enum,
    spaces.Space,
    EnvSpec,
)
GENERATORS = ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")


class NotPlain(Exception):
    """A value that is more than data."""


def read_attributes(owner: Any, passing_over: Container[str] = ()) -> bytes:
    """All attributes of an object but those that are constant, or named in `passing_over`.

    Raises NotPlain that names the first one that is more than data.
    """
    plain = {}
    for name, value in vars(owner).items():
        if name in passing_over:
            continue
        try:
            plain[name] = _to_plain(value)
        except NotPlain as error:
            if not isinstance(value, CONSTANT):
                raise NotPlain(f"{type(owner).__name__}.{name} {error}") from None
    return msgspec.msgpack.encode(plain)


def write_attributes(owner: Any, data: bytes) -> None:
    """Give an object of the same kind the attributes that were read."""
    for name, plain in msgspec.msgpack.decode(data).items():
        setattr(owner, name, _from_plain(plain, getattr(owner, name, None)))


def _to_plain(value: Any) -> Any:
    """The value for msgpack; what that has no name for is a list that begins with its kind."""
    write = _WRITERS.get(type(value))
    if write is not None:
        return write(value)
    if isinstance(value, np.generic) and value.dtype.names is None:
        return ["number", value.dtype.str, value.tobytes()]
    if type(value).__module__.startswith("gymnasium.") and hasattr(value, "__dict__"):
        return ["object", {name: _to_plain(one) for name, one in vars(value).items()}]
    raise NotPlain(f"is a {type(value).__module__}.{type(value).__qualname__}")


def _write_array(array: np.ndarray) -> list[Any]:
    if array.dtype.hasobject or array.dtype.names is not None:
        raise NotPlain(f"is an array of {array.dtype}")
    return ["array", array.dtype.str, array.shape, array.tobytes()]


def _write_generator(generator: np.random.Generator) -> list[Any]:
    bits = generator.bit_generator
    return ["generator", type(bits).__name__, _to_plain(bits.state)]


_WRITERS: dict[type, Callable[[Any], Any]] = {
    **dict.fromkeys((type(None), bool, float, str, bytes), lambda value: value),
    int: lambda value: value if value.bit_length() < 64 else ["int", str(value)],
    list: lambda value: ["list", [_to_plain(one) for one in value]],
    tuple: lambda value: ["tuple", [_to_plain(one) for one in value]],
    deque: lambda value: ["deque", value.maxlen, [_to_plain(one) for one in value]],
    dict: lambda value: ["dict", [(_to_plain(key), _to_plain(one)) for key, one in value.items()]],
    np.ndarray: _write_array,
    np.random.Generator: _write_generator,
}


def _from_plain(plain: Any, old: Any) -> Any:
    """old: what is there now; an object of Gymnasium's is changed, not replaced."""
    if not isinstance(plain, list):
        return plain
    kind, *rest = plain
    return _READERS[kind](old, *rest)


def _read_object(old: Any, attributes: dict[str, Any]) -> Any:
    for name, plain in attributes.items():
        setattr(old, name, _from_plain(plain, getattr(old, name, None)))
    return old


def _read_generator(old: Any, name: str, state: Any) -> np.random.Generator:
    if name not in GENERATORS:
        raise NotPlain(f"is a generator of numbers of an unknown kind, {name}")
    generator = np.random.Generator(getattr(np.random, name)())
    generator.bit_generator.state = _from_plain(state, None)
    return generator


def _read_array(old: Any, dtype: str, shape: list[int], data: bytes) -> np.ndarray:
    return np.frombuffer(data, dtype).reshape(shape).copy()


def _read_items(old: Any, items: list[Any]) -> list[Any]:
    return [_from_plain(one, None) for one in items]


_READERS: dict[str, Callable[..., Any]] = {
    "int": lambda old, text: int(text),
    "array": _read_array,
    "number": lambda old, dtype, data: np.frombuffer(data, dtype)[0],
    "generator": _read_generator,
    "deque": lambda old, length, items: deque(_read_items(old, items), length),
    "list": _read_items,
    "tuple": lambda old, items: tuple(_read_items(old, items)),
    "dict": lambda old, pairs: {
        _from_plain(key, None): _from_plain(one, None) for key, one in pairs
    },
    "object": _read_object,
}
