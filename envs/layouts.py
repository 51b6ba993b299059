"""How observations and actions lie in memory: what a space becomes in arrays.

A `Box` is kept as it is; a `Discrete` as one integer, `MultiDiscrete` and `MultiBinary` as several;
a `Dict` as a record with a field for every name (records in it for nested ones), which arrays hold
as bytes. Categories become one-hot where a network reads them, as `gymnasium.spaces.flatten` does.
"""

import functools
import keyword
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space

# What compiled code computes with, and a record may hold.
NUMBERS = tuple(
    np.dtype(code) for code in ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f4", "f8")
)


@dataclass(frozen=True)
class ObservationPart:
    """One named piece of an observation: a leaf of its space.

    name: keys joined by dots; empty if the space is no Dict. offset: bytes from the observation's
    start. dtype, shape: of the piece. categories: how many values each of its numbers may have, or
    empty if they are quantities.
    """

    name: str
    offset: int
    dtype: np.dtype
    shape: tuple[int, ...]
    categories: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class ObservationLayout:
    """One observation in an array.

    shape, dtype: of the array; of a Dict's, its bytes. record: the dtype of these bytes, None
    without a Dict. parts: its leaves in the order of memory.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    record: np.dtype | None
    parts: tuple[ObservationPart, ...]

    @property
    def size(self) -> int:
        """Elements of the array."""
        return math.prod(self.shape)

    @property
    def is_plain(self) -> bool:
        """Whether a network reads the array's own numbers."""
        return self.record is None and not self.parts[0].categories

    def names(self) -> list[str]:
        """A name for each number that a network reads, `goal[2]` or `direction=3`."""
        return [name for part in self.parts for name in _names(part)]


def observation_layout(space: Space | None) -> ObservationLayout:
    """How observations of a space are kept; raises ValueError that says what is wrong with it."""
    return _observation_layout(_Same(space))


@dataclass(frozen=True, eq=False)
class _Same:
    """A space as a key: spaces compare by value and have no hash."""

    space: Space | None

    def __hash__(self) -> int:
        return id(self.space)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.space is other.space


@functools.cache
def _observation_layout(key: _Same) -> ObservationLayout:
    space = key.space
    if not isinstance(space, Dict):
        part = ObservationPart("", 0, *_leaf(space, "observation_space"))
        shape = part.shape or (1,)  # authors write observation[0] = k
        return ObservationLayout(shape, part.dtype, None, (part,))
    record = _record(space, "observation_space")
    parts = tuple(_parts(space, record, "", 0))
    return ObservationLayout((record.itemsize,), np.dtype(np.uint8), record, parts)


def _leaf(space: Space | None, place: str) -> tuple[np.dtype, tuple[int, ...], tuple[int, ...]]:
    """(dtype, shape, categories) of a space that is no Dict."""
    if isinstance(space, Box):
        dtype = np.dtype(space.dtype)
        if len(space.shape) < 1 or 0 in space.shape or dtype not in NUMBERS:
            kinds = ", ".join(map(str, NUMBERS))
            raise ValueError(
                f"{place} is {space!r}, wanted a Box of shape (n, …) with at least one number, "
                f"of {kinds}"
            )
        return dtype, space.shape, ()
    if isinstance(space, Discrete):
        if space.start != 0:
            raise ValueError(f"{place} is {space!r}, wanted a Discrete(n) that starts at 0")
        return np.dtype(space.dtype), (), (int(space.n),)
    if isinstance(space, MultiDiscrete):
        if space.nvec.ndim != 1 or (space.start != 0).any():
            raise ValueError(f"{place} is {space!r}, wanted one row of numbers that start at 0")
        return np.dtype(space.dtype), space.nvec.shape, tuple(map(int, space.nvec))
    if isinstance(space, MultiBinary):
        return np.dtype(np.int8), tuple(map(int, space.shape)), ()
    raise ValueError(
        f"{place} is {space!r}, wanted a Box, Discrete, MultiDiscrete, MultiBinary or Dict"
    )


def _record(space: Dict, place: str) -> np.dtype:
    """A Dict as a record, in the space's own order of names."""
    if not space.spaces:
        raise ValueError(f"{place} is {space!r}, which holds nothing")
    fields: list[Any] = []
    for name, inner in space.spaces.items():
        if not (isinstance(name, str) and name.isidentifier() and not keyword.iskeyword(name)):
            raise ValueError(f"{place}[{name!r}] is not a name that `observation.name` can be")
        if isinstance(inner, Dict):
            fields.append((name, _record(inner, f"{place}[{name!r}]")))
        else:
            dtype, shape, _ = _leaf(inner, f"{place}[{name!r}]")
            if dtype == np.bool_:
                raise ValueError(
                    f"{place}[{name!r}] is {inner!r}, Numba has no arrays of bools in records: use "
                    "MultiBinary or a Box of np.uint8"
                )
            fields.append((name, dtype, shape))
    return np.dtype(fields)


def _parts(space: Dict, record: np.dtype, prefix: str, start: int) -> Iterator[ObservationPart]:
    fields: Any = record.fields
    for name, inner in space.spaces.items():
        field, offset = fields[name][:2]
        if isinstance(inner, Dict):
            yield from _parts(inner, field, f"{prefix}{name}.", start + offset)
        else:
            dtype, shape, categories = _leaf(inner, name)
            yield ObservationPart(prefix + name, start + offset, dtype, shape, categories)


def _names(part: ObservationPart) -> Iterator[str]:
    name = part.name or "observation"
    for j, index in enumerate(np.ndindex(part.shape)):
        indexed = f"{name}[{', '.join(map(str, index))}]" if index else name
        if part.categories:
            yield from (f"{indexed}={value}" for value in range(part.categories[j]))
        else:
            yield indexed


def observation_rows(space: Space, observation: Any) -> tuple[np.ndarray, bool]:
    """An observation as Gymnasium has it, or a batch of them, as rows [N, *layout.shape].

    Returns the rows, a copy, and whether it was a batch. Raises ValueError that names what is not
    of the space's shape or dtype.
    """
    layout = observation_layout(space)
    arrays = [np.asarray(_entry(observation, part.name)) for part in layout.parts]
    is_batch = arrays[0].ndim > len(layout.parts[0].shape)
    num_rows = len(arrays[0]) if is_batch else 1
    rows = np.zeros((num_rows, *layout.shape), layout.dtype)
    in_bytes = rows.view(np.uint8).reshape(num_rows, layout.size * layout.dtype.itemsize)
    for part, array in zip(layout.parts, arrays, strict=True):
        wanted = (num_rows, *part.shape)[not is_batch :]
        if array.shape != wanted or not np.can_cast(array.dtype, part.dtype, "same_kind"):
            shape = ", ".join(map(str, part.shape))
            raise ValueError(
                f"{part.name or 'observation'} is {array.dtype} {list(array.shape)}, wanted "
                f"{part.dtype} [{shape}], or [{', '.join(filter(None, ('N', shape)))}] for a batch"
            )
        given = array.reshape(num_rows, part.size)
        if part.categories and ((given < 0) | (given >= part.categories)).any():
            raise ValueError(
                f"{part.name or 'observation'} is {array.tolist()}, wanted integers from 0 to "
                f"below {', '.join(map(str, part.categories))}"
            )
        stop = part.offset + part.size * part.dtype.itemsize
        in_bytes[:, part.offset : stop] = np.ascontiguousarray(given, part.dtype).view(np.uint8)
    return rows, is_batch


def _entry(observation: Any, name: str) -> Any:
    """What a dictionary of dictionaries has under keys joined by dots."""
    for key in filter(None, name.split(".")):
        if not isinstance(observation, Mapping) or key not in observation:
            raise ValueError(f"the observation has no {name!r}")
        observation = observation[key]
    return observation


@dataclass(frozen=True)
class ActionLayout:
    """One action in an array.

    shape, dtype: of the array: () for Discrete. choices: how many values each of its integers may
    have; empty if it is made of quantities. low, high: bounds of those, float32 [n].
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    choices: tuple[int, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    @property
    def mask_size(self) -> int:
        """Length of an action mask: the choices side by side."""
        return sum(self.choices)


def action_layout(space: Space | None) -> ActionLayout:
    """How actions of a space are kept; raises ValueError that says what is wrong with it."""
    integers = np.dtype(np.int32)
    if isinstance(space, Discrete):
        if space.start != 0:
            raise ValueError(f"action_space is {space!r}, wanted Discrete(n) that starts at 0")
        return ActionLayout((), integers, (int(space.n),), (), ())
    if isinstance(space, MultiDiscrete):
        if space.nvec.ndim != 1 or (space.start != 0).any():
            raise ValueError(
                f"action_space is {space!r}, wanted MultiDiscrete([n, …]) whose numbers start at 0"
            )
        return ActionLayout(space.nvec.shape, integers, tuple(map(int, space.nvec)), (), ())
    if isinstance(space, Box):
        if len(space.shape) != 1 or 0 in space.shape or space.dtype != np.float32:
            raise ValueError(f"action_space is {space!r}, wanted a Box of shape (n,) and float32")
        low, high = (tuple(map(float, bound)) for bound in (space.low, space.high))
        return ActionLayout(space.shape, np.dtype(np.float32), (), low, high)
    raise ValueError(
        f"action_space is {space!r}, wanted Discrete(n), MultiDiscrete([n, …]) or a Box of "
        "shape (n,)"
    )
