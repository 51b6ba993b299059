"""Observations of several environments in the form in which Gymnasium gives them.

A Box is an array [N, …], a Discrete an int64 array [N], a Dict a dictionary of such arrays.
Compiled code writes one block of memory; what users see are views of it. The fields of a Dict lie
one after the other there, not interleaved: each is contiguous and aligned like any array.
"""

from typing import Any

import numpy as np
from gymnasium.spaces import Discrete, Space

from rollout.envs.layouts import observation_layout


class ObservationBatch:
    """How N observations of a space lie in memory.

    fields: of a Dict, for each leaf: its offset in a record, its bytes, and the bytes (per row) of
        the leaves that lie before it; else empty.
    """

    def __init__(self, space: Space, num_rows: int) -> None:
        layout = observation_layout(space)
        self.num_rows = num_rows
        self.row_bytes = layout.size if layout.record else 0
        self._shape, self._dtype = (num_rows, *layout.shape), layout.dtype
        self._is_scalar = isinstance(space, Discrete)
        fields, starts, before = [], {}, 0
        if layout.record is not None:
            # the widest numbers first: each leaf starts at a multiple of its numbers' size
            for part in sorted(layout.parts, key=lambda part: -part.dtype.itemsize):
                size = part.size * part.dtype.itemsize
                fields.append((part.offset, size, before))
                starts[part.name] = before * num_rows
                before += size
        self.fields = tuple(fields)
        self._leaves = [
            (part.name.split("."), (num_rows, *part.shape), part.dtype, starts[part.name])
            for part in layout.parts
            if part.name in starts
        ]

    def allocate(self) -> tuple[np.ndarray, Any]:
        """New memory: the block that compiled code writes, and what users see of it."""
        if not self._leaves:
            block = np.empty(self._shape, self._dtype)
            return block, block.reshape(self.num_rows) if self._is_scalar else block
        block = np.empty(self.num_rows * self.row_bytes, np.uint8)
        seen: dict[str, Any] = {}
        for (*outer, name), shape, dtype, start in self._leaves:
            inner = seen
            for key in outer:
                inner = inner.setdefault(key, {})
            inner[name] = np.ndarray(shape, dtype, block.data, start)
        return block, seen


def first_rows(seen: Any, num_rows: int) -> Any:
    """A copy of the first observations of a batch."""
    if isinstance(seen, dict):
        return {name: first_rows(inner, num_rows) for name, inner in seen.items()}
    return seen[:num_rows].copy()


def one_row(seen: Any, i: int) -> Any:
    """Observation i of a batch, as a single environment gives it."""
    if isinstance(seen, dict):
        return {name: one_row(inner, i) for name, inner in seen.items()}
    return seen[i]
