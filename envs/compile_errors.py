"""Says in one line what Numba says in a page: which line of the author's does not compile, and why.

Numba reports a chain, from the error itself out to the kit's loops, mixed with every overload it
tried. Each of the author's functions is therefore compiled alone first, with the types that it will
get; what is left is to find the innermost line that the author wrote.
"""

import dis
import inspect
import re
import types
from collections.abc import Callable

from numba.core.types import Boolean, Float, Integer, NoneType, Optional, Tuple, Type, UniTuple

from rollout.envs.errors import EnvError
from rollout.envs.fingerprints import named_in

MESSAGE_LENGTH = 200  # characters; Numba writes out whole records


def explained(owner: str, function: types.FunctionType, error: Exception) -> EnvError:
    """What to raise from `error`, which compiling `function` of environment `owner` ended in."""
    message = core_message(error)
    file, line = _place(function, error)
    return EnvError(
        f"environment {owner}: {function.__name__} does not compile: {message} ({file}:{line}); "
        "Envs(…, jit=False) runs it as plain Python, for a debugger"
    )


def check_returns(owner: str, function: types.FunctionType, wanted: str, found: Type) -> None:
    """Raises EnvError unless a function returns what its place in the kit asks for.

    wanted: "nothing …", or "(reward, terminated)".
    """
    if wanted.startswith("nothing"):
        good = isinstance(found, NoneType)
    else:
        good = (
            isinstance(found, Tuple | UniTuple)
            and len(found) == 2
            and isinstance(found[0], Float | Integer | Boolean)
            and isinstance(found[1], Boolean | Integer)
        )
    if not good:
        hint = "; one of its paths returns nothing" if isinstance(found, Optional) else ""
        code = function.__code__
        returned = _readable(str(found))[:MESSAGE_LENGTH]
        raise EnvError(
            f"environment {owner}: {function.__name__} returns {returned}, "
            f"wanted {wanted}{hint} ({code.co_filename}:{code.co_firstlineno})"
        )


def core_message(error: Exception) -> str:
    """The innermost reason, on one line."""
    if isinstance(error, KeyError):  # Numba's answer to an unknown field of a record
        return f"no field {error.args[0]!r} in the record"
    text = re.sub(r"(?m)^\s*(Failed in nopython mode pipeline.*)?\n", "", f"{error}\n")
    *_, text = text.rpartition("raised a specific error:\n")
    text = re.sub(r"^\s*\w+Error: (?=\S)", "", text)
    text = re.sub(r"^Failed in nopython mode pipeline.*\n\s*", "", text)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    message = lines[0] if lines else type(error).__name__
    if "found for signature" in message:
        signature = next((line for line in lines if line.startswith(">>>")), message)
        message = "nothing compiled does " + signature.removeprefix(">>>").strip()
    if why := re.search(r'due to "\w+: (.*)"', message):
        message = why[1]
    return _readable(message)[:MESSAGE_LENGTH]


def _readable(message: str) -> str:
    if "generator(func=" in message:
        return "a generator"
    message = re.sub(r"Record\(.*?;\d+;(True|False)\)", "record", message)
    message = re.sub(r"Literal\[str\]\((.*?)\)", r"'\1'", message)
    message = re.sub(r"Literal\[\w+\]\((.*?)\)", r"\1", message)
    return re.sub(r"\.? Raised from .*", "", message)


def _place(function: types.FunctionType, error: Exception) -> tuple[str, int]:
    """(file, line) of the innermost line of the author's that the error is about."""
    functions = _authored(function)
    files = {one.__code__.co_filename for one in functions}
    for file, line in re.findall(r"(?:at|from) (\S.*?\.py) \((\d+)\)", str(error)):
        if file in files:
            return file, int(line)
    name = re.search(r"'(\w+)'", str(error))
    for one in functions:
        line = one.__code__.co_firstlineno
        for instruction in dis.get_instructions(one):
            line = instruction.positions.lineno or line if instruction.positions else line
            if name and instruction.argval == name[1]:
                return one.__code__.co_filename, line
    return function.__code__.co_filename, function.__code__.co_firstlineno


def _authored(function: types.FunctionType) -> list[types.FunctionType]:
    """`function` and what it reaches, without the kit's and Numba's."""
    found = [function]
    for one in found:
        for value in named_in(one).values():
            if inspect.isfunction(value) and value not in found and not is_of_kit(value):
                found.append(value)
    return found


def is_of_kit(function: Callable) -> bool:
    """Whether a function comes with its own compiled body."""
    module = (function.__module__ or "").split(".")
    return module[0] in ("numba", "numpy") or module[:3] == ["rollout", "envs", "philox"]
