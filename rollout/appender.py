"""Files that grow by whole records while a run goes on: they outlive a full disk, and a SIGKILL."""

import logging
import mmap
import os
import time
from collections import deque
from pathlib import Path
from typing import Any

import msgspec

from rollout.errors import RunFailed

log = logging.getLogger(__name__)

FLUSH_EVERY_S = 0.5  # records that may be missing after a SIGKILL
RETRY_EVERY_S = 5.0  # after the disk has refused
MOST_WAITING_BYTES = 64 << 20
WRITE_BYTES = 1 << 20


class Appender:
    """Appends records, lines for example, to a file. What the disk refuses waits in memory.

    Nothing raises until `close`. A record that the disk has taken in part is continued later, so
    the file holds whole records in their order; but for the oldest, when too many wait.

    trouble: what is wrong with the disk now, for people; None if nothing is. num_dropped: records
    that are lost.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.trouble: str | None = None
        self.num_dropped = 0
        self._file: int | None = None
        self._is_closed = False
        self._begun = b""  # whole records but for what the file has of them; never dropped
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._next_flush = 0.0
        self.flush()

    def __repr__(self) -> str:
        waiting = len(self._begun) + self._waiting_bytes
        return f"Appender({str(self.path)!r}, {waiting} bytes waiting, trouble={self.trouble!r})"

    def append(self, record: bytes) -> None:
        """Add a record; a line brings its line break."""
        self._waiting.append(record)
        self._waiting_bytes += len(record)
        while self._waiting_bytes > MOST_WAITING_BYTES:
            self._waiting_bytes -= len(self._waiting.popleft())
            self.num_dropped += 1
        if time.monotonic() >= self._next_flush:
            self.flush()

    def flush(self) -> None:
        """Hand over all that waits, so that it survives this process; what is refused waits on."""
        try:
            if self._file is None:
                flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
                self._file = os.open(self.path, flags, 0o644)
            while self._begun or self._waiting:
                self._begun = self._begun or self._take()
                self._begun = self._begun[os.write(self._file, self._begun) :]
        except OSError as error:
            self._refused(error)
        else:
            self._taken()

    def close(self) -> None:
        """Raises RunFailed if the disk does not take what is left. Twice is once."""
        if self._is_closed:
            return
        self._is_closed = True
        self.flush()
        if self._file is not None:
            os.close(self._file)
        left = len(self._begun) + self._waiting_bytes
        if left:
            raise RunFailed(f"{self.path}: its last {left:,} bytes are lost: {self.trouble}")

    def _take(self) -> bytes:
        taken, size = [], 0
        while self._waiting and size < WRITE_BYTES:
            taken.append(self._waiting.popleft())
            size += len(taken[-1])
        self._waiting_bytes -= size
        return b"".join(taken)

    def _refused(self, error: OSError) -> None:
        is_new = self.trouble is None
        self.trouble = f"{self.path}: cannot be written: {error.strerror}"
        self._next_flush = time.monotonic() + RETRY_EVERY_S
        if is_new:
            log.warning(
                "%s; the run goes on, and up to %d MiB wait in memory; free some space there",
                self.trouble,
                MOST_WAITING_BYTES >> 20,
            )

    def _taken(self) -> None:
        if self.trouble is not None:
            lost = f", but {self.num_dropped:,} records are lost" if self.num_dropped else ""
            log.warning("%s: written again%s", self.path, lost)
        self.trouble = None
        self._next_flush = time.monotonic() + FLUSH_EVERY_S


def cut_lines(path: Path, last_update: int) -> dict[str, Any] | None:
    """Take the lines of later updates off the end of a file of JSON objects, and a torn one.

    Each line has a key `update`, and they are in its order. Only what is cut is read, and it is cut
    in one step. Returns the last line that is left, None if there is none. Raises RunFailed.
    """
    try:
        with open(path, "r+b") as file:
            size = end = file.seek(0, os.SEEK_END)
            last = None
            if size:
                with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as content:
                    while end:
                        begin = content.rfind(b"\n", 0, end - 1) + 1
                        last = _object(content[begin:end])
                        if last is not None and last["update"] <= last_update:
                            break
                        last, end = None, begin
            if end < size:
                os.truncate(file.fileno(), end)
                os.fsync(file.fileno())
            return last
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunFailed(f"{path}: cannot be cut for resuming: {error.strerror}") from error


def _object(line: bytes) -> dict[str, Any] | None:
    """The JSON object of a whole line that names its update."""
    if not line.endswith(b"\n"):
        return None
    try:
        found = msgspec.json.decode(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and type(found.get("update")) is int else None
