"""A helper that does not compile, in a file of its own, for test_compile_errors.py."""

import inspect


def outer(x):
    return inner(x) + 1


def inner(x):
    y = x * 2
    return y.nope  # wrong


def line_of(function, mark: str) -> int:
    """Number of the line of a function that ends with `mark`."""
    lines, first = inspect.getsourcelines(function)
    return first + next(i for i, line in enumerate(lines) if line.rstrip().endswith(mark))


LINE = line_of(inner, "# wrong")
