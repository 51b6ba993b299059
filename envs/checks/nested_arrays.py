"""Observations as Gymnasium has them, arrays or nested dicts and tuples of arrays, compared."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Dict, MultiBinary, MultiDiscrete, Space, Tuple


def kind_of(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    if isinstance(value, tuple):
        return f"a tuple of {len(value)}"
    return f"{type(value).__name__} {value!r:.60}"


def have_one_form(one: Any, other: Any) -> bool:
    """Whether two spaces hold the same arrays, if within other bounds."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Dict):
        return one.spaces.keys() == other.spaces.keys() and all(
            have_one_form(one[name], other[name]) for name in one.spaces
        )
    if isinstance(one, Tuple):
        return len(one) == len(other) and all(map(have_one_form, one, other))
    return one.shape == other.shape and one.dtype == other.dtype


def misfit(space: Space, value: Any, place: str) -> str | None:
    """How a value does not lie in a space; None if it does."""
    if isinstance(space, Dict):
        if not (isinstance(value, Mapping) and value.keys() == space.spaces.keys()):
            return f"{place} are {kind_of(value)}, wanted a dict of {', '.join(space.spaces)}"
        inner = ((f"{place}[{name!r}]", one, value[name]) for name, one in space.spaces.items())
    elif isinstance(space, Tuple):
        if not (isinstance(value, tuple | list) and len(value) == len(space.spaces)):
            return f"{place} are {kind_of(value)}, wanted {len(space.spaces)} parts"
        inner = ((f"{place}[{n}]", one, value[n]) for n, one in enumerate(space.spaces))
    else:
        if isinstance(space, Box | MultiDiscrete | MultiBinary):
            fits = isinstance(value, np.ndarray) and value.shape == space.shape
            if not (fits and value.dtype == space.dtype):
                return f"{place} are {kind_of(value)}, wanted {space.dtype} {list(space.shape)}"
        if isinstance(space, Box):
            wrong = np.argwhere(~((space.low <= value) & (value <= space.high)))
            if len(wrong):
                index = tuple(wrong[0])
                bounds = f"{space.low[index]} to {space.high[index]}"
                at = ", ".join(map(str, index))
                return f"{place}[{at}] is {value[index]}, wanted {bounds}"
        return None if space.contains(value) else f"{place} are {value!r:.60}, not in {space!r}"
    return next(filter(None, (misfit(one, part, name) for name, one, part in inner)), None)


def difference(one: Any, other: Any, place: str) -> str | None:
    """The first place at which two structures of arrays are not the same, to the bit."""
    if isinstance(one, Mapping):
        inner = [(f"{place}[{name!r}]" if place else name, one[name], other[name]) for name in one]
        return next(filter(None, (difference(a, b, name) for name, a, b in inner)), None)
    if isinstance(one, tuple | list):
        inner = [(f"{place}[{n}]", *pair) for n, pair in enumerate(zip(one, other, strict=True))]
        return next(filter(None, (difference(a, b, name) for name, a, b in inner)), None)
    a, b = np.asarray(one), np.asarray(other)
    if a.shape != b.shape or a.dtype != b.dtype:
        return f"{place} is {kind_of(a)} and {kind_of(b)}"
    if a.dtype == object or a.tobytes() == b.tobytes():
        return None if a.dtype != object or (a == b).all() else f"{place} is {a} and {b}"
    differs = np.argwhere((a != b) & ~((a != a) & (b != b)))  # of NaN the bits do not matter
    if not len(differs):
        return None
    index = tuple(map(int, differs[0]))
    return f"{place}[{', '.join(map(str, index))}] is {a[index]} and {b[index]}"


def are_alike(values: Sequence[Any]) -> bool:
    """Whether structures of arrays are all the same."""
    return all(difference(values[0], value, "") is None for value in values[1:])
