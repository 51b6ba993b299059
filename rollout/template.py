"""The template: a process that imports and compiles once, and forks actors that have it all.

A forked actor costs a few megabytes and a millisecond instead of a hundred megabytes and a second.
Only a single-threaded process may fork safely, so the template stays one, if need be by leaving an
environment of Gymnasium's that starts threads to its actors. Only a parent can reap, so it also
tells the host agent which actors ended, and how. Started by the host agent as
`python -P -m rollout.template`, with a HostStart on standard input and its reports on standard
output.
"""

import faulthandler
import gc
import os
import select
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from rollout import control, processes, run_places
from rollout.envs.errors import EnvError, in_words, raised_at
from rollout.envs.pickling import unpickled
from rollout.errors import NetworkError
from rollout.learners.network import ModuleSpec
from rollout.plan import HostStart, read_record, write_record

if TYPE_CHECKING:
    from rollout.envs.registry import AnyEnv

ERROR_BYTES = 3000  # with what is around it, this stays below what a pipe writes in one piece
PLACE_BYTES = 500


def main() -> None:
    processes.set_name("rollout-templ")
    processes.die_with_parent(int(sys.argv[1]))
    processes.ignore_interrupts()
    commands = sys.stdin.fileno()
    is_anew = len(sys.argv) > 3
    if is_anew:
        plan_file, reports = map(int, sys.argv[3:])
    else:
        plan_file, reports = commands, os.dup(1)
        os.dup2(2, 1)  # whatever an environment prints goes to the log
    start = read_record(plan_file, HostStart)
    if is_anew:
        os.close(plan_file)
    if start is not None:
        try:
            template = Template(start, reports, has_env=not is_anew)
        except Exception as error:
            traceback.print_exc()
            write_record(reports, _unprepared(error))
            return
        template.run(commands)


def begin_anew(start: HostStart, reports: int) -> NoReturn:
    """Be a template without the environment, in the same process: no thread outlives this."""
    plan_file = os.memfd_create("plan", 0)
    write_record(plan_file, start)
    os.lseek(plan_file, 0, os.SEEK_SET)
    os.set_inheritable(reports, True)
    arguments = ["-P", "-m", "rollout.template", *sys.argv[1:3], str(plan_file), str(reports)]
    os.execv(sys.executable, [sys.executable, *arguments])


def _unprepared(error: Exception) -> control.Unprepared:
    is_authors = isinstance(error, EnvError | NetworkError)
    return control.Unprepared(cut(str(error)) if is_authors else error_text(error), is_authors)


def error_text(error: BaseException) -> str:
    """What an error says, cut so that reports of several actors cannot mix in the pipe."""
    return cut(in_words(error))


def cut(text: str) -> str:
    """The text, as far as it fits into one piece of a pipe."""
    return text.encode(errors="replace")[:ERROR_BYTES].decode(errors="ignore")


class Template:
    """Forks and reaps the actors of one host."""

    def __init__(self, start: HostStart, reports: int, has_env: bool) -> None:
        """has_env: whether it imports the environment, rather than each actor for itself."""
        started = time.perf_counter()
        self._start = start
        plan = start.plan
        self._reports = reports
        self._pids: set[int] = set()
        # Imported here, before anything is forked, after the plan is read: it takes a second.
        from rollout import actor, make_actor
        from rollout.envs.foreign.foreign_env import ForeignEnv
        from rollout.host_memory import HostPage, WeightsFiles

        self._env: AnyEnv | None = None
        env_id = plan.env_source.id
        notice = f"{env_id} starts threads, which no fork survives: each actor imports it anew"
        self._network: Any = None
        if isinstance(plan.network, ModuleSpec):
            self._network = self._find_network(plan.network)
        if has_env:
            self._env, notice = self._find_env(), ""
            make_actor.load_kernels(self._env, plan.network, plan.schema)
            if isinstance(self._env, ForeignEnv) and processes.num_threads() != 1:
                begin_anew(start, reports)
        self._run_actor = actor.run_actor
        memory = Path(plan.memory_directory)
        run_places.hold(memory)  # until the last of us is dead: actors inherit the descriptor
        self._page = HostPage(memory / "page", plan.num_actors)
        self._files = WeightsFiles(memory)
        gc.collect()
        gc.freeze()
        if processes.num_threads() != 1:
            raise EnvError(
                f"importing environment {env_id!r} started threads; a process with threads "
                "cannot be forked: start them where they are needed, not at import"
            )
        write_record(reports, control.Ready(time.perf_counter() - started, notice))

    def _find_env(self) -> "AnyEnv":
        from rollout.envs.registry import find_any_env

        source, given = self._start.plan.env_source, self._start.env
        if not given:
            return find_any_env(source)
        try:
            env = unpickled(given)
        except Exception as error:  # of modules that are imported for it, too
            raise EnvError(
                f"environment {source.id!r} cannot be had in another process: "
                f"{type(error).__name__}: {error}"
            ) from error
        return find_any_env(source, env)

    def _find_network(self, network: ModuleSpec) -> Any:
        """The class of the network's module, with torch, which actors then need not import."""
        from rollout.modules import find_module

        given = self._start.network
        try:
            found = unpickled(given) if given else None
        except Exception as error:  # of modules that are imported for it, too
            raise NetworkError(
                f"network {network.kind!r} cannot be had in another process: "
                f"{type(error).__name__}: {error}"
            ) from error
        return find_module(network.kind, network.folder, found)

    def run(self, commands: int) -> None:
        """Obey until the agent closes the pipe; then no actor is left."""
        wake_read, wake_write = os.pipe()
        os.set_blocking(wake_write, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        poll = select.poll()
        poll.register(commands, select.POLLIN)
        poll.register(wake_read, select.POLLIN)
        while True:
            ready = dict(poll.poll())
            if wake_read in ready:
                os.read(wake_read, 4096)
                self._reap()
            if commands in ready:
                command = read_record(commands, control.Fork)
                if command is None:
                    self._end_actors()
                    return
                self._fork(command)

    def _fork(self, command: control.Fork) -> None:
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:  # memory or processes are short; the others live on
            write_record(self._reports, control.NotForked(command.actor, error_text(error)))
            return
        if pid == 0:
            self._be_actor(command, parent)
        self._pids.add(pid)
        started = control.ActorStarted(command.actor, command.incarnation, pid)
        write_record(self._reports, started)

    def _end_actors(self) -> None:
        for pid in self._pids:
            os.kill(pid, signal.SIGKILL)
        for pid in self._pids:
            os.waitpid(pid, 0)

    def _be_actor(self, command: control.Fork, parent: int) -> NoReturn:
        try:
            processes.die_with_parent(parent)
            processes.set_name("rollout-actor")
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            # The agent asks for the stack of an actor that hangs; it goes to the run's log.
            faulthandler.register(signal.SIGUSR2, sys.stderr, all_threads=True)
            outgrew = self._run_actor(
                self._start.plan,
                self._env or self._find_env(),
                self._page,
                self._files,
                command.actor,
                command.slot,
                command.incarnation,
                self._network,
            )
            write_record(self._reports, outgrew)
        except BaseException as error:
            traceback.print_exc()
            place = raised_at(error)[-PLACE_BYTES:]
            write_record(
                self._reports, control.ActorError(os.getpid(), error_text(error), cut(place))
            )
        finally:
            sys.stderr.flush()
            os._exit(1)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid not in self._pids:  # a process that the environment's module has started
                continue
            if os.WIFSTOPPED(status) or os.WIFCONTINUED(status):
                write_record(self._reports, control.ActorPaused(pid, os.WIFSTOPPED(status)))
                continue
            self._pids.discard(pid)
            code = os.waitstatus_to_exitcode(status)
            write_record(self._reports, control.ActorExited(pid, code))


if __name__ == "__main__":
    main()
