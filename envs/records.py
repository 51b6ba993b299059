"""Records for plain Python, so that an environment's functions run the same without Numba.

NumPy's own scalars wrap at 8 bits and warn, where compiled code computes with 64. So these views
hand out Python's numbers, and write through to the array. Two kinds of field need a type of their
own, because compiled code does not compute with them as Python does:

- float32: stays float32 with its like and with integers of 8 or 16 bits, becomes float64 otherwise;
- unsigned integers: a difference of two wraps around at 2⁶⁴ instead of becoming negative.

What Python cannot show: `x ** 2` is `x * x` in compiled code, a last bit away from Python's power;
functions of a float32 (`math.sin`) are computed in float32; integers wrap at 64 bits; whole arrays
of float32 or of small integers (`state.small * 2 + 1`) are computed at widths that depend on how
Numba joins an expression into one loop.
"""

import ctypes
from typing import Any, Self

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin


def records(record_bytes: np.ndarray, dtype: np.dtype) -> "RecordsView":
    """Bytes [N × size] as an array [N] of records. (kernels.py has the compiled body.)"""
    return RecordsView(record_bytes.view(dtype))


def as_author_sees(value: Any, name: str) -> Any:
    """What an author's function gets in plain Python for an argument that it calls `name`."""
    if isinstance(value, RecordView):
        return RecordView(object.__getattribute__(value, "_array"), name)
    return ArrayView(value, name) if isinstance(value, np.ndarray) else int(value)


class RecordView:
    """One record of a structured array, its fields as attributes.

    name: what errors call it; its fields are `name.field`, or `field` if it is empty.
    """

    __slots__ = ("_array", "_name")

    def __init__(self, array: np.ndarray, name: str = "") -> None:
        object.__setattr__(self, "_array", array)  # shape [1], so that every field is a view
        object.__setattr__(self, "_name", name)

    def __getattr__(self, name: str) -> Any:
        field, place = self._field(name)
        if field.dtype.names is not None:
            return RecordView(field, place) if field.ndim == 1 else RecordsView(field[0], place)
        return _number(field[0]) if field.ndim == 1 else ArrayView(field[0], place)

    def __setattr__(self, name: str, value: Any) -> None:
        field, place = self._field(name)
        try:
            field[0] = _wrapped(value, field.dtype)
        except (ValueError, OverflowError, TypeError) as error:
            raise _assignment_error(place, value, error) from None

    def _field(self, name: str) -> tuple[np.ndarray, str]:
        """(the field, what it is called)."""
        array = object.__getattribute__(self, "_array")
        record = object.__getattribute__(self, "_name")
        if array.dtype.names is None or name not in array.dtype.names:
            raise AttributeError(
                f"{record or 'the record'} has no field {name!r}; it has {array.dtype.names}"
            )
        return array[name], f"{record}.{name}" if record else name

    def __repr__(self) -> str:
        array = object.__getattribute__(self, "_array")
        return f"RecordView({dict(zip(array.dtype.names, array[0].item(), strict=True))})"


class RecordsView:
    """An array of records: view[i] is a RecordView, and so is view[i, j] of two dimensions."""

    def __init__(self, array: np.ndarray, name: str = "") -> None:
        self.array = array
        self.shape = array.shape
        self._name = name

    def __getitem__(self, index: Any) -> Any:
        name = _indexed(self._name, index) if self._name else ""
        *first, last = index if isinstance(index, tuple) else (index,)
        try:
            if len(first) + 1 < self.array.ndim:
                return RecordsView(self.array[index], name)
            position = range(self.shape[-1])[last]  # a negative one counts from the end
            return RecordView(self.array[(*first, slice(position, position + 1))], name)
        except IndexError as error:
            raise _index_error(self._name, self.shape, index, error) from None

    def __len__(self) -> int:
        return len(self.array)


class ArrayView(NDArrayOperatorsMixin):
    """A nested array or an observation: numbers come out as Python's, slices as views.

    It computes as a whole, `state.v * 2.0`. Everything else (`shape`, `sum()`, …) is the array's
    own. name: what errors call it.
    """

    def __init__(self, array: np.ndarray, name: str = "array") -> None:
        self.array = array
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(self.array, name)

    def __getitem__(self, index: Any) -> Any:
        try:
            value = self.array[index]
        except IndexError as error:
            raise _index_error(self._name, self.array.shape, index, error) from None
        if isinstance(value, np.ndarray):
            return ArrayView(value, _indexed(self._name, index))
        return _number(value)

    def __setitem__(self, index: Any, value: Any) -> None:
        try:
            self.array[index] = _wrapped(value, self.array.dtype)
        except IndexError as error:
            raise _index_error(self._name, self.array.shape, index, error) from None
        except (ValueError, OverflowError, TypeError) as error:
            raise _assignment_error(_indexed(self._name, index), value, error) from None

    def __len__(self) -> int:
        return len(self.array)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.array, dtype=dtype) if copy else np.asarray(self.array, dtype=dtype)

    def __array_ufunc__(
        self, ufunc: np.ufunc, method: str, *inputs: Any, out: Any = (), **others: Any
    ) -> Any:
        operands = [_strong(one) for one in inputs]
        kinds = {operand.dtype for operand in operands}
        if np.dtype(np.float32) in kinds and not any(kind.itemsize > 4 for kind in kinds - _INTS):
            operands = [operand.astype(np.float32) for operand in operands]
        if out:  # state.v += 1.0
            others |= {"out": tuple(_strong(one) for one in out), "casting": "unsafe"}
        with np.errstate(all="ignore"):
            result = getattr(ufunc, method)(*operands, **others)
        if out:
            return out[0]
        return ArrayView(result) if isinstance(result, np.ndarray) else _number(result)

    def __repr__(self) -> str:
        return f"ArrayView({self.array!r})"


_INTS = {np.dtype(code) for code in "?bhilBHIL"}


def _strong(value: Any) -> Any:
    """An operand whose dtype counts: NumPy lets Python's numbers take on that of an array."""
    if isinstance(value, ArrayView):
        return value.array
    return np.float32(value) if isinstance(value, Single) else np.asarray(value)


def _indexed(name: str, index: Any) -> str:
    """`board[3, 1:]`."""
    indices = index if isinstance(index, tuple) else (index,)
    return f"{name}[{', '.join(map(_shown, indices))}]"


def _shown(index: Any) -> str:
    if not isinstance(index, slice):
        return "..." if index is Ellipsis else str(index)
    ends = ["" if end is None else str(end) for end in (index.start, index.stop, index.step)]
    return ":".join(ends if index.step is not None else ends[:2])


def _index_error(name: str, shape: tuple[int, ...], index: Any, error: Exception) -> IndexError:
    indices = index if isinstance(index, tuple) else (index,)
    are_plain = all(isinstance(one, int | np.integer) for one in indices)
    if are_plain and len(indices) <= len(shape):
        return IndexError(f"{_indexed(name, index)} lies outside {shape}")
    return IndexError(f"{_indexed(name, index)}: {error}")


def _assignment_error(place: str, value: Any, error: Exception) -> Exception:
    return type(error)(f"{place} = {value!r:.60}: {error}")


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
