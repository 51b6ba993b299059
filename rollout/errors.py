"""Errors shown to people without a traceback, by who can act on them.

Errors of an environment's author are `rollout.envs.errors.EnvError`.
"""

import sys
from collections.abc import Iterable


class RolloutError(Exception):
    """An error whose message says what was found, what was wanted, and the next move."""

    exit_status = 2  # of a command that ends with it


class ConfigError(RolloutError):
    """The author of an experiment file can act: all its problems at once.

    problems: each a whole message, with the file, the key and the value it is about.
    """

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[type["ConfigError"], tuple[tuple[str, ...]]]:
        return type(self), (self.problems,)


class OperatorError(RolloutError):
    """Whoever runs it can act: limits of the machine, run directories, devices, checkpoints."""


class AlgorithmError(RolloutError):
    """The author of an algorithm can act: it cannot be found, or is none."""


class NetworkError(RolloutError):
    """The author of a network's module can act: it cannot be found, made or executed."""


class RunFailed(RolloutError):
    """A run that had started died."""

    exit_status = 1


def require_linux() -> None:
    """Raises OperatorError on a system that cannot run a fleet."""
    if sys.platform != "linux":
        raise OperatorError(
            f"rollout runs on Linux, this is {sys.platform}; "
            "on Windows, use WSL2; on a Mac, a Linux container or virtual machine"
        )
