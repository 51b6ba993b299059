"""When an actor's memory has grown so far that it had better begin anew.

What grows is counted from its fork on: the pages that it shares with the template are not its own,
and telling which of them it has copied since would cost more than an unroll. Neither do the
processes count that an environment starts.
"""

import os
import re

from rollout import control

MOST_WAITING = 1.5  # times the limit: so long an actor waits for its episodes to end


class MemoryWatch:
    """Of the actor in which it is made, as soon as it is forked. Costs 10 µs an unroll.

    limit_bytes: None for no limit.
    """

    def __init__(self, limit_bytes: int | None) -> None:
        self._limit = limit_bytes
        self._status = os.open("/proc/self/status", os.O_RDONLY | os.O_CLOEXEC)
        self._at_fork = self._anonymous_bytes()
        self._num_unrolls = 0
        self._is_at_once = False

    def __repr__(self) -> str:
        return f"MemoryWatch({self.grown_bytes():,} of {self._limit} bytes)"

    def grown_bytes(self) -> int:
        """What the process has taken since it was forked."""
        return self._anonymous_bytes() - self._at_fork

    def after_unroll(self, may_wait: bool) -> control.ActorOutgrew | None:
        """What the actor has to say if it is to end now, after an unroll.

        may_wait: whether something would be lost that might not be after a later one.
        """
        self._num_unrolls += 1
        if self._limit is None:
            return None
        grown = self.grown_bytes()
        if grown <= self._limit:
            return None
        self._is_at_once |= self._num_unrolls == 1
        if may_wait and grown <= MOST_WAITING * self._limit:
            return None
        return control.ActorOutgrew(os.getpid(), grown, self._is_at_once)

    def _anonymous_bytes(self) -> int:
        status = os.pread(self._status, 8192, 0)
        return 1024 * sum(map(int, _ANONYMOUS.findall(status)))


_ANONYMOUS = re.compile(rb"^(?:RssAnon|VmSwap):\s*(\d+) kB$", re.MULTILINE)
