"""A run under fire: processes are killed, stopped and slowed, and what follows is measured.

The run is one like any other, `rollout train` in a process of its own; it knows nothing of this.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rollout.chaos_faults import Fault, Kind
from rollout.chaos_processes import ActingAgain, RunWatch, send, wait_ended
from rollout.errors import OperatorError

POLL_S = 0.001  # actors are back within tens of milliseconds, and nothing tells us when
IDLE_POLL_S = 0.005
MISSED_S = 0.05  # after nobody was there to be hit; to look for processes is work
RECOVERY_LIMIT_S = 60.0  # after which nobody waits any more
STUCK_S = 120.0  # without an update, after which a run is ended
END_S = 60.0  # for a run that was interrupted to save and end
GONE_S = 2.0  # after a run's end, for everything to be gone
DEATH_S = 5.0
TAIL_BYTES = 2000  # of what a run said, for people to see why it failed

Tell = Callable[[int, int], None]  # updates and faults so far


@dataclass
class Event:
    """A fault that was done. at_s: since the run was started. update: how far it was then.

    recovery_s: from the signal (or the last SIGCONT) until the actor acted again, all of them if it
    was not an actor that was killed; None if that was not seen. waited_s: how long was looked.
    """

    kind: Kind
    role: Kind
    pid: int
    update: int
    at_s: float
    recovery_s: float | None = None
    waited_s: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def is_failed(self) -> bool:
        """Whether it had the time to recover, and did not."""
        return self.recovery_s is None and self.waited_s >= RECOVERY_LIMIT_S


@dataclass
class Outcome:
    """What became of a run. summary: of summary.json; None if it has left none.

    trained_s: from the first update to the end, over all its lives. deaths: of processes, over all
    its lives: see RunWatch.num_deaths; learners: those that were killed. left: what it has left
    behind. error: what it said, if it failed.
    """

    path: Path
    summary: dict[str, Any] | None
    status: int
    trained_s: float
    planned: int
    events: list[Event]
    deaths: dict[str, int]
    left: list[str]
    error: str = ""

    @property
    def updates(self) -> int:
        return 0 if self.summary is None else self.summary["updates"]

    @property
    def env_steps_per_s(self) -> float:
        """Over all its time, that of learners which are being resumed included."""
        return 0.0 if self.summary is None else self.summary["env_steps"] / self.trained_s


class TrainProcess:
    """A run in a process of its own; as a context manager it ends it in any case.

    num_resumed: how often the run went on after its learner had been killed.
    """

    def __init__(self, arguments: Sequence[str], path: Path) -> None:
        """arguments: of `rollout train`. path: the run's directory, which is not there yet."""
        self.path = path
        self.num_resumed = 0
        self._log = path.with_name(f"{path.name}.log")
        self._process = self._start([*arguments, "--run-dir", str(path)])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        try:
            self.end()
        finally:
            self.kill()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def status(self) -> int | None:
        """Its exit status once it has ended, negative for a signal."""
        return self._process.poll()

    @property
    def summary(self) -> dict[str, Any] | None:
        """What the run has left in the end."""
        with contextlib.suppress(FileNotFoundError):
            return json.loads((self.path / "summary.json").read_bytes())
        return None

    @property
    def last_words(self) -> str:
        with contextlib.suppress(OSError):
            return self._log.read_bytes()[-TAIL_BYTES:].decode(errors="replace").strip()
        return ""

    def kill(self) -> None:
        if self.status is None:
            self._process.kill()
            self._process.wait()

    def resume(self) -> None:
        """Go on with a run whose learner is dead."""
        self.num_resumed += 1
        self._process = self._start(["--resume", str(self.path)])

    def end(self) -> None:
        """As with Ctrl-C: have it save and end; kill it if it does not."""
        if self.status is None:
            self._process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(END_S)

    def _start(self, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
        with open(self._log, "ab") as log:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "rollout", "train", "--quiet", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,  # Ctrl-C reaches us, and we tell it
            )


@dataclass
class _Recovery:
    """What is being waited for. from_ns: by time.monotonic_ns."""

    event: Event
    from_ns: int
    acting: ActingAgain

    def is_over(self, watch: RunWatch) -> bool:
        """Whether there is nothing to be waited for any more; puts it down in the event."""
        event = self.event
        self.acting.look(watch)
        actor = watch.deaths.get(event.pid) if event.kind == Kind.actor else None
        when_ns = self.acting.when_ns(actor)
        event.waited_s = (time.monotonic_ns() - self.from_ns) / 1e9
        if when_ns is not None:
            event.recovery_s = max(0, when_ns - self.from_ns) / 1e9
        return when_ns is not None or event.waited_s >= RECOVERY_LIMIT_S


@dataclass
class _Stopping:
    """A process that is being stopped and continued. pauses: seconds, stopped and not in turn."""

    event: Event
    pidfd: int
    pauses: deque[float] = field(default_factory=deque)
    is_stopped: bool = False
    next_s: float = 0.0


class Disturber:
    """Does to one run what is planned, and watches it to its end."""

    def __init__(self, train: TrainProcess, num_actors: int, faults: Sequence[Fault]) -> None:
        self._train = train
        self._num_actors = num_actors
        self._waiting = deque(faults)
        self._watch = RunWatch(train.path)
        self._recovering: list[_Recovery] = []
        self._stopping: list[_Stopping] = []
        self._due_s: float | None = None
        self._began_s = time.monotonic()
        self._newest = (-1, self._began_s)  # update, and since when
        self._most_updates = 0
        self._first_update_s: float | None = None
        self.events: list[Event] = []

    def __repr__(self) -> str:
        return f"Disturber({self._watch}, {len(self.events)} done, {len(self._waiting)} to do)"

    def run(self, tell: Tell) -> Outcome:
        """Until the run has ended."""
        error = ""
        planned = len(self._waiting)
        try:
            while self._train.status is None:
                self._step()
                tell(self._most_updates, len(self.events))
                if time.monotonic() - self._newest[1] > STUCK_S:
                    error = f"no update for {STUCK_S:.0f} s after update {self._newest[0]}"
                    break
                time.sleep(POLL_S if self._recovering or self._stopping else IDLE_POLL_S)
        finally:
            self._continue_all()
        self._train.end()
        self._train.kill()
        ended_s = time.monotonic()
        left = self._wait_gone()
        status = self._train.status or 0
        return Outcome(
            path=self._train.path,
            summary=self._train.summary,
            status=status,
            trained_s=ended_s - (self._first_update_s or self._began_s),
            planned=planned,
            events=self.events,
            deaths=self._watch.num_deaths | {"learners": self._train.num_resumed},
            left=left,
            error=error or (self._train.last_words if status else ""),
        )

    def _step(self) -> None:
        now_s = time.monotonic()
        self._watch.look()
        update = self._watch.version
        if update != self._newest[0]:
            self._newest = update, now_s
            self._most_updates = max(update, self._most_updates)
            if update > 0 and self._first_update_s is None:
                self._first_update_s = now_s
        for stopping in list(self._stopping):
            if stopping.next_s <= now_s:
                self._turn(stopping)
        self._recovering = [each for each in self._recovering if not each.is_over(self._watch)]
        if self._is_due(update, now_s):
            if self._strike(self._waiting[0], update):
                self._waiting.popleft()
                self._due_s = None
            else:
                self._due_s = now_s + MISSED_S

    def _is_due(self, update: int, now_s: float) -> bool:
        if not self._waiting:
            return False
        fault = self._waiting[0]
        if self._due_s is None:
            if update < fault.update:
                return False
            self._due_s = now_s + fault.delay_s
        is_busy = bool(self._recovering or self._stopping)
        is_gone = any(each.event.kind == Kind.learner for each in self._recovering)
        return now_s >= self._due_s and not is_gone and (fault.at_once or not is_busy)

    def _strike(self, fault: Fault, update: int) -> bool:
        """Whether there was somebody to be hit."""
        target = self._find(fault)
        if target is None:
            return False
        pid, pidfd = target
        event = Event(fault.kind, fault.role, pid, update, time.monotonic() - self._began_s)
        if fault.stops:
            pauses = [pause for stop in fault.stops for pause in (stop, stop)]
            stopping = _Stopping(event, pidfd, deque(pauses[:-1]))
            self._stopping.append(stopping)
            self._turn(stopping)
        else:
            self._kill(event, pidfd)
        self.events.append(event)
        return True

    def _find(self, fault: Fault) -> tuple[int, int] | None:
        """Pid and pidfd of the process that a fault is meant for, if there is one now."""
        if fault.role == Kind.learner:
            is_stop = bool(fault.stops)
            # Without a checkpoint, a killed one could not go on.
            if self._watch.plan is None or not (is_stop or self._has_checkpoint()):
                return None
            pid = self._train.pid  # our child: nobody else can have its number
            return (pid, os.pidfd_open(pid)) if self._train.status is None else None
        pids = sorted(self._watch.pids()[fault.role])
        if not pids:
            return None
        pid = pids[int(fault.pick * len(pids))]
        pidfd = self._watch.open(pid, fault.role)
        return None if pidfd is None else (pid, pidfd)

    def _has_checkpoint(self) -> bool:
        return any((self._train.path / "checkpoints").glob("update-*"))

    def _kill(self, event: Event, pidfd: int) -> None:
        self._watch.deaths.pop(event.pid, None)  # of a former process with its number
        dying = [pidfd]
        if event.kind == Kind.template:  # its actors die with it, but may seal an unroll before
            for pid in self._watch.pids()[Kind.actor]:
                with contextlib.suppress(OSError):
                    dying.append(os.pidfd_open(pid))
        from_ns = time.monotonic_ns()
        send(pidfd, signal.SIGKILL)
        if event.kind == Kind.learner:
            self._train.kill()
            self._train.resume()
        else:
            wait_ended(dying, DEATH_S)
        for each in dying:
            os.close(each)
        # Another host agent has another page, and so has a run that was resumed.
        on_new_page = event.kind in (Kind.host, Kind.learner)
        self._recover(event, from_ns, on_new_page)

    def _recover(self, event: Event, from_ns: int, on_new_page: bool = False) -> None:
        acting = ActingAgain(self._watch, self._num_actors, on_new_page)
        self._recovering.append(_Recovery(event, from_ns, acting))

    def _turn(self, stopping: _Stopping) -> None:
        """Stop what runs, and have run what is stopped."""
        number = signal.SIGCONT if stopping.is_stopped else signal.SIGSTOP
        is_there = send(stopping.pidfd, number)
        stopping.is_stopped = not stopping.is_stopped
        if is_there and stopping.pauses:
            stopping.next_s = time.monotonic() + stopping.pauses.popleft()
            return
        self._stopping.remove(stopping)
        os.close(stopping.pidfd)
        self._recover(stopping.event, time.monotonic_ns())

    def _continue_all(self) -> None:
        for stopping in self._stopping:
            send(stopping.pidfd, signal.SIGCONT)
            os.close(stopping.pidfd)
        self._stopping.clear()

    def _wait_gone(self) -> list[str]:
        deadline = time.monotonic() + GONE_S
        self._watch.look(at_once=True)
        while (left := self._watch.leftovers()) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        return left


def make_place(path: Path) -> Path:
    """A new or empty directory. Raises OperatorError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        content = os.listdir(path)
    except OSError as error:
        raise OperatorError(
            f"{path}: cannot write runs there: {error.strerror}; name another place with --run-dir"
        ) from error
    if content:
        raise OperatorError(f"{path}: is not empty; --run-dir wants a new or an empty directory")
    return path
