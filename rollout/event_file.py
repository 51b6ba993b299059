"""TensorBoard's event files, written here.

TensorBoard's own writer does so in a thread, which dies with the first write that a disk refuses;
from then on whoever adds an event waits forever. And it would load torch.
"""

import io
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

from rollout.appender import Appender

# Generated modules: no stubs.
Event = event_pb2.Event  # pyright: ignore[reportAttributeAccessIssue]
SessionLog = event_pb2.SessionLog  # pyright: ignore[reportAttributeAccessIssue]
Summary = summary_pb2.Summary  # pyright: ignore[reportAttributeAccessIssue]


class EventFile:
    """A new event file in a run's folder. `trouble` and `close` are an Appender's."""

    def __init__(self, folder: Path, first_step: int) -> None:
        """first_step: points of earlier files, from this step on, are taken back."""
        self._appender = Appender(folder / _name(folder))
        now = time.time()
        self._append(Event(wall_time=now, file_version="brain.Event:2"))
        # Every file has one: a reader takes the first of a run for its start, others for a restart.
        start = SessionLog(status=SessionLog.START)
        self._append(Event(wall_time=now, step=first_step, session_log=start))

    def __repr__(self) -> str:
        return f"EventFile({self._appender!r})"

    @property
    def trouble(self) -> str | None:
        return self._appender.trouble

    def add(self, wall_time: float, step: int, point: Mapping[str, float]) -> None:
        """Add a point of every scalar in `point`, at `step`."""
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in point.items()]
        self._append(Event(wall_time=wall_time, step=step, summary=Summary(value=values)))

    def flush(self) -> None:
        self._appender.flush()

    def close(self) -> None:
        self._appender.close()

    def _append(self, event: Any) -> None:
        record = io.BytesIO()
        RecordWriter(record).write(event.SerializeToString())
        self._appender.append(record.getvalue())


def _name(folder: Path) -> str:
    """A name behind those of earlier files, whatever the clock says: that is the order of reading.

    events.out.tfevents.SECONDS.HOST.PROCESS
    """
    seconds = int(time.time())
    for file in folder.glob("events.out.tfevents.*"):
        digits = file.name.split(".")[3]
        if digits.isascii() and digits.isdigit():
            seconds = max(seconds, int(digits) + 1)
    return f"events.out.tfevents.{seconds:010d}.{socket.gethostname()}.{os.getpid()}"
