"""Cures that depend on what the author has named: fields, params, arguments, functions.

Each function here returns (reason, cure), or None where it knows none.
"""

import ast
import builtins
import difflib
import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from numba.core.types import Array, Boolean, Float, Integer, Number, Record, Type

from rollout.envs.authoring.authored import (
    AuthoredFunction,
    Place,
    is_of_kit,
    literal,
    names_in_scope,
    nodes_of,
    resolved,
)
from rollout.envs.authoring.cures import ANY_DRAW, KIT_CALLS, ONE_TYPE, RETURN, TWO_VALUES
from rollout.envs.compiled_env import SIGNATURES, CompiledEnv

Explained = tuple[str, str] | None


def cure_in_context(authored: AuthoredFunction, place: Place, message: str) -> Explained:
    """(reason, cure) for what Numba says of a line."""
    if wrong := _wrong_return(authored, place):
        return wrong
    if is_of_array_changed_in_place(message):
        return _array_changed_in_place(authored, place)
    if found := re.search(r"Field '(.*)' was not found", message):
        return _missing_field(authored, place, found[1])
    if found := re.match(r"name '(.*)' is not defined", message):
        return _missing_name(authored, place, found[1])
    if re.match("missing a required argument|too many positional|got an unexpected keyw", message):
        return _wrong_call(place, message)
    if re.search(r"does (static_)?[gs]etitem\(|cannot index", message):
        return _wrong_index(authored, place)
    if found := re.match(r"Cannot unify (.*) and (.*) for '([A-Za-z_]\w*)", message):
        return _two_types(place, *found.groups())
    if found := re.search(r"unify return type from the following types: (.*)", message):
        lines = _lines(node for node in nodes_of(place.function) if isinstance(node, ast.Return))
        reason = f"the paths (lines {lines}) return different kinds: {found[1]}"
        return reason, f"the same on every path: `{RETURN}`, a number and a truth"
    return None


def is_of_array_changed_in_place(message: str) -> bool:
    """Whether it is Numba's answer, which names no line, to `array += …` that does not fit."""
    return message == "'NoneType' object has no attribute 'args'"


def arrays_changed_in_place(
    authored: AuthoredFunction, nodes: Iterable[ast.AST]
) -> list[ast.AugAssign]:
    """Each `array += …` that may not fit, of a field of an argument or of an argument itself.

    Without those, each `… += …`: it may be of something whose type is not known here.
    """
    found = [node for node in nodes if isinstance(node, ast.AugAssign)]
    arrays = {node: _dtype_of_array(authored, node.target) for node in found}
    known = [node for node, dtype in arrays.items() if dtype and not _fits(authored, node, dtype)]
    return known or [node for node in found if not isinstance(arrays[node], Type)]


def _fits(authored: AuthoredFunction, node: ast.AugAssign, dtype: Any) -> bool:
    """Whether a result surely is of the array's type."""
    if isinstance(node.op, ast.Div):
        return isinstance(dtype, Float)
    if isinstance(node.op, ast.BitAnd | ast.BitOr | ast.BitXor) and isinstance(dtype, Float):
        return False
    is_integer = type(literal(node.value)) is int
    is_signed = isinstance(dtype, Integer) and str(dtype).startswith("int")
    same = _dtype_of_array(authored, node.value) == dtype
    return same or isinstance(dtype, Float) or (is_integer and is_signed)


def _dtype_of_array(authored: AuthoredFunction, node: ast.expr) -> Any:
    """What `state.board` holds, and `state.board[0]` and `state.board[:]`, if they are arrays.

    None where it is not known, and of elements.
    """
    if isinstance(node, ast.Subscript):
        whole: Any = authored.type_of(node.value)
        indices = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        is_part = isinstance(whole, Array) and (
            len(indices) < whole.ndim or any(isinstance(one, ast.Slice) for one in indices)
        )
        return whole.dtype if is_part else None
    kind = authored.type_of(node)
    return kind.dtype if isinstance(kind, Array) else None


def _array_changed_in_place(authored: AuthoredFunction, place: Place) -> Explained:
    on_line = arrays_changed_in_place(authored, place.nodes())
    if not on_line:
        return None
    node, candidates = on_line[0], arrays_changed_in_place(authored, nodes_of(place.function))
    target = ast.unparse(node.target)
    into = target if isinstance(node.target, ast.Subscript) else f"{target}[:]"
    result = ast.unparse(ast.BinOp(node.target, node.op, node.value))
    what = f"an array of {_dtype_of_array(authored, node.target) or 'another type'}"
    reason = f"the result does not fit into `{target}`, {what}"
    if len(candidates) > 1:
        reason += f" (or in another of lines {_lines(candidates)}: Numba does not say which)"
    return reason, f"{into} = {result}"


class FieldUse(NamedTuple):
    """Where a record's field is used: the record in the source, and whether it is called."""

    node: ast.expr
    record: ast.expr
    is_called: bool


def use_of_field(
    authored: AuthoredFunction, nodes: Iterable[ast.AST], name: str
) -> FieldUse | None:
    """The first use of a field, of a record that is known to have none of that name, if there is.

    A record that is itself called is asked for its `__call__`.
    """
    uses = list(_uses_of_field(nodes, name))
    known = (use for use in uses if isinstance(authored.type_of(use.record), Record))
    return next(known, uses[0] if uses and name != "__call__" else None)


def _uses_of_field(nodes: Iterable[ast.AST], name: str) -> Iterator[FieldUse]:
    for node in nodes:
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Attribute) and node.func.attr == name:
                yield FieldUse(node, node.func.value, True)
            elif name == "__call__":
                yield FieldUse(node, node.func, True)
        elif isinstance(node, ast.Attribute) and node.attr == name:
            yield FieldUse(node, node.value, False)


def _wrong_return(authored: AuthoredFunction, place: Place) -> Explained:
    """Of a `return` with more or less than two values, whatever else Numba has against it."""
    if authored.binding == "env_step" and place.function is authored.function:
        for node in place.nodes():
            values = isinstance(node, ast.Return) and getattr(node.value, "elts", None)
            if values and len(values) != 2:
                return f"{len(values)} values, wanted (reward, terminated)", TWO_VALUES
    return None


def _missing_field(authored: AuthoredFunction, place: Place, name: str) -> Explained:
    use = use_of_field(authored, place.nodes(), name)
    if use is None:
        return None
    path, record = ast.unparse(use.record), authored.type_of(use.record)
    reason = f"`{path}` has no field {name!r}"
    if not isinstance(record, Record):
        return reason, "a field that it has"
    role = authored.roles.get(path, "state")
    if role == "draw":
        return f"`{path}` says where a draw happens, it is no generator", ANY_DRAW
    if use.is_called:
        move = f"{name}({path}, …)"
        return reason, f"a record has no methods: write {move} as a function outside the class"
    add = {
        "state": f"or add it to `state`, ({name!r}, 'f8')",
        "params": f"or add it to `params`, {name!r}: 1.0",
        "observation": "or add it to `observation_space`",
    }[role]
    meant = _did_you_mean(name, record.fields, f"{path}.")
    return reason, f"{meant}it has {', '.join(record.fields)}; {add}"


def _did_you_mean(name: str, known: Iterable[str], prefix: str = "") -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {prefix}{near[0]}? " if near else ""


def _missing_name(authored: AuthoredFunction, place: Place, name: str) -> Explained:
    reason = f"name {name!r} is not defined"
    given = ", ".join(authored.roles)
    if name == "self":
        return "there is no self", f"functions are given {given}; what is remembered is in `state`"
    if name in authored.owner.split("."):
        return reason, "helpers are plain functions outside the class, called without its name"
    if name in ("state", "params", "action", "draw", "observation", "mask"):
        return reason, f"{authored.function.__name__} is given {given} only"
    if name in KIT_CALLS:
        return reason, f"from rollout.envs import {name}"
    if name in ("np", "numpy"):
        return reason, "import numpy as np, at the top of the file"
    if name in sys.stdlib_module_names:
        return reason, f"import {name}, at the top of the file"
    scope = names_in_scope(place.function)
    owner = _owner(authored, scope)
    if hasattr(owner, name):
        reason = f"{name} is an attribute of the class, which its functions do not see"
        return reason, _cure_of_attribute(name, getattr(owner, name))
    known = {*scope, *place.function.__code__.co_varnames}
    meant = _did_you_mean(name, sorted({*known, *dir(builtins), *KIT_CALLS}))
    return reason, meant or "define it outside the class, in the same file"


def _cure_of_attribute(name: str, value: object) -> str:
    if hasattr(CompiledEnv, name) or name in SIGNATURES:
        return "what functions share is written outside the class, as a constant or a function"
    if isinstance(value, bool | int | float):
        return f"move it out of the class; or into `params`, and write params.{name}"
    return "move it out of the class, in the same file"


def _owner(authored: AuthoredFunction, scope: Mapping[str, object]) -> object:
    """The environment itself, as its module knows it."""
    first, *rest = authored.owner.split(".")
    owner = scope.get(first)
    for name in rest:
        owner = getattr(owner, name, None)
    return owner


def _wrong_call(place: Place, message: str) -> Explained:
    """Of a call with too few arguments, too many, or of other names."""
    scope = names_in_scope(place.function)
    for node in place.nodes():
        function = isinstance(node, ast.Call) and resolved(node.func, scope)
        if isinstance(node, ast.Call) and inspect.isfunction(function):
            signature = inspect.signature(function)
            try:
                signature.bind(*node.args, **{str(one.arg): one for one in node.keywords})
            except TypeError:
                call = f"{ast.unparse(node.func)}({', '.join(signature.parameters)})"
                return message, call + ("; each call is one number" if is_of_kit(function) else "")
            parameters = signature.parameters.values()
            if any(parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters):
                reason = f"{function.__name__} has keyword-only arguments, which do not compile"
                return reason, f"def {function.__name__}{signature}".replace("*, ", "", 1)
    return None


def _wrong_index(authored: AuthoredFunction, place: Place) -> Explained:
    for node in place.nodes():
        if not isinstance(node, ast.Subscript):
            continue
        path, kind = ast.unparse(node.value), authored.type_of(node.value)
        if isinstance(kind, Number | Boolean):
            what = "the integer of a Discrete space" if path in authored.roles else f"a {kind}"
            return f"`{path}` is {what}, not an array", f"`{path}` without an index"
        if isinstance(kind, Record):
            return f"`{path}` is a record, not an array", f"its fields: {', '.join(kind.fields)}"
        indices = len(node.slice.elts) if isinstance(node.slice, ast.Tuple) else 1
        if isinstance(kind, Array) and indices > kind.ndim:
            return (
                f"{indices} indices for `{path}`, which has {kind.ndim}",
                f"{path}[{', '.join('ijklmn'[: kind.ndim])}]",
            )
    return None


def _two_types(place: Place, one: str, other: str, name: str) -> Explained:
    lines = _lines(
        node
        for node in nodes_of(place.function)
        if isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Store)
    )
    return f"{name} (assigned in lines {lines}) is {one} and {other}", ONE_TYPE


def _lines(nodes: Iterable[ast.expr | ast.stmt]) -> str:
    return ", ".join(map(str, sorted({node.lineno for node in nodes})))
