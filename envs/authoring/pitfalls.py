"""What compiles but cannot be meant: refused, with the line and a cure.

`check_source` reads what was written. `check_types` reads what Numba made of it: that it turns an
array into a number by taking the first element, for example.
"""

import ast
import inspect
import random
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
from numba.core import ir
from numba.core.types import Float, Integer, Number, Record

from rollout.envs.authoring.authored import (
    AuthoredFunction,
    Place,
    is_array,
    literal,
    names_in_scope,
    nodes_of,
    reached_from,
    resolved,
    root_of,
)
from rollout.envs.authoring.cures import ANY_DRAW, DRAWS, NO_TEXT, ONE_TRUTH, PRINT, WRITE_INTO

REFUSED = "is refused"
Refusal = tuple[str, str] | None  # reason and cure


def check_source(authored: AuthoredFunction, may_hide_state: bool) -> None:
    """Raises EnvError for what cannot be meant in a function, or in a helper that it reaches.

    may_hide_state: whether the environment says that it has state outside of its record.
    """
    for function in reached_from(authored.function):
        rules = RULES if function is authored.function else RULES_OF_HELPERS
        for node in nodes_of(function):
            for rule in rules:
                if rule is _draws_elsewhere and may_hide_state:
                    continue
                if refused := rule(authored, function, node):
                    place = Place(function, getattr(node, "lineno", 0))
                    raise authored.error(REFUSED, place, *refused)


def check_types(authored: AuthoredFunction, dispatcher: Any) -> None:
    """Raises EnvError where Numba has put an array in a place for something else."""
    for compiled in dispatcher.overloads.values():
        types_of = compiled.type_annotation.typemap
        for statement, signature in compiled.type_annotation.calltypes.items():
            place = Place(authored.function, statement.loc.line)
            if isinstance(statement, ir.SetAttr):
                record, value = types_of[statement.target.name], types_of[statement.value.name]
                field = record.typeof(statement.attr)
                if is_array(value) and isinstance(field, Number):
                    reason = f"an array where {statement.attr} is one number"
                    raise authored.error(REFUSED, place, reason, "one element, x[0], or its sum")
                if isinstance(value, Float) and isinstance(field, Integer):
                    reason = f"{statement.attr} is an integer, which drops a float's fraction"
                    cure = f"int(…) if that is meant; else ({statement.attr!r}, 'f8') in the dtype"
                    raise authored.error(REFUSED, place, reason, cure)
            elif _is_truth_of_array(statement, signature):
                reason = "an array is neither true nor false"
                raise authored.error(REFUSED, place, reason, ONE_TRUTH)


def _is_truth_of_array(statement: Any, signature: Any) -> bool:
    """Whether Numba asks, for an `if` or the like, whether an array is true."""
    is_call = isinstance(statement, ir.Expr) and statement.op == "call"
    return is_call and statement.func.name.startswith("$bool") and is_array(signature.args[0])


# Each rule: (authored, the function itself or a helper, a piece of its syntax) → reason and cure.
# A helper is taken to call a state `state`, and so on, if the function that reaches it does.


def _draws_elsewhere(_: AuthoredFunction, function: types.FunctionType, node: Any) -> Refusal:
    """What NumPy's and Python's generators draw is not the same when an episode is played again."""
    value = resolved(node, names_in_scope(function))
    owner, module = getattr(value, "__self__", None), getattr(value, "__module__", None)
    generators = np.random.Generator | np.random.RandomState | random.Random
    is_theirs = inspect.isroutine(value) and module in ("random", "numpy.random")
    if is_theirs or isinstance(value, generators) or isinstance(owner, generators):
        cure = DRAWS.get(getattr(value, "__name__", ""), ANY_DRAW)
        return f"{ast.unparse(node)} draws from a generator that is in no state", cure
    return None


def _prints_format(_: AuthoredFunction, function: types.FunctionType, node: Any) -> Refusal:
    is_print = isinstance(node, ast.Call) and ast.unparse(node.func) == "print"
    if is_print and any(isinstance(argument, ast.JoinedStr) for argument in node.args):
        return "print does not show what an f-string holds", PRINT
    return None


def _assigns_array_whole(
    authored: AuthoredFunction, function: types.FunctionType, node: Any
) -> Refusal:
    """Numba copies as many bytes as the field has, whatever they belong to."""
    for target in _targets(node) if isinstance(node, ast.Assign) else ():
        if isinstance(target, ast.Attribute) and is_array(authored.type_of(target)):
            cure = WRITE_INTO.replace("state.board", ast.unparse(target))
            return "an array in a record cannot be assigned whole", cure
    return None


def _changes_params(authored: AuthoredFunction, function: types.FunctionType, node: Any) -> Refusal:
    fields = (one for one in _targets(node) if _names_field(one))  # a helper's own may be arrays
    if any(_role(authored, target) == "params" for target in fields):
        reason = "params are the same for all environments, and never change"
        return reason, "a field of `state`, set in `reset`"
    return None


def _changes_action(authored: AuthoredFunction, function: types.FunctionType, node: Any) -> Refusal:
    for target in _targets(node):
        if isinstance(target, ast.Subscript) and _role(authored, target) == "action":
            return "an action is only read: it is whoever's that calls `step`", "a name of its own"
    return None


def _changes_state_by_looking(
    authored: AuthoredFunction, function: types.FunctionType, node: Any
) -> Refusal:
    looks = authored.binding in ("env_observe", "env_mask")
    if looks and any(_role(authored, target) == "state" for target in _targets(node)):
        reason = f"{function.__name__} only reads the state, and any number of times"
        return reason, "change it in `step` or `reset`"
    return None


def _replaces_argument(
    authored: AuthoredFunction, function: types.FunctionType, node: Any
) -> Refusal:
    """Of assignments that look as if they changed what they name."""
    for target in _targets(node) if isinstance(node, ast.Assign) else ():
        kind = authored.type_of(target)
        if isinstance(target, ast.Name) and (isinstance(kind, Record) or is_array(kind)):
            cure = f"{target.id}.field = …" if isinstance(kind, Record) else f"{target.id}[:] = …"
            return f"this makes `{target.id}` something else, and changes nothing", cure
    return None


def _compares_with_text(
    authored: AuthoredFunction, function: types.FunctionType, node: Any
) -> Refusal:
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        has_text = any(isinstance(literal(side), str) for side in sides)
        if has_text and any(root_of(side) in authored.roles for side in sides):
            return "a number is never equal to text", NO_TEXT
    return None


def _names_field_by_text(
    authored: AuthoredFunction, function: types.FunctionType, node: Any
) -> Refusal:
    """Plain Python has no such fields, see records.py."""
    if isinstance(node, ast.Subscript) and isinstance(authored.type_of(node.value), Record):
        return (
            "fields of a record are attributes",
            f"{ast.unparse(node.value)}.{literal(node.slice)}",
        )
    return None


RULES_OF_HELPERS = (_draws_elsewhere, _prints_format, _assigns_array_whole, _changes_params)
RULES = (
    *RULES_OF_HELPERS,
    _changes_action,
    _changes_state_by_looking,
    _replaces_argument,
    _compares_with_text,
    _names_field_by_text,
)


def _targets(node: ast.AST) -> Iterator[ast.expr]:
    """What a statement assigns to."""
    if isinstance(node, ast.Assign):
        for target in node.targets:
            yield from target.elts if isinstance(target, ast.Tuple) else [target]
    elif isinstance(node, ast.AugAssign | ast.For):
        yield node.target


def _names_field(target: ast.AST) -> bool:
    return any(isinstance(node, ast.Attribute) for node in ast.walk(target))


def _role(authored: AuthoredFunction, target: ast.expr) -> str | None:
    """The argument whose inside is assigned to."""
    return None if isinstance(target, ast.Name) else authored.roles.get(root_of(target) or "")
