"""Helpers with mistakes in them, in a file of their own, for mistakes.py."""

import inspect

import numba
import numpy as np


def outer(x):
    return inner(x) + 1


def inner(x):
    y = x * 2
    return y.nope  # wrong


def of_record(x):
    return x.nope  # wrong


def drawn():
    return np.random.normal(0.0, 1.0)  # wrong


@numba.njit
def compiled_noise():
    return np.random.random()  # wrong


def clear(state):
    state.board = np.zeros((3, 3))  # wrong


def weaken(params):
    params.force *= 0.5  # wrong


def endless(n):
    return n * endless(n - 1)  # wrong


def line_of(function, mark: str) -> int:
    """Number of the line of a function that ends with `mark`."""
    lines, first = inspect.getsourcelines(function)
    return first + next(i for i, line in enumerate(lines) if line.rstrip().endswith(mark))


WRONG = {
    function.__name__: function
    for function in (inner, of_record, drawn, compiled_noise.py_func, clear, weaken, endless)
}
