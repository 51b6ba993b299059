"""Says in two lines what Numba says in a page: the author's line that is wrong, why, and the cure.

Numba reports a chain, from the error itself out to the kit's loops, mixed with every overload it
tried. Each of the author's functions is therefore compiled alone first, with the types that it will
get. What is left is to find the innermost line that the author wrote, and to say its trouble in the
author's words: cures.py has the common ones, cures_in_context.py those that depend on names, and
pitfalls.py refuses what compiles but cannot be meant.
"""

import ast
import os
import re
import types
from typing import Any

from numba.core.types import (
    Boolean,
    Float,
    Generator,
    Integer,
    NoneType,
    Optional,
    Tuple,
    Type,
    UniTuple,
    unliteral,
)

from rollout.envs.authoring.authored import (
    AuthoredFunction,
    Place,
    is_array,
    nodes_of,
    reached_from,
)
from rollout.envs.authoring.cures import ONE_TRUTH, RETURN, TWO_VALUES, cure_of_syntax, known_cure
from rollout.envs.authoring.cures_in_context import (
    arrays_changed_in_place,
    cure_in_context,
    is_of_array_changed_in_place,
    use_of_field,
)
from rollout.envs.authoring.pitfalls import check_source, check_types
from rollout.envs.errors import EnvError

MESSAGE_LENGTH = 200  # characters; Numba writes out whole records


def compile_authored(
    authored: AuthoredFunction, dispatcher: Any, *, may_hide_state: bool = False
) -> None:
    """Compile one of an author's functions alone.

    dispatcher: Numba's, of the function or of its checked copy. Raises EnvError where it does not
    compile, returns something else than its place in the kit asks for, or cannot be meant. Numba's
    own error, a page long, is the cause of it only if the environment variable ROLLOUT_DEBUG is set
    (as `rollout --debug` does).
    """
    check_source(authored, may_hide_state)
    try:
        dispatcher.compile(authored.types)
    except Exception as error:  # not only NumbaError: an unknown field ends in a KeyError
        is_wanted = os.environ.get("ROLLOUT_DEBUG", "0") not in ("", "0")
        raise explained(authored, error) from (error if is_wanted else None)
    check_types(authored, dispatcher)
    check_returns(authored, dispatcher.nopython_signatures[0].return_type)


def explained(authored: AuthoredFunction, error: Exception) -> EnvError:
    """What to raise from `error`, in which compiling a function ended."""
    place, message = _place(authored, error), core_message(error)
    known = known_cure(message, place)
    if known and place.is_def:  # where Numba names no line, the syntax that it is about does
        place = place.of_syntax(known.syntax)
    reason, cure = (
        cure_in_context(authored, place, message)
        or (known and (known.reason, known.cure))
        or ("not compiled" if isinstance(error, KeyError) else message, cure_of_syntax(place))
    )
    return authored.error("does not compile", place, _readable(reason)[:MESSAGE_LENGTH], cure)


def core_message(error: Exception) -> str:
    """The innermost reason, on one line."""
    if isinstance(error, KeyError):  # Numba's answer to an unknown field of a record
        return f"Field '{error.args[0]}' was not found"
    text = re.sub(r"(?m)^\s*(Failed in nopython mode pipeline.*)?\n", "", f"{error}\n")
    *_, text = text.rpartition("raised a specific error:\n")
    text = re.sub(r"^\s*\w+Error: (?=\S)", "", text)
    text = re.sub(r"^Failed in nopython mode pipeline.*\n\s*", "", text)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    message = lines[0] if lines else type(error).__name__
    if "found for signature" in message:
        signature = next((line for line in lines if line.startswith(">>>")), message)
        message = "nothing compiled does " + signature.removeprefix(">>>").strip()
    elif message.endswith("from the following types:"):
        message += " " + " and ".join(re.findall(r"(?<=type: `).*?(?=`)", text))
    if why := re.search(r'due to "\w+: (.*)"', message):
        message = why[1]
    message = re.sub(r"Record\(.*?;\d+;(True|False)\)", "record", message)
    message = re.sub(r"Literal\[str\]\((.*?)\)", r"'\1'", message)
    message = re.sub(r"Literal\[\w+\]\((.*?)\)", r"\1", message)
    return re.sub(r"\.? Raised from .*|: [i%{]\S+.*$", "", message)


def check_returns(authored: AuthoredFunction, found: Type) -> None:
    """Raises EnvError unless a function returns what its place in the kit asks for."""
    if authored.binding == "env_step":
        wanted, is_good = "(reward, terminated)", _is_outcome(found)
        cure = _cure_of_outcome(found)
    else:
        wanted, is_good = "nothing", isinstance(found, NoneType)
        role = {"env_observe": "observation", "env_mask": "mask"}.get(authored.binding, "state")
        cure = f"write into `{authored.argument(role)}`, and return nothing"
    if not is_good:
        place = Place.at_def(authored.function)
        ends = [node for node in nodes_of(authored.function) if isinstance(node, _ENDS)]
        if len(ends) == 1 and not isinstance(found, Optional):
            place = place.of_syntax(_ENDS)
        raise authored.error(f"returns {_kind(found)}", place, f"wanted {wanted}", cure)


_ENDS = ast.Return, ast.Yield, ast.YieldFrom


def _is_outcome(found: Type) -> bool:
    return (
        isinstance(found, Tuple | UniTuple)
        and len(found) == 2
        and isinstance(found[0], Float | Integer | Boolean)
        and isinstance(found[1], Boolean | Integer)
    )


def _cure_of_outcome(found: Type) -> str:
    if isinstance(found, NoneType):
        return f"end it with `{RETURN}`"
    if isinstance(found, Optional):
        return f"one of its paths returns nothing: end every path with `{RETURN}`"
    if isinstance(found, Generator):
        return f"return, not yield: `{RETURN}`"
    if not isinstance(found, Tuple | UniTuple):
        return f"two values with a comma between: `{RETURN}`"
    if len(found) != 2:
        return TWO_VALUES
    reward, terminated = found
    if isinstance(terminated, Float) and isinstance(reward, Boolean):
        return f"the other way round: `{RETURN}`"
    if is_array(reward):
        return "a reward is one number: a sum, or one element"
    if not isinstance(reward, Float | Integer | Boolean):
        return "a reward is one number, 0.0 where there is none"
    if is_array(terminated):
        return ONE_TRUTH
    return "a truth: a comparison, state.x > 1.0, or False"


def _kind(found: Type) -> str:
    """A type in plain words: (float64, bool)."""
    if isinstance(found, Tuple | UniTuple):
        return f"({', '.join(map(_kind, found))})"
    if isinstance(found, Optional):
        return f"{_kind(found.type)} or nothing"
    if isinstance(found, Generator):
        return "a generator"
    text = re.sub(r"Record\(.*", "a record", str(unliteral(found)))
    return _readable(text)[:MESSAGE_LENGTH]


def _readable(message: str) -> str:
    """Numba's names of types in plain words."""
    for pattern, words in (
        (r"nestedarray\(\w+, \((.*?),?\)\)", r"an array [\1]"),
        (r"(?:readonly )?array\(\w+, \w+, \w+\)", "an array"),
        (r"(?:reflected )?list\([^()]*(?:\([^()]*\)[^()]*)*\)(?:<iv=.*?>)?", "a list"),
        (r"DictType\[.*?\](?:<iv=.*?>)?", "a dictionary"),
        (r"unicode_type", "text"),
        (r"OptionalType\((.*)\)", r"\1 or nothing"),
        (r"\bnone\b", "nothing"),
        (r"UniTuple\((\w+) x (\d)\)", r"\2 values \1"),
        (r"\bTuple\(", "("),
        (r" \(temporary variable\)|'?\$[\w.]+'?", ""),
    ):
        message = re.sub(pattern, words, message)
    return message


def _place(authored: AuthoredFunction, error: Exception) -> Place:
    """The innermost line of the author's that the error is about."""
    functions = reached_from(authored.function)
    for file, line in re.findall(r"(?:at|from) (\S.*?\.py) \((\d+)\)", str(error)):
        for one in functions:
            if one.__code__.co_filename == file and int(line) in _lines(one.__code__):
                return Place(one, int(line))
    if isinstance(error, KeyError):
        for one in functions:
            if use := use_of_field(authored, nodes_of(one), error.args[0]):
                return Place(one, use.node.lineno)
    if is_of_array_changed_in_place(str(error)):
        for one in functions:
            for node in arrays_changed_in_place(authored, nodes_of(one)):
                return Place(one, node.lineno)
    if name := re.search(r"'(\w+)'", str(error)):
        for one in functions:
            for node in nodes_of(one):
                if isinstance(node, ast.Name) and node.id == name[1]:
                    return Place(one, node.lineno)
    return Place.at_def(authored.function)


def _lines(code: types.CodeType) -> set[int]:
    """Numbers of the lines of a function, those of functions in it included."""
    lines = {line for *_, line in code.co_lines() if line is not None}
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return lines.union(*map(_lines, inner))
