"""Records for plain Python, so that a kernel runs the same without Numba.

NumPy's own scalars wrap at 8 bits and stay float32 where compiled code promotes. These views hand
out Python's numbers instead, and write through to the array.
"""

from typing import Any

import numpy as np


class RecordView:
    """One record of a structured array, its fields as attributes."""

    __slots__ = ("_array",)

    def __init__(self, array: np.ndarray) -> None:
        object.__setattr__(self, "_array", array)  # shape [1], so that every field is a view

    def __getattr__(self, name: str) -> Any:
        array = object.__getattribute__(self, "_array")
        if array.dtype.names is None or name not in array.dtype.names:
            raise AttributeError(f"the record has no field {name!r}; it has {array.dtype.names}")
        field = array[name]
        if field.dtype.names is not None:
            return RecordView(field)
        return field[0].item() if field.ndim == 1 else ArrayView(field[0])

    def __setattr__(self, name: str, value: Any) -> None:
        array = object.__getattribute__(self, "_array")
        if array.dtype.names is None or name not in array.dtype.names:
            raise AttributeError(f"the record has no field {name!r}; it has {array.dtype.names}")
        field = array[name]
        field[0] = _wrapped(value, field.dtype)

    def __repr__(self) -> str:
        array = object.__getattribute__(self, "_array")
        return f"RecordView({dict(zip(array.dtype.names, array[0].item(), strict=True))})"


class RecordsView:
    """An array of records: view[i] is a RecordView."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.shape = array.shape

    def __getitem__(self, i: int) -> RecordView:
        return RecordView(self.array[i : i + 1])


class ArrayView:
    """A nested array: numbers come out as Python's, slices as views."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.shape = array.shape

    def __getitem__(self, index: Any) -> Any:
        value = self.array[index]
        return ArrayView(value) if isinstance(value, np.ndarray) else value.item()

    def __setitem__(self, index: Any, value: Any) -> None:
        value = value.array if isinstance(value, ArrayView) else value
        self.array[index] = _wrapped(value, self.array.dtype)

    def __len__(self) -> int:
        return len(self.array)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.array, dtype=dtype) if copy else np.asarray(self.array, dtype=dtype)


def _wrapped(value: Any, dtype: np.dtype) -> Any:
    """An integer as compiled code stores it: cut to the field's bits, where NumPy would refuse."""
    if isinstance(value, int) and dtype.kind in "iu":
        return np.array(value & (2 ** (8 * dtype.itemsize) - 1), f"u{dtype.itemsize}").view(dtype)[
            ()
        ]
    if isinstance(value, float) and dtype.kind in "iu":
        return _wrapped(int(value), dtype)
    return value
