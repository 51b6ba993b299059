"""More actors for a run that goes on: this process becomes another host agent of it.

All that is needed to join lies in the run's directory, as long as the run goes on. The learner
shares the environments out anew when the actors are there, and once more when they leave.
"""

import contextlib
import os
import secrets
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import msgspec

from rollout import control, processes, run_places
from rollout.errors import OperatorError
from rollout.host import HostAgent
from rollout.learners.network import ModuleSpec
from rollout.plan import HostPlan

BEGIN_S = 30.0  # for a run that is being started to let others join
RETRY_S = 0.01


@dataclass(frozen=True)
class RunningRun:
    """A run that goes on. learner_end: a descriptor, readable once its learner has ended."""

    path: Path
    plan: HostPlan
    learner_pid: int
    learner_end: int


@dataclass(frozen=True)
class Parting:
    """How actors that had joined came to leave.

    has_learner_died: nobody has told them to. failure: why they could not go on, or nothing.
    """

    has_learner_died: bool
    failure: str


class LeaveAtOnce(BaseException):
    """Whoever wanted to leave did not want to wait."""


@contextlib.contextmanager
def find_running(path: Path) -> Iterator[RunningRun]:
    """The run in this directory; waits for one that is just being started.

    Raises OperatorError if none goes on there.
    """
    if not (path / "config.toml").is_file():
        what = "not a run (it holds no config.toml)" if path.exists() else "no such directory"
        raise OperatorError(
            f"{path}: {what}; wanted is the directory of a run that goes on, as `rollout train` "
            "makes it"
        )
    owner = _open_owner(path / "lock")
    if owner is None:
        raise _not_running(path)
    pid, end = owner
    try:
        plan = _wait_plan(path, end)
        if plan.env_source.is_object:
            raise OperatorError(
                f"{path}: its environment, {plan.env_source.id}, was given to rollout.train as an "
                "object, which goes to the actors of its own fleet only; in one with a name, "
                "package.module:Name, others can join"
            )
        if isinstance(plan.network, ModuleSpec) and plan.network.is_object:
            raise OperatorError(
                f"{path}: its network, {plan.network.kind}, was given to rollout.train as an "
                "object, which goes to the actors of its own fleet only; with one that has a name, "
                "package.module:Name, others can join"
            )
        yield RunningRun(path, plan, pid, end)
    finally:
        os.close(end)


def join(
    run: RunningRun,
    num_actors: int,
    on_joined: Callable[[], None] = lambda: None,
    on_leaving: Callable[[], None] = lambda: None,
) -> Parting:
    """Have so many actors act for the run, until it is over or a signal comes; needs main thread.

    The first SIGINT, SIGTERM or SIGHUP hands the environments back before the actors end, which
    needs the learner; the second raises LeaveAtOnce. Nothing is left behind. on_joined: called when
    the actors have been offered. on_leaving: called by a signal's handler, so must not print
    through a buffer. What agent, template and actors have to say goes to the run's log.
    """
    processes.set_name("rollout-host")
    processes.raise_open_files_limit()
    name = f"rollout-{run.plan.name}-{secrets.token_hex(4)}"
    memory = run_places.make_directory(run_places.shared_memory_directory(), name)
    plan = msgspec.structs.replace(run.plan, memory_directory=str(memory), num_actors=num_actors)
    try:
        with _stderr_to(run.path / "run.log"), _Leaver(on_leaving) as leaver:
            agent = JoinedAgent(plan, run.learner_end)
            try:
                leaver.serve(agent)
                on_joined()
                agent.run()
            finally:
                leaver.ignore_signals()  # the end is near
                agent.close()
            return Parting(not agent.was_told_to_stop, agent.failure)
    finally:
        shutil.rmtree(memory, ignore_errors=True)
        if processes.is_readable(run.learner_end):  # its own host agent may be dead as well
            shutil.rmtree(plan.socket_directory, ignore_errors=True)


class JoinedAgent(HostAgent):
    """A host agent that people started; it gives up where others would wait to be ended.

    failure: why it did.
    """

    failure = ""

    @property
    def was_told_to_stop(self) -> bool:
        return self._is_over

    def _tell(self, message: control.ToLearner) -> None:
        super()._tell(message)
        match message:
            case control.Failed():
                self.failure = message.reason  # the learner answers with Stop
            case control.Unprepared():
                self.failure = f"the environment could not be prepared: {message.error}"
                self.leave()


class _Leaver:
    """Makes signals end an agent: gently at first."""

    def __init__(self, on_leaving: Callable[[], None]) -> None:
        self._on_leaving = on_leaving
        self._agent: HostAgent | None = None
        self._is_leaving = False
        self._before = {
            number: signal.getsignal(number) or signal.SIG_DFL
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        }

    def __enter__(self) -> Self:
        for number, handler in self._before.items():
            if handler != signal.SIG_IGN:  # of nohup, say
                signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def serve(self, agent: HostAgent) -> None:
        """From here on it is this agent that is to leave; one that came early counts."""
        self._agent = agent
        if self._is_leaving:
            agent.leave()

    def ignore_signals(self) -> None:
        for number in self._before:
            signal.signal(number, signal.SIG_IGN)

    def _on_signal(self, _number: int, _frame: object) -> None:
        if self._is_leaving:
            self.ignore_signals()
            raise LeaveAtOnce
        self._is_leaving = True
        self._on_leaving()
        if self._agent is not None:
            self._agent.leave()


@contextlib.contextmanager
def _stderr_to(log: Path) -> Iterator[None]:
    """Have this process, and those it starts, write to the run's log what goes wrong."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(log, "ab") as file:
            os.dup2(file.fileno(), 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)


def _open_owner(lock: Path) -> tuple[int, int] | None:
    """The process that holds a run's lock, and a descriptor that tells its end.

    A dead one's number may belong to another process by now, which does not have the lock open.
    """
    try:
        pid = int(lock.read_text())
        end = os.pidfd_open(pid)
    except (OSError, ValueError, OverflowError):
        return None
    if _has_open(pid, lock):
        return pid, end
    os.close(end)
    return None


def _has_open(pid: int, path: Path) -> bool:
    with contextlib.suppress(OSError):  # it has ended, or it is somebody else's
        wanted = path.stat()
        descriptors = Path(f"/proc/{pid}/fd")
        for name in os.listdir(descriptors):
            with contextlib.suppress(OSError):
                if os.path.samestat(os.stat(descriptors / name), wanted):
                    return True
    return False


def _wait_plan(path: Path, learner_end: int) -> HostPlan:
    """How to join. A run that is resumed finds the file of its former life and replaces it."""
    deadline = time.monotonic() + BEGIN_S
    while not processes.is_readable(learner_end, RETRY_S):
        with contextlib.suppress(FileNotFoundError):
            encoded = (path / "fleet.msgpack").read_bytes()
            try:
                plan = msgspec.msgpack.decode(encoded, type=HostPlan)
            except msgspec.DecodeError as error:
                raise OperatorError(
                    f"{path}/fleet.msgpack: {error}; was the run started by another version?"
                ) from error
            # Only the present life of the run holds its sockets' directory.
            if not run_places.wait_unheld(Path(plan.socket_directory), 0.0):
                return plan
        if time.monotonic() > deadline:
            raise OperatorError(
                f"{path}: its process lets nobody join after {BEGIN_S:.0f} s; see {path}/run.log"
            )
    raise _not_running(path)


def _not_running(path: Path) -> OperatorError:
    return OperatorError(
        f"{path}: not running on this machine; start it with `rollout train`, or go on with it: "
        f"rollout train --resume {path}"
    )
