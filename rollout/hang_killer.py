"""Ends actors that hang, after they have written down where.

What hangs cannot tell more than its stack, and not even that if it was stopped (SIGSTOP), so the
dump is asked for with a signal, which faulthandler answers (rollout.template), and not waited for.
"""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass

from rollout import processes
from rollout.control import ActorOutgrew
from rollout.host_memory import HostPage
from rollout.supervisor import LOOK_S, HangWatch
from rollout.template_process import TemplateProcess

DUMP_S = 0.2  # for an actor to write down where it is
MOST_PAUSED_LOOKS = 10  # at a template that is stopped, before it is replaced


@dataclass
class Life:
    """One life of an actor, from its fork until it is reaped.

    error, raised_at: what it had to say. hung_s: how long it had been at an unroll when it was
    killed for it. paused_ns: since when it is stopped (SIGSTOP); 0: it is not. outgrew: what it
    said if it ended for its memory.
    """

    actor: int
    incarnation: int
    slot: int
    pid: int
    error: str = ""
    raised_at: str = ""
    hung_s: float = 0.0
    paused_ns: int = 0
    outgrew: ActorOutgrew | None = None


@dataclass
class Hanging:
    """An actor that was asked for its stack. doing: what it hangs in, see HangKiller._doing."""

    life: Life
    pidfd: int
    doing: tuple[int, int]
    hung_s: float
    kill_at_s: float


class HangKiller:
    """Looks every LOOK_S; limit_s: see HangWatch. Times are those of time.monotonic."""

    def __init__(self, page: HostPage, limit_s: float | None) -> None:
        self._page = page
        self._watch = HangWatch(len(page.slots), limit_s)
        self._hanging: dict[int, Hanging] = {}  # by pid
        self._look_at_s = 0.0
        self._paused_looks = 0  # in a row, at which the template was

    def __repr__(self) -> str:
        return f"HangKiller({self._watch!r}, {len(self._hanging)} being killed)"

    def next_due_s(self) -> float:
        """When there is something to do."""
        return min([self._look_at_s, *(each.kill_at_s for each in self._hanging.values())])

    def do_what_is_due(
        self, now_s: float, lives: Iterable[Life], template: TemplateProcess
    ) -> None:
        """lives: of actors that are alive, children of the template."""
        for hanging in [each for each in self._hanging.values() if each.kill_at_s <= now_s]:
            self._kill(hanging)
        if self._look_at_s <= now_s:
            self._look_at_s = now_s + LOOK_S
            self._look_at_template(template)
            paused_ns = {life.slot: life.paused_ns for life in lives if life.paused_ns}
            hung = self._watch.look(time.monotonic_ns(), self._page.slots, paused_ns)
            for life in lives if hung else ():
                if life.slot in hung and life.pid not in self._hanging:
                    self._ask_for_stack(life, hung[life.slot], now_s, template.pid)

    def _look_at_template(self, template: TemplateProcess) -> None:
        """While it is stopped nobody hears of deaths, and nobody is started."""
        self._paused_looks = self._paused_looks + 1 if template.is_paused() else 0
        if self._paused_looks >= MOST_PAUSED_LOOKS:
            self._paused_looks = 0
            template.kill()

    def let_go(self, pid: int) -> None:
        """It has ended."""
        hanging = self._hanging.pop(pid, None)
        if hanging is not None:
            os.close(hanging.pidfd)

    def _ask_for_stack(self, life: Life, since_s: float, now_s: float, template_pid: int) -> None:
        doing = self._doing(life)
        pidfd = processes.open_child_of(life.pid, template_pid)
        if pidfd is None:
            return
        slots = self._page.slots
        what = "step" if self._watch.is_of_steps(slots) else "unroll"
        print(
            f"actor {life.actor} (process {life.pid}) is at one {what} for {since_s:.1f} s, "
            f"more than {self._watch.limit_s(slots):.1f} s; it is killed, its stack:",
            file=sys.stderr,
            flush=True,
        )
        send_signal(pidfd, signal.SIGUSR2)
        self._hanging[life.pid] = Hanging(life, pidfd, doing, since_s, now_s + DUMP_S)

    def _kill(self, hanging: Hanging) -> None:
        """Unless it has got further at the last moment."""
        life = hanging.life
        if self._doing(life) == hanging.doing:
            life.hung_s = hanging.hung_s + DUMP_S
            send_signal(hanging.pidfd, signal.SIGKILL)
        self.let_go(life.pid)

    def _doing(self, life: Life) -> tuple[int, int]:
        """When it began what it is at, and the step of it, where the limit is one of steps."""
        slots = self._page.slots
        step = int(slots["position"][life.slot]) if self._watch.is_of_steps(slots) else 0
        return int(slots["began_ns"][life.slot]) or life.paused_ns, step


def send_signal(pidfd: int, number: int) -> None:
    """Nothing happens if the process has ended."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, number)
