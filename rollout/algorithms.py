"""Algorithms by name: those that come with rollout, and `package.module:Class` of your own.

Only who learns, or checks settings, finds one: they import torch.
"""

import inspect
import os
from typing import TYPE_CHECKING, Any

from rollout.env_source import OBJECT
from rollout.envs.import_path import ImportFailed, import_named, is_named
from rollout.errors import AlgorithmError
from rollout.learners.settings import AlgorithmSettings

if TYPE_CHECKING:
    from rollout.learners.algorithm import Algorithm

BUNDLED = {"ppo": "rollout.learners.ppo:PPO", "impala": "rollout.learners.impala:IMPALA"}


def find_algorithm(kind: str, given: Any = None) -> "type[Algorithm]":
    """The algorithm of a kind: bundled, or `package.module:Class` as seen from the current folder.

    given: the class itself, where the kind tells no more than that it was an object. Raises
    AlgorithmError that says what is missing, or what is wrong with the class.
    """
    if kind.startswith(OBJECT):
        found = _given(kind, given)
    else:
        named = BUNDLED.get(kind, kind)
        if not is_named(named):
            raise AlgorithmError(f"algorithm {kind!r}: wanted a name like package.module:Class")
        try:
            found = import_named(named, os.getcwd(), "algorithm", _is_algorithm)
        except ImportFailed as failed:
            raise AlgorithmError(f"algorithm {kind!r}: {failed}") from failed.__cause__
    _check(kind, found)
    return found


def _given(kind: str, given: Any) -> Any:
    if given is None:
        name = kind.removeprefix(OBJECT)
        raise AlgorithmError(
            f"algorithm {kind!r} was an object, of which no file holds more than the name; in "
            f"Python, rollout.train(resume=RUN, algorithm={name}) goes on with it (commands need "
            "one named package.module:Class)"
        )
    return given


def _is_algorithm(value: object) -> bool:
    from rollout.learners.algorithm import Algorithm

    return isinstance(value, type) and issubclass(value, Algorithm) and value is not Algorithm


def _check(kind: str, found: Any) -> None:
    """Raises AlgorithmError for what cannot learn anything."""
    if not _is_algorithm(found):
        raise AlgorithmError(
            f"algorithm {kind!r} is {found!r}; wanted a subclass of rollout.learners.Algorithm"
        )
    missing = sorted(name for name in found.__abstractmethods__)
    if inspect.isabstract(found):
        raise AlgorithmError(
            f"algorithm {kind!r}: {found.__name__} does not define {' and '.join(missing)}; "
            "def update(self, batch, update_index, fraction_done) improves the network once"
        )
    settings = getattr(found, "Settings", None)
    if not (isinstance(settings, type) and issubclass(settings, AlgorithmSettings)):
        shown = "has no Settings" if settings is None else f"has Settings = {settings!r}"
        raise AlgorithmError(
            f"algorithm {kind!r}: {found.__name__} {shown}; wanted Settings = a subclass of "
            "rollout.learners.AlgorithmSettings, the model of its table [algorithm]"
        )
