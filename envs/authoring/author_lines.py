"""The author's lines in what plain Python does: where it failed, where a number became wrong."""

import contextlib
import sys
import threading
import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from rollout.envs.authoring.authored import reached_from
from rollout.envs.compiled_env import SIGNATURES, CompiledEnv

MAX_TRACED_LINES = 20_000  # a heavy simulator's step has more than one wants to wait for


@dataclass(frozen=True)
class Line:
    """A line of the author's; function: the one it belongs to."""

    file: str
    number: int
    function: str

    def __str__(self) -> str:
        return f"{self.file}:{self.number}, in {self.function}"


@dataclass
class Traced:
    """What was seen while plain Python ran.

    error: what it raised, if it did, and error_line where. became_bad: after which line what was
    watched was bad, for the last time. returned: where `step` returned.
    """

    error: Exception | None = None
    error_line: Line | None = None
    became_bad: Line | None = None
    returned: Line | None = None


class AuthorLines:
    """Finds lines of an environment's author, its functions and their helpers."""

    def __init__(self, env: type[CompiledEnv]) -> None:
        functions = {name: getattr(env, name) for name in SIGNATURES if hasattr(env, name)}
        self._names = {function.__code__: name for name, function in functions.items()}
        self._files = {
            reached.__code__.co_filename
            for function in functions.values()
            for reached in reached_from(function)
        }

    def of_error(self, error: BaseException) -> Line | None:
        """The innermost line that an error came through."""
        return self._innermost(_frames_of_error(error))

    def function_of_error(self, error: BaseException) -> str | None:
        """Which of the environment's own functions an error came through: `step`."""
        names = (self._names.get(frame.f_code) for frame, _ in _frames_of_error(error))
        return next(filter(None, names), None)

    def trace(self, call: Callable[[], Any], is_bad: Callable[[], bool]) -> Traced:
        """Run `call`, asking after each line whether something is bad by now."""
        traced = Traced()
        was_bad, last, num_lines = is_bad(), None, 0

        def look(frame: types.FrameType, event: str, _argument: Any) -> Any:
            nonlocal was_bad, last, num_lines
            if frame.f_code.co_filename not in self._files:
                return None
            num_lines += 1
            if num_lines > MAX_TRACED_LINES:
                sys.settrace(None)
                return None
            is_bad_now = is_bad()
            if is_bad_now and not was_bad:
                traced.became_bad = last
            was_bad = is_bad_now
            last = _line(frame, frame.f_lineno)
            if event == "return" and self._names.get(frame.f_code) == "step":
                traced.returned = last
            return look

        tracer = sys.gettrace()  # a debugger's
        sys.settrace(look)
        try:
            call()
        except Exception as error:
            traced.error, traced.error_line = error, self.of_error(error)
        finally:
            sys.settrace(tracer)
        return traced

    def where_it_hangs(self, call: Callable[[], Any], wait_s: float) -> Line | None:
        """The line at which `call` is after a while; None if it is done by then.

        What goes on goes on, in a thread that ends with the process.
        """

        def run() -> None:
            with contextlib.suppress(Exception):
                call()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(wait_s)
        frame = sys._current_frames().get(thread.ident or 0) if thread.is_alive() else None
        frames = []
        while frame is not None:
            frames.insert(0, (frame, frame.f_lineno))
            frame = frame.f_back
        return self._innermost(frames)

    def _innermost(self, frames: Iterable[tuple[types.FrameType, int]]) -> Line | None:
        found = None
        for frame, number in frames:
            if frame.f_code.co_filename in self._files:
                found = _line(frame, number)
        return found


def _line(frame: types.FrameType, number: int) -> Line:
    return Line(frame.f_code.co_filename, number, frame.f_code.co_name)


def _frames_of_error(error: BaseException) -> Iterator[tuple[types.FrameType, int]]:
    """From the outside in, with their lines."""
    traceback = error.__traceback__
    while traceback is not None:
        yield traceback.tb_frame, traceback.tb_lineno
        traceback = traceback.tb_next
