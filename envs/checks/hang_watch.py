"""Notices that an environment's function does not return."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from rollout.envs.checks.explanations import Moment
from rollout.envs.compiled_env import CompiledEnv

LOOK_S = 1.0  # how long plain Python runs before we look where it is


@dataclass(frozen=True, eq=False)
class Call:
    """A kernel's call for one environment; record: its bytes before."""

    env: type[CompiledEnv]
    record: np.ndarray
    params: np.ndarray
    kernel: str
    arguments: tuple

    def describe(self, since_s: float) -> str:
        """That it hangs, and where, found by doing it again in plain Python."""
        moment = Moment(self.env, self.record, self.params)
        line = moment.line_of_hang(LOOK_S, self.kernel, *self.arguments)
        if line is None:
            what, where = "compiled code", "plain Python returns"
        else:
            what, where = line.function, str(line)
        return f"{what} has not returned for {since_s:g} s: {where}; {moment.place()}"


class HangWatch:
    """A thread that looks at calls under way, once it is entered.

    limit_s: how long a call may take. on_hang: called once, in the thread, with a text.
    """

    def __init__(self, limit_s: float = 0.0, on_hang: Callable[[str], None] = print) -> None:
        self._limit_s = limit_s
        self._on_hang = on_hang
        self._call: Call | None = None
        self._is_over = threading.Event()

    @contextlib.contextmanager
    def over(self, *call: Any) -> Iterator[None]:
        """While this lasts, a Call of these parts is under way."""
        self._call = Call(*call)
        try:
            yield
        finally:
            self._call = None

    def __enter__(self) -> Self:
        threading.Thread(target=self._look, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()

    def _look(self) -> None:
        last = None
        while not self._is_over.wait(self._limit_s):
            call = self._call
            if call is not None and call is last:
                self._on_hang(call.describe(self._limit_s))
                return
            last = call
