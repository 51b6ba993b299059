"""What a command is doing, on standard error, while there is nothing else to show."""

import contextlib
import shutil
import sys
import time
from types import TracebackType
from typing import Self

DRAW_EVERY_S = 0.2
LINE_EVERY_S = 5.0  # where lines stay


class ProgressLine:
    """One line that is drawn anew on a terminal and gone at the end; elsewhere a line at times."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr is not None and sys.stderr.isatty()
        self._every_s = DRAW_EVERY_S if self._is_terminal else LINE_EVERY_S
        self._next = time.monotonic() + (0.0 if self._is_terminal else LINE_EVERY_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if self._is_terminal:
            self._print("\r\x1b[K")

    def show(self, text: str) -> None:
        """Say it, unless something was said a moment ago."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + self._every_s
        if self._is_terminal:
            columns = shutil.get_terminal_size().columns
            self._print(f"\r\x1b[K{text[: max(columns - 2, 20)]} …")
        else:
            self._print(f"{text}\n")

    def _print(self, text: str) -> None:
        with contextlib.suppress(OSError, AttributeError):  # nobody looks, or it was closed
            sys.stderr.write(text)
            sys.stderr.flush()
