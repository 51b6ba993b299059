"""What an author wrote, as messages show it: functions, their arguments, lines of source."""

import ast
import contextlib
import functools
import inspect
import linecache
import textwrap
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from numba.core.dispatcher import Dispatcher
from numba.core.types import Array, Record, Type

from rollout.envs.compiled_env import SIGNATURES
from rollout.envs.errors import EnvError
from rollout.envs.fingerprints import named_in

SOURCE_LENGTH = 100  # characters of a line that a message shows
ROLES = {"env_mask": SIGNATURES["action_mask"]} | {
    f"env_{name}": SIGNATURES[name] for name in ("reset", "step", "observe")
}


@dataclass(frozen=True)
class AuthoredFunction:
    """A function of an environment, and what it is given.

    owner: the environment's name. binding: what the kit calls the function, `env_step`. types: of
    its arguments.
    """

    owner: str
    function: Any  # a types.FunctionType
    binding: str
    types: tuple[Type, ...]

    @property
    def roles(self) -> dict[str, str]:
        """The author's names of the arguments → the kit's."""
        code = self.function.__code__
        names = code.co_varnames[: code.co_argcount]
        return dict(zip(names, ROLES[self.binding], strict=True))

    def argument(self, role: str) -> str:
        """What the author calls an argument."""
        return next(name for name, its_role in self.roles.items() if its_role == role)

    def type_of(self, node: ast.AST) -> Type | None:
        """The type of `state`, `state.inner` or `action`; None if it is not known."""
        if isinstance(node, ast.Name):
            return dict(zip(self.roles, self.types, strict=True)).get(node.id)
        if isinstance(node, ast.Attribute):
            record = self.type_of(node.value)
            if isinstance(record, Record) and node.attr in record.fields:
                return record.typeof(node.attr)
        return None

    def error(self, what: str, place: "Place", reason: str, cure: str) -> EnvError:
        """Two lines: what is wrong where, and what helps."""
        name = place.function.__name__
        if place.function is not self.function:
            name += f" (which {self.function.__name__} calls)"
        return EnvError(
            f"environment {self.owner}: {name} {what} at {place}: {reason}\ncure: {cure}"
        )


@dataclass(frozen=True)
class Place:
    """A line of the author's."""

    function: Any  # a types.FunctionType
    line: int

    @property
    def file(self) -> str:
        return self.function.__code__.co_filename

    @property
    def source(self) -> str:
        """The line itself; empty where there is no file."""
        return linecache.getline(self.file, self.line).strip()[:SOURCE_LENGTH]

    @classmethod
    def at_def(cls, function: types.FunctionType) -> "Place":
        """Where a function begins; not at its decorators."""
        first = function.__code__.co_firstlineno
        return cls(function, first).of_syntax((ast.FunctionDef,))

    @property
    def is_def(self) -> bool:
        """Whether it says no more than which function."""
        return self == Place.at_def(self.function)

    def nodes(self) -> Iterator[ast.AST]:
        """The syntax of the line, or of the statement that spans it."""
        for node in nodes_of(self.function):
            if isinstance(node, ast.stmt) and not hasattr(node, "body"):
                if node.lineno <= self.line <= (node.end_lineno or node.lineno):
                    yield from ast.walk(node)
            elif getattr(node, "lineno", None) == self.line:
                yield node

    def of_syntax(self, wanted: tuple[type[ast.AST], ...]) -> "Place":
        """The first line of the function with such syntax; this one, if there is none."""
        lines = [
            getattr(node, "lineno", self.line)
            for node in nodes_of(self.function)
            if isinstance(node, wanted)
        ]
        return Place(self.function, min(lines, default=self.line))

    def __str__(self) -> str:
        source = f", `{self.source}`" if self.source else ""
        return f"{self.file}:{self.line}{source}"


def nodes_of(function: types.FunctionType) -> tuple[ast.AST, ...]:
    """The syntax of a function, from the outside in; nothing where its source cannot be had."""
    return _nodes_of(function.__code__)


@functools.cache
def _nodes_of(code: types.CodeType) -> tuple[ast.AST, ...]:
    try:
        lines, first = inspect.getsourcelines(code)
        tree = ast.parse(textwrap.dedent("".join(lines)))
    except (OSError, TypeError, SyntaxError, ValueError):
        return ()
    ast.increment_lineno(tree, first - 1)
    for node in tree.body:
        getattr(node, "decorator_list", []).clear()
    return tuple(ast.walk(tree))


def root_of(node: ast.AST) -> str | None:
    """`state` of `state.inner.board[i]`."""
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Starred):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def literal(node: ast.AST) -> object:
    """The number or text that is written there, None if it is something else."""
    return node.value if isinstance(node, ast.Constant) else None


def names_in_scope(function: types.FunctionType) -> dict[str, object]:
    """Globals and closure variables."""
    names = dict(function.__globals__)
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # not assigned yet
            names[name] = cell.cell_contents
    return names


def resolved(node: ast.AST, scope: Mapping[str, object]) -> object:
    """The value of a dotted name, None if it has none."""
    if isinstance(node, ast.Name):
        return scope.get(node.id)
    if isinstance(node, ast.Attribute):
        return getattr(resolved(node.value, scope), node.attr, None)
    return None


def reached_from(function: types.FunctionType) -> list[types.FunctionType]:
    """`function` and the author's helpers that it reaches."""
    found = [function]
    for one in found:
        for value in map(as_written, named_in(one).values()):
            if value is not None and value not in found and not is_of_kit(value):
                found.append(value)
    return found


def as_written(value: object) -> types.FunctionType | None:
    """A function without the decorator of Numba's that it may have; None of anything else."""
    function = value.py_func if isinstance(value, Dispatcher) else value
    return function if isinstance(function, types.FunctionType) else None


def is_of_kit(function: Callable) -> bool:
    """Whether a function comes with its own compiled body."""
    module = (function.__module__ or "").split(".")
    return module[0] in ("numba", "numpy") or module[:3] == ["rollout", "envs", "philox"]


def is_array(kind: Type | None) -> bool:
    """Whether a type is an array, nested in a record or not."""
    return isinstance(kind, Array)
