"""Kills and stops the processes of a run while it trains."""

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Iterator, Sequence

from tests.rollout.conftest import Acting, Places

ACTOR, TEMPLATE, AGENT = "rollout-actor", "rollout-templ", "rollout-host"
MOST_DELAY_S = 0.02  # some updates: so a deed may come at any moment of one
PAUSE_S = 0.2

Deed = tuple[str, str]  # what is done, and to whom


def kills(*victims: str) -> list[Deed]:
    return [("kill", victim) for victim in victims]


def pauses(*victims: str) -> list[Deed]:
    """SIGSTOP, and a little later SIGCONT."""
    return [("pause", victim) for victim in victims]


class Saboteur:
    """Does one deed after the other, from a thread: the next one `every` updates after the last.

    The learner waits at update `until` for those that are not done yet, so all of them are done
    before the run ends. kills: how many processes of each name were killed.
    """

    def __init__(
        self, view: Acting, places: Places, deeds: Sequence[Deed], every: int, seed: int
    ) -> None:
        self.killed = {ACTOR: 0, TEMPLATE: 0, AGENT: 0}
        self._view = view
        self._places = places
        self._deeds = list(deeds)
        self._every = every
        self._random = random.Random(seed)
        self._is_over = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="saboteur")
        view.at(self.until, self._thread.join)

    @property
    def until(self) -> int:
        return self._every * (len(self._deeds) + 1)

    @contextlib.contextmanager
    def at_work(self) -> Iterator["Saboteur"]:
        self._thread.start()
        try:
            yield self
        finally:
            self._is_over.set()
            self._thread.join()
        if self._error is not None:
            raise self._error
        assert not self._deeds, f"the run ended before {self._deeds}"

    def _run(self) -> None:
        try:
            update = 0
            while self._deeds and not self._is_over.is_set():
                update += self._every
                while self._view.update < update:
                    if self._is_over.wait(0.002):
                        return
                self._is_over.wait(self._random.uniform(0, MOST_DELAY_S))
                self._do(*self._deeds[0])
                del self._deeds[0]
        except BaseException as error:
            self._error = error

    def _do(self, deed: str, victim: str) -> None:
        while True:
            pid = self._random.choice(self._places.wait_pids(victim))
            with contextlib.suppress(ProcessLookupError):  # it died by itself: another, then
                if deed == "kill":
                    os.kill(pid, signal.SIGKILL)
                    self.killed[victim] += 1
                else:
                    self._pause(pid)
                return

    def _pause(self, pid: int) -> None:
        os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(PAUSE_S)  # what is tested is that nothing happens for a while
        finally:
            os.kill(pid, signal.SIGCONT)


def shuffled(deeds: Sequence[Deed], seed: int) -> list[Deed]:
    return random.Random(seed).sample(deeds, len(deeds))
