"""What a host agent decides about its actors' lives: when the next one begins, and who hangs.

Only decisions: no process, no clock. Whoever asks says what time it is.
"""

import random
import signal
from collections.abc import Iterable, Mapping

import numpy as np

from rollout.control import ActorEnded
from rollout.sizes import show_size
from rollout.wire import REFUSED

MOST_FAILURES = 6  # in a row, without an unroll in between; then it is given up
FIRST_DELAY_S, LONGEST_DELAY_S = 0.1, 10.0
JITTER = 0.5  # a delay is longer or shorter by up to this part of it, so that not all come at once
LEAST_LIMIT_S = 10.0
LONGEST_FACTOR = 20  # an unroll that takes so many times the longest one so far hangs
UNMEASURED_LIMIT_S = 60.0  # of one step, before there was an unroll: it may have to load anything
LOOK_S = 0.5  # between two looks for actors that hang
MOST_PER_LOOK_NS = 1_000_000_000  # what counts of the time between two looks, see HangWatch

OUT_OF_BOUNDS = "an environment probably wrote outside an array"
HINTS = {int(number): OUT_OF_BOUNDS for number in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS)}


def how_ended(ended: ActorEnded) -> str:
    """What became of an actor, as the end of a sentence about it."""
    if ended.outgrown_bytes:
        return f"ended itself: its memory had grown by {show_size(ended.outgrown_bytes)}"
    if ended.hung_s > 0:
        return f"hung for {ended.hung_s:.1f} s and was killed; run.log has its stack"
    if ended.status < 0:
        hint = ended.error or HINTS.get(-ended.status, "")
        return f"was killed by {signal_name(-ended.status)}" + (f": {hint}" if hint else "")
    place = f" ({ended.raised_at})" if ended.raised_at else ""
    return f"ended with status {ended.status}" + (f": {ended.error}{place}" if ended.error else "")


def signal_name(number: int) -> str:
    """SIGKILL for 9; real-time signals have no names."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class Lives:
    """The lives of one process, as far as they decide when the next one begins.

    The first failure since an unroll is forgiven at once; those that follow cost ever longer
    delays, and MOST_FAILURES of them end it.
    """

    def __init__(self, jitter: random.Random) -> None:
        self._jitter = jitter
        self._produced = 0
        self._failures = 0  # since the last unroll
        self.first_error = ""  # of those

    def __repr__(self) -> str:
        return f"Lives({self._failures} failures in a row: {self.first_error!r})"

    @property
    def is_over(self) -> bool:
        """Whether there will be no other."""
        return self._failures >= MOST_FAILURES

    def end(self, produced: int, error: str) -> float | None:
        """A life has ended; returns seconds until the next one, None if there is to be none.

        produced: unrolls of all lives so far. One that the learner refused is none.
        """
        if self.is_over:
            return None
        is_better = produced > self._produced and REFUSED not in error
        if is_better or self._failures == 0:
            self._failures = 0
            self.first_error = error
        self._produced = produced
        self._failures += 1
        if self.is_over:
            return None
        if self._failures == 1:
            return 0.0
        delay = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2 ** (self._failures - 2))
        return delay * self._jitter.uniform(1 - JITTER, 1 + JITTER)


class Supervisor:
    """When the actors of a host begin their next lives. Slots are those of its page."""

    def __init__(self, num_slots: int, jitter: random.Random) -> None:
        self._lives = [Lives(jitter) for _ in range(num_slots)]
        self._due_s: dict[int, float] = {}

    def __repr__(self) -> str:
        over = sum(lives.is_over for lives in self._lives)
        return f"Supervisor({len(self._lives)} slots, {len(self._due_s)} to start, {over} over)"

    def begin(self, slots: Iterable[int], now_s: float) -> None:
        """These are to be started now, through no fault of theirs; not those that are over."""
        for slot in slots:
            if not self._lives[slot].is_over:
                self._due_s[slot] = now_s

    def end(self, slot: int, produced: int, error: str, now_s: float) -> str | None:
        """An actor's life has ended; returns the first error of its row if there is no other.

        produced: unrolls of all its lives so far.
        """
        lives = self._lives[slot]
        delay_s = lives.end(produced, error)
        if delay_s is None:
            self._due_s.pop(slot, None)
            return lives.first_error
        self._due_s[slot] = now_s + delay_s
        return None

    def take_due(self, now_s: float, most: int) -> list[int]:
        """Slots to be started now, at most so many, the longest due first; no longer due then."""
        due = sorted((at_s, slot) for slot, at_s in self._due_s.items() if at_s <= now_s)
        slots = [slot for _, slot in due[:most]]
        for slot in slots:
            del self._due_s[slot]
        return slots

    def next_due_s(self) -> float | None:
        """When the next one is to be started; None: nobody is."""
        return min(self._due_s.values(), default=None)


class HangWatch:
    """Finds actors that are at one unroll for too long.

    Before the host's first unroll is done nobody knows how long one takes, so that then an actor
    may be at one *step* for so long: a slow simulator gets on, and an endless loop does not.

    An actor's time counts only as far as whoever watches was there to see it, up to
    MOST_PER_LOOK_NS from one look to the next: a machine that was suspended, or a whole run that
    was stopped, must not be taken for a fleet that hangs.

    limit_s: seconds; None: derived from the unrolls measured so far.
    """

    def __init__(self, num_slots: int, limit_s: float | None) -> None:
        self._chosen_s = limit_s
        self._began_ns = np.zeros(num_slots, np.int64)  # when what is under way was begun
        self._positions = np.zeros(num_slots, np.int64)  # the steps under way, see host_memory.Slot
        self._seen_ns = np.zeros(num_slots, np.int64)  # how much of its time counts
        self._looked_ns = 0

    def __repr__(self) -> str:
        return f"HangWatch(limit {self._chosen_s or 'derived'}, {len(self._began_ns)} slots)"

    def limit_s(self, slots: np.ndarray) -> float:
        """How long an unroll may take, or its one step. slots: of the page (host_memory.SLOT)."""
        if self._chosen_s is not None:
            return self._chosen_s
        longest_s = int(slots["longest_ns"].max(initial=0)) / 1e9
        return max(LEAST_LIMIT_S, LONGEST_FACTOR * longest_s) if longest_s else UNMEASURED_LIMIT_S

    def is_of_steps(self, slots: np.ndarray) -> bool:
        """Whether the limit is for one step, as no unroll was measured yet."""
        return self._chosen_s is None and not slots["longest_ns"].any()

    def look(
        self, now_ns: int, slots: np.ndarray, paused_ns: Mapping[int, int] | None = None
    ) -> dict[int, float]:
        """Slots whose unroll, or step, takes longer than it may, and for how many seconds it does.

        paused_ns: since when slots are stopped. One that is stopped between two unrolls would never
        begin another, so it is as if it had begun it.
        """
        began_ns = slots["began_ns"].copy()  # once: actors write it meanwhile
        for slot, since_ns in (paused_ns or {}).items():
            began_ns[slot] = began_ns[slot] or since_ns
        positions = slots["position"].copy()
        is_same = began_ns == self._began_ns
        if self.is_of_steps(slots):
            is_same &= positions == self._positions
        passed_ns = min(max(0, now_ns - self._looked_ns), MOST_PER_LOOK_NS)
        seen_ns = np.where(is_same, self._seen_ns + passed_ns, passed_ns)
        self._seen_ns = np.minimum(seen_ns, now_ns - began_ns)
        self._began_ns, self._positions = began_ns, positions
        self._looked_ns = now_ns
        is_hung = (began_ns != 0) & (self._seen_ns > self.limit_s(slots) * 1e9)
        took_ns = self._seen_ns if self.is_of_steps(slots) else now_ns - began_ns
        return {int(slot): int(took_ns[slot]) / 1e9 for slot in np.flatnonzero(is_hung)}
