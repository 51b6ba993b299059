"""The single numbers of records and observations: their names, which are wrong, which differ."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Dict, MultiBinary, Space

from rollout.envs.layouts import observation_layout


@dataclass(frozen=True)
class Leaf:
    """The numbers of one field, in N rows.

    path: names from the outside in, each with its number of dimensions. array: [N, …].
    """

    path: tuple[tuple[str, int], ...]
    array: np.ndarray

    def name(self, index: tuple[int, ...] | None = None) -> str:
        """`state.cells[2].x`; without an index, `state.cells.x`."""
        names, rest = [], list(index or ())
        for name, num_dimensions in self.path:
            own, rest = rest[:num_dimensions], rest[num_dimensions:]
            names.append(f"{name}[{', '.join(map(str, own))}]" if own else name)
        return ".".join(names)


def leaves(records: np.ndarray, name: str) -> Iterator[Leaf]:
    """The fields of N records called `name`, nested ones too."""
    yield from _leaves(records, ((name, 0),))


def _leaves(array: np.ndarray, path: tuple[tuple[str, int], ...]) -> Iterator[Leaf]:
    if array.dtype.names is None:
        yield Leaf(path, array)
    for name in array.dtype.names or ():
        inner = array[name]
        yield from _leaves(inner, (*path, (name, inner.ndim - array.ndim)))


def observation_leaves(space: Space, rows: np.ndarray) -> Iterator[tuple[Leaf, Space]]:
    """The parts of N observations, rows [N, *layout.shape], and the space of each."""
    layout = observation_layout(space)
    if layout.record is None:
        shape = layout.parts[0].shape
        yield Leaf((("observation", len(shape)),), rows.reshape(len(rows), *shape)), space
        return
    records = np.ascontiguousarray(rows).view(layout.record).reshape(len(rows))
    yield from zip(leaves(records, "observation"), _leaf_spaces(space), strict=True)


def _leaf_spaces(space: Space) -> Iterator[Space]:
    if isinstance(space, Dict):
        for inner in space.spaces.values():
            yield from _leaf_spaces(inner)
    else:
        yield space


@dataclass(frozen=True)
class Outside:
    """A number of an observation that its space does not hold.

    row: of which observation. leaf, index: where, among `observation_leaves`.
    """

    row: int
    leaf: int
    index: tuple[int, ...]
    name: str
    value: Any
    wanted: str

    def __str__(self) -> str:
        return f"{self.name} is {self.value}" + (f", wanted {self.wanted}" * self.is_finite)

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.value)


def outside(space: Space, rows: np.ndarray) -> Outside | None:
    """The first number of N observations [N, …] that lies outside the space, or is not finite."""
    for n, (leaf, leaf_space) in enumerate(observation_leaves(space, rows)):
        low, high = _bounds(leaf_space)
        array = leaf.array
        is_wrong = ~((low <= array) & (array <= high))  # so that it is true of NaN
        if array.dtype.kind == "f":
            is_wrong |= np.isinf(array)
        if is_wrong.any():
            row, *rest = map(int, np.argwhere(is_wrong)[0])
            index = tuple(rest)
            ends = (np.broadcast_to(end, array.shape[1:])[index] for end in (low, high))
            wanted = "{} to {}".format(*ends)
            return Outside(row, n, index, leaf.name(index), array[row, *index], wanted)
    return None


def _bounds(space: Any) -> tuple[Any, Any]:
    if isinstance(space, Box):
        return space.low, space.high
    if isinstance(space, MultiBinary):
        return 0, 1
    return 0, (space.nvec if hasattr(space, "nvec") else space.n) - 1


def not_finite(records: np.ndarray, name: str) -> str | None:
    """The first number of N records that is not finite: `state.v is nan`."""
    for leaf in leaves(records, name):
        if leaf.array.dtype.kind == "f" and not np.isfinite(leaf.array).all():
            row, *index = map(int, np.argwhere(~np.isfinite(leaf.array))[0])
            return f"{leaf.name(tuple(index))} is {leaf.array[row, *index]}"
    return None


@dataclass(frozen=True)
class Difference:
    """A number that is not the same, to the bit, in two arrays of N rows."""

    row: int
    name: str
    one: Any
    other: Any

    def __str__(self) -> str:
        return f"{self.name} is {self.one} and {self.other}"

    @property
    def is_rounding(self) -> bool:
        """Whether both are nearly the same fraction."""
        if not isinstance(self.one, np.floating):
            return False
        tolerance = 64 * np.finfo(self.one.dtype).eps
        return math.isclose(self.one, self.other, rel_tol=tolerance, abs_tol=tolerance)


def differences(one: Leaf, other: Leaf) -> Iterator[Difference]:
    """The numbers that differ, in the order of memory; NaN is NaN, whatever its sign."""
    bits = f"u{one.array.dtype.itemsize}"
    pair = [np.ascontiguousarray(leaf.array) for leaf in (one, other)]
    is_other = pair[0].view(bits) != pair[1].view(bits)
    if pair[0].dtype.kind == "f":
        is_other &= ~(np.isnan(pair[0]) & np.isnan(pair[1]))  # NaN has many bits
    for row, *index in np.argwhere(is_other).tolist():
        name = one.name(tuple(index))
        yield Difference(row, name, *(array[row, *index] for array in pair))
