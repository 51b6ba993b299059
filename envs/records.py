"""Records for plain Python, so that an environment's functions run the same without Numba.

NumPy's own scalars wrap at 8 bits and warn, where compiled code computes with 64. So these views
hand out Python's numbers, and write through to the array. Two kinds of field need a type of their
own, because compiled code does not compute with them as Python does:

- float32: stays float32 with its like and with integers of 8 or 16 bits, becomes float64 otherwise;
- unsigned integers: a difference of two wraps around at 2⁶⁴ instead of becoming negative.

What Python cannot show: `x ** 2` is `x * x` in compiled code, a last bit away from Python's power;
functions of a float32 (`math.sin`) are computed in float32; integers wrap at 64 bits.
"""

import ctypes
from typing import Any, Self

import numpy as np


def records(record_bytes: np.ndarray, dtype: np.dtype) -> "RecordsView":
    """Bytes [N × size] as an array [N] of records. (kernels.py has the compiled body.)"""
    return RecordsView(record_bytes.view(dtype))


class RecordView:
    """One record of a structured array, its fields as attributes."""

    __slots__ = ("_array",)

    def __init__(self, array: np.ndarray) -> None:
        object.__setattr__(self, "_array", array)  # shape [1], so that every field is a view

    def __getattr__(self, name: str) -> Any:
        field = self._field(name)
        if field.dtype.names is not None:
            return RecordView(field) if field.ndim == 1 else RecordsView(field[0])
        return _number(field[0]) if field.ndim == 1 else ArrayView(field[0])

    def __setattr__(self, name: str, value: Any) -> None:
        field = self._field(name)
        field[0] = _wrapped(value, field.dtype)

    def _field(self, name: str) -> np.ndarray:
        array = object.__getattribute__(self, "_array")
        if array.dtype.names is None or name not in array.dtype.names:
            raise AttributeError(f"the record has no field {name!r}; it has {array.dtype.names}")
        return array[name]

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
    """A nested array or an observation: numbers come out as Python's, slices as views.

    Everything else (`shape`, `sum()`, …) is the array's own.
    """

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __getattr__(self, name: str) -> Any:
        return getattr(self.array, name)

    def __getitem__(self, index: Any) -> Any:
        value = self.array[index]
        return ArrayView(value) if isinstance(value, np.ndarray) else _number(value)

    def __setitem__(self, index: Any, value: Any) -> None:
        self.array[index] = _wrapped(value, self.array.dtype)

    def __len__(self) -> int:
        return len(self.array)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.array, dtype=dtype) if copy else np.asarray(self.array, dtype=dtype)

    def __repr__(self) -> str:
        return f"ArrayView({self.array!r})"


class Short(int):
    """An integer of 8 or 16 bits: it does not widen a float32."""

    __slots__ = ()


class Unsigned(int):
    """An unsigned integer: with its like it computes modulo 2⁶⁴, with others as they do."""

    __slots__ = ()

    def __neg__(self) -> "Unsigned":
        return Unsigned(-int(self) % 2**64)

    def __invert__(self) -> "Unsigned":
        return Unsigned(~int(self) % 2**64)


class ShortUnsigned(Unsigned, Short):
    """Both."""

    __slots__ = ()


class Single(float):
    """A float32: with its like and with short integers it stays one, with others it widens."""

    def __new__(cls, value: float) -> Self:
        return super().__new__(cls, ctypes.c_float(value).value)

    def __neg__(self) -> "Single":
        return Single(-float(self))

    def __abs__(self) -> "Single":
        return Single(abs(float(self)))

    def __pow__(self, exponent: Any, modulus: None = None) -> Any:
        if not isinstance(exponent, int) or exponent < 0:
            return float(self) ** exponent
        result, square = Single(1.0), self
        while exponent:  # as Numba multiplies
            if exponent & 1:
                result = result * square
            exponent >>= 1
            square = square * square
        return result


def _unsigned_operator(name: str) -> Any:
    of_int = getattr(int, name)

    def operator(self: Unsigned, other: Any) -> Any:
        result = of_int(self, other)
        if result is NotImplemented or not (isinstance(other, Unsigned) or "shift" in name):
            return result
        return Unsigned(result % 2**64)

    return operator


def _single_operator(name: str) -> Any:
    of_float = getattr(float, name)

    def operator(self: Single, other: Any) -> Any:
        result = of_float(self, other)
        # exact: a float64 sum, product or quotient of float32s, rounded again, is the float32 one
        stays = isinstance(other, Single | Short | bool) and result is not NotImplemented
        return Single(result) if stays else result

    return operator


for _name in ("add", "sub", "mul", "floordiv", "mod", "and", "or", "xor", "lshift", "rshift"):
    setattr(Unsigned, f"__{_name}__", _unsigned_operator(f"__{_name}__"))
for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod"):
    setattr(Single, f"__{_name}__", _single_operator(f"__{_name}__"))
    setattr(Single, f"__r{_name}__", _single_operator(f"__r{_name}__"))


def _number(scalar: Any) -> Any:
    """A NumPy scalar as the number that compiled code would compute with."""
    dtype, value = scalar.dtype, scalar.item()
    if dtype.kind == "u":
        return ShortUnsigned(value) if dtype.itemsize <= 2 else Unsigned(value)
    if dtype.kind == "i" and dtype.itemsize <= 2:
        return Short(value)
    return Single(value) if dtype == np.float32 else value


def _wrapped(value: Any, dtype: np.dtype) -> Any:
    """What compiled code stores: an integer cut to the field's bits, where NumPy would refuse."""
    if isinstance(value, ArrayView):
        return value.array
    if isinstance(value, float) and dtype.kind in "iu":
        value = int(value)
    if isinstance(value, int) and dtype.kind in "iu":
        bits = value & (2 ** (8 * dtype.itemsize) - 1)
        return np.array(bits, f"u{dtype.itemsize}").view(dtype)[()]
    return value
