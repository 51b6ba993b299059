"""The template as the host agent sees it: a child process with a pipe each way."""

import contextlib
import os
import subprocess
import sys

from rollout import control, processes
from rollout.plan import HostStart, write_record
from rollout.supervisor import signal_name

GRACE_S = 1.0  # for the template to end its actors; the kernel ends them with it in any case


class TemplateProcess:
    """Started by whoever makes it. reports: descriptor of what it says; end: of its end."""

    def __init__(self, start: HostStart) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "rollout.template", str(os.getpid()), start.plan.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | processes.SINGLE_THREAD_ENVIRONMENT,
            process_group=0,  # Ctrl-C is not for it, not even before it can say so itself
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._commands = self._process.stdin
        self._reports = self._process.stdout
        self.pid = self._process.pid
        self.reports = self._reports.fileno()
        self.end = os.pidfd_open(self.pid)
        self.is_ready = self.has_ended = False
        self._write(start)

    def fork(self, actor: int, slot: int, incarnation: int) -> None:
        self._write(control.Fork(actor, slot, incarnation))

    def has_report(self) -> bool:
        """Whether there is a report to be read, or the end of them."""
        return processes.is_readable(self.reports)

    def is_paused(self) -> bool:
        """Whether it was stopped (SIGSTOP)."""
        return processes.state(self.pid) == "T"

    def kill(self) -> None:
        self._process.kill()

    def stop(self) -> None:
        """End it and its actors, and let go of it."""
        with contextlib.suppress(OSError):
            self._commands.close()  # it kills and reaps its actors, then ends
        if not self.is_ready or not processes.is_readable(self.end, GRACE_S):
            self._process.kill()  # while it imports or compiles, it would not notice
        self.close()

    def wait(self) -> str:
        """How it ended; blocks until it has."""
        self.has_ended = True
        status = self._process.wait()
        how = f"signal {signal_name(-status)}" if status < 0 else f"exit status {status}"
        return f"the template process ended by {how}, and its actors with it"

    def close(self) -> None:
        """Let go of it; it has ended, or is about to."""
        self.wait()
        with contextlib.suppress(OSError):
            self._commands.close()
        self._reports.close()
        os.close(self.end)

    def _write(self, record: HostStart | control.Fork) -> None:
        with contextlib.suppress(BrokenPipeError):  # it has been killed; its end will tell
            write_record(self._commands.fileno(), record)
