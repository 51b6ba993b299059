"""Gymnasium's observations as the kit keeps them, in rows of numbers.

A space of the kit (layouts.py) stands for each of Gymnasium's. What it holds is the same, laid out
anew: a number without a shape gets one, categories begin at 0, a Tuple becomes a Dict of its items.
"""

import keyword
import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space, Tuple
from gymnasium.vector.utils import iterate

from rollout.envs.errors import EnvError
from rollout.envs.layouts import NUMBERS, observation_layout

KINDS = {"b": "bool", "i": "integers", "u": "unsigned integers", "f": "floats"}
STANDS_FOR = {"b": "b", "i": "biu", "u": "biu", "f": "biuf"}  # kinds of numbers that others may be

Write = Callable[[np.ndarray, Any], None]


def kit_observation_space(space: Any) -> Space:
    """The kit's space for observations of `space`. Raises EnvError that names what cannot be."""
    return _kit_space(space, "observation_space", is_inside=False)


def _kit_space(space: Any, place: str, is_inside: bool) -> Space:
    """is_inside: whether it is an entry of a Dict, whose records hold no arrays of bools."""
    match space:
        case Box() if 0 not in space.shape:
            dtype = _kept_dtype(np.dtype(space.dtype), is_inside)
            shape = space.shape or (1,)
            low, high = (bound.reshape(shape).astype(dtype) for bound in (space.low, space.high))
            return Box(low, high, shape, dtype.type)
        case Discrete():
            return Discrete(int(space.n))
        case MultiDiscrete():
            return MultiDiscrete(space.nvec.reshape(-1))
        case MultiBinary():
            return MultiBinary(space.shape)
        case Dict() | Tuple() if len(space.spaces):
            inner = entries_of(space)
            names = field_names(inner)
            kept = (_kit_space(inner[key], f"{place}[{key!r}]", True) for key in inner)
            return Dict(list(zip(names, kept, strict=True)))  # of a dict it would sort the names
    raise EnvError(
        f"{place} is {space!r}, {whose(space)}wanted a Box, Discrete, MultiDiscrete, MultiBinary, "
        "or a Dict or Tuple of these, with at least one number"
    )


def whose(space: Any) -> str:
    """A word on spaces that look right and are not."""
    is_old = type(space).__module__.partition(".")[0] == "gym"
    return "a space of the old package gym, not of gymnasium; " if is_old else ""


def entries_of(space: Dict | Tuple) -> dict[Any, Space]:
    """The spaces in a Dict or Tuple, by what their values are found under."""
    return dict(space.spaces) if isinstance(space, Dict) else dict(enumerate(space.spaces))


def field_names(keys: Iterable[Any]) -> list[str]:
    """A name for each key that a field can have: `my-key` becomes `my_key`, item 0 `item_0`."""
    names: list[str] = []
    for key in keys:
        name = re.sub(r"\W", "_", f"item_{key}" if isinstance(key, int) else str(key))
        if not name.isidentifier() or keyword.iskeyword(name):
            name = f"_{name}"
        while name in names:
            name += "_"
        names.append(name)
    return names


def _kept_dtype(dtype: np.dtype, is_inside: bool) -> np.dtype:
    """The dtype that numbers are kept in: their own, if compiled code computes with it."""
    if dtype == np.bool_ and is_inside:
        return np.dtype(np.uint8)
    if dtype in NUMBERS:
        return dtype
    return np.dtype(np.float32 if dtype.itemsize <= 2 else np.float64)


def observation_writer(space: Space) -> Write:
    """A function (row, observation) that writes one observation of `space` into a row.

    row: [*layout.shape] of the kit's space. It raises Misfit where the shape is another, or numbers
    are of another kind; that they lie within bounds is not asked.
    """
    record = observation_layout(kit_observation_space(space)).record
    write = _writer(space)
    return write if record is None else lambda row, value: write(row.view(record), value)


def batch_writer(space: Space, batched: Space) -> Write:
    """A function (rows, observations) that writes N observations, as a vector environment has them.

    rows: [N, *layout.shape] of the kit's space for `space`; batched: the vector environment's own,
    for N of them.
    """
    if isinstance(space, Box):
        write_numbers = _numbers_writer(space)

        def write_box(rows: np.ndarray, observations: Any) -> None:
            given = _array(observations, (len(rows), *space.shape))
            if given.dtype == space.dtype:
                rows[...] = given.reshape(rows.shape)
                return
            for row, one in zip(rows, given, strict=True):
                write_numbers(row, one)

        return write_box
    write = observation_writer(space)

    def write_each(rows: np.ndarray, observations: Any) -> None:
        try:
            for row, one in zip(rows, iterate(batched, observations), strict=True):
                write(row, one)
        except (TypeError, ValueError, KeyError) as error:
            raise Misfit(f"is not {len(rows)} of {space}: {error}") from None

    return write_each


def check_bounds(space: Space, row: Any, keys: str = "") -> None:
    """Raises Misfit where a row of the kit's `space` lies outside of it, or is not finite.

    keys: where in an observation this is.
    """
    if isinstance(space, Dict):
        record = observation_layout(space).record
        inner = row if keys else row.view(record)[0]
        for name, entry in space.spaces.items():
            check_bounds(entry, inner[name], f"{keys}[{name!r}]")
    elif isinstance(space, Box):
        if space.dtype.kind == "f" and not np.isfinite(row).all():
            place = tuple(np.argwhere(~np.isfinite(row))[0].tolist())
            raise Misfit(f"{keys} is {row[place]} at {list(place)}, wanted a finite number".strip())
        is_outside = (row < space.low) | (row > space.high)
        if is_outside.any():
            place = tuple(np.argwhere(is_outside)[0].tolist())
            raise Misfit(
                f"{keys} is {row[place]} at {list(place)}, outside of observation_space, where it "
                f"is from {space.low[place]} to {space.high[place]}".strip()
            )


class Misfit(Exception):
    """An observation that is not what its space says; keys: where in it, from the inside out."""

    def __init__(self, said: str) -> None:
        super().__init__(said)
        self.keys: list[Any] = []

    def __str__(self) -> str:
        keys = "".join(f"[{key!r}]" for key in reversed(self.keys))
        return f"observation{keys} {super().__str__()}"


def _writer(space: Any) -> Write:
    """Writes into a row, or into a field of one record in an array [1]."""
    match space:
        case Discrete():
            return _category_writer(space)
        case MultiDiscrete():
            return _categories_writer(space)
        case Dict() | Tuple():
            return _record_writer(space)
        case _:
            return _numbers_writer(space)


def _numbers_writer(space: Box | MultiBinary) -> Write:
    shape, dtype = space.shape, np.dtype(space.dtype)
    fits = STANDS_FOR[dtype.kind]

    def write(target: np.ndarray, value: Any) -> None:
        if type(value) is not np.ndarray or value.dtype != dtype or value.shape != shape:
            value = _array(value, shape)
            if value.dtype.kind not in fits:
                found = KINDS.get(value.dtype.kind, str(value.dtype))
                raise Misfit(f"holds {found} ({value.dtype}), wanted {dtype}")
            if dtype.kind in "iu" and (value.astype(dtype) != value).any():
                raise Misfit(f"is {_short(value.tolist())}, which {dtype} does not hold")
        target[...] = value

    return write


def _category_writer(space: Discrete) -> Write:
    start, stop = int(space.start), int(space.start + space.n)

    def write(target: np.ndarray, value: Any) -> None:
        array = _array(value, ())
        if array.dtype.kind not in "biu" or not start <= array < stop:
            raise Misfit(f"is {value!r}, wanted an integer from {start} to {stop - 1}")
        target[...] = int(array) - start

    return write


def _categories_writer(space: MultiDiscrete) -> Write:
    starts, nvec = np.asarray(space.start).reshape(-1), space.nvec.reshape(-1)

    def write(target: np.ndarray, value: Any) -> None:
        array = _array(value, space.nvec.shape)
        categories = array.reshape(-1) - starts
        if array.dtype.kind not in "biu" or ((categories < 0) | (categories >= nvec)).any():
            raise Misfit(f"is {array.tolist()}, which is not in {space}")
        target[...] = categories

    return write


def _record_writer(space: Dict | Tuple) -> Write:
    entries = entries_of(space)
    writers = [
        (key, name, _writer(inner))
        for (key, inner), name in zip(entries.items(), field_names(entries), strict=True)
    ]
    container = dict if isinstance(space, Dict) else tuple | list

    def write(target: Any, value: Any) -> None:
        if not isinstance(value, container) or len(value) != len(writers):
            raise Misfit(f"is {_short(value)}, wanted exactly {_short(list(entries))} in it")
        for key, name, write_entry in writers:
            try:
                write_entry(target[name], value[key])
            except KeyError:
                raise Misfit(f"has no {key!r}, wanted {_short(list(entries))} in it") from None
            except Misfit as error:
                error.keys.append(key)
                raise

    return write


def _array(value: Any, shape: tuple[int, ...]) -> np.ndarray:
    try:
        array = np.asarray(value)
    except ValueError:  # rows of several lengths
        raise Misfit(f"is {_short(value)}, wanted an array {list(shape)}") from None
    if array.dtype == object:
        raise Misfit(f"is {_short(value)}, wanted an array {list(shape)}")
    if array.shape != shape:
        raise Misfit(f"has shape {list(array.shape)}, wanted {list(shape)}")
    return array


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
