"""Unrolls become batches here, without any socket: put one in, and learn what follows.

Both kinds say which unrolls may be acknowledged, which is when all of them is in a batch, and which
batches are full. An actor may have only so many unacknowledged unrolls, so this is what bounds
memory and policy lag; nothing is ever too old to be trained on.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from rollout.learners.unroll import Batch, Unroll
from rollout.ledger import Ledger, Part
from rollout.wire import ActorTimes, Header

NO_TIME = ActorTimes(0, 0, 0)


@dataclass
class Arrival:
    """An accepted unroll. env: int64 [N], whose columns it has. num_put: of them in batches."""

    sender: bytes
    header: Header
    unroll: Unroll
    env: np.ndarray
    num_put: int = 0

    @property
    def unroll_length(self) -> int:
        return len(self.unroll.reward)


@dataclass(frozen=True)
class Origin:
    """Where columns of a batch came from. env: their environments, int64 [n]. column: the first."""

    actor: int
    unroll_index: int
    weights_version: int
    env: np.ndarray
    column: int

    def __contains__(self, column: int) -> bool:
        return self.column <= column < self.column + len(self.env)

    def __str__(self) -> str:
        first, last = self.env[0], self.env[-1]
        some = f"environments {first} to {last}" if last > first else f"environment {first}"
        return (
            f"unroll {self.unroll_index} of {some} (actor {self.actor}, weights version "
            f"{self.weights_version})"
        )


@dataclass
class FullBatch:
    """A sealed batch. times: the actors' summed time by activity, for this batch.

    parts: what actors gave to it; origins: the same, for people. ledger: the account of the moment
    when it was handed out.
    """

    batch: Batch
    times: ActorTimes = NO_TIME
    parts: list[Part] = field(default_factory=list)
    origins: list["Origin"] = field(default_factory=list)
    ledger: Ledger | None = None

    def put(self, arrival: Arrival, column: int, count: int) -> None:
        """Copy the arrival's next `count` columns."""
        start, stop = arrival.num_put, arrival.num_put + count
        header = arrival.header
        version, env = header.weights_version, arrival.env[start:stop]
        self.batch.put(arrival.unroll, column, env, version, start)
        self.origins.append(Origin(header.actor, header.unroll_index, version, env, column))
        arrival.num_put = stop
        is_whole = stop == len(arrival.env)
        if is_whole:
            self.times = self.times.plus(arrival.header.times)
        self.parts.append(Part(arrival.header.actor, int(is_whole), arrival.unroll_length * count))


@dataclass(frozen=True)
class Placed:
    """What follows from a put: unrolls to acknowledge, batches to train on, both in order."""

    acknowledge: list[Arrival]
    full: list[FullBatch]


class _Assembler:
    """What both kinds have: the batches, free or with the learner."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self._free = list(batches)
        self._training: dict[int, FullBatch] = {}  # by id of the batch

    def _hand_out(self, full: FullBatch) -> FullBatch:
        full.batch.seal()
        self._training[id(full.batch)] = full
        return full

    def _take_back(self, batch: Batch) -> list[Part]:
        batch.clear()
        self._free.append(batch)
        return self._training.pop(id(batch)).parts

    @property
    def is_settled(self) -> bool:
        """Whether all that was put in is in a batch."""
        return True

    def is_settled_for(self, actor: int) -> bool:
        """Whether all that an actor has sent is in a batch."""
        return True


class LockstepAssembler(_Assembler):
    """Batch u is unroll u of every environment, and due when the batches before it were.

    How many batches there must be: unroll u is acted with weights version u - policy_lag at the
    earliest, which is published after batch u - policy_lag - 1 was trained on and recycled. So at
    most policy_lag + 1 batches are open or in training, and an unroll always has room at once.
    """

    def __init__(self, batches: Sequence[Batch], first_unroll: int = 0) -> None:
        super().__init__(batches)
        self._open: dict[int, FullBatch] = {}
        self._next_index = first_unroll

    def __repr__(self) -> str:
        filling = {index: entry.batch for index, entry in self._open.items()}
        return f"LockstepAssembler(next {self._next_index}, open {filling})"

    def put(self, arrival: Arrival) -> Placed:
        """Copy an accepted unroll into its batch."""
        index = arrival.header.unroll_index
        assert index >= self._next_index, "an unroll of a batch that was full"
        if index not in self._open:
            assert self._free, "weights were published before their batch was recycled"
            self._open[index] = FullBatch(self._free.pop())
        self._open[index].put(arrival, arrival.header.first_env, len(arrival.env))
        full = []
        while (due := self._open.get(self._next_index)) and due.batch.is_full:
            del self._open[self._next_index]
            full.append(self._hand_out(due))
            self._next_index += 1
        return Placed([arrival], full)

    def recycle(self, batch: Batch) -> tuple[list[Part], Placed]:
        """Take a batch back that was trained on; returns what it was made of."""
        return self._take_back(batch), Placed([], [])

    def held(self) -> Iterator[Part]:
        """All that was put in and has not been trained on."""
        for entry in (*self._open.values(), *self._training.values()):
            yield from entry.parts


class AsyncAssembler(_Assembler):
    """A batch is the next columns that arrive; when several actors wait, they take turns.

    An unroll may begin in one batch and end in the next: so a batch is always full to the column,
    however the environments are shared out.
    """

    def __init__(self, batches: Sequence[Batch]) -> None:
        super().__init__(batches)
        self._open: FullBatch | None = None
        self._waiting: dict[int, deque[Arrival]] = {}  # by actor; whose turn it is comes first

    def __repr__(self) -> str:
        waiting = sum(len(queue) for queue in self._waiting.values())
        return f"AsyncAssembler(open {self._open and self._open.batch}, {waiting} waiting)"

    @property
    def is_settled(self) -> bool:
        return not self._waiting

    def is_settled_for(self, actor: int) -> bool:
        return actor not in self._waiting

    def put(self, arrival: Arrival) -> Placed:
        """Copy an accepted unroll into the open batch, as soon as there is one, in its turn."""
        self._waiting.setdefault(arrival.header.actor, deque()).append(arrival)
        return self._place()

    def recycle(self, batch: Batch) -> tuple[list[Part], Placed]:
        """Take a batch back that was trained on; returns what it was made of."""
        return self._take_back(batch), self._place()

    def held(self) -> Iterator[Part]:
        """All that was put in and has not been trained on."""
        for entry in (*filter(None, [self._open]), *self._training.values()):
            yield from entry.parts
        for queue in self._waiting.values():
            for arrival in queue:
                left = len(arrival.env) - arrival.num_put
                yield Part(arrival.header.actor, 1, arrival.unroll_length * left)

    def _place(self) -> Placed:
        placed = Placed([], [])
        while self._waiting and (self._open or self._free):
            if self._open is None:
                self._open = FullBatch(self._free.pop())
            actor, queue = next(iter(self._waiting.items()))
            arrival, batch = queue[0], self._open.batch
            room = batch.num_envs - batch.num_columns_put
            count = min(room, len(arrival.env) - arrival.num_put)
            self._open.put(arrival, batch.num_columns_put, count)
            if arrival.num_put == len(arrival.env):
                placed.acknowledge.append(queue.popleft())
                del self._waiting[actor]
                if queue:  # to the end of the line
                    self._waiting[actor] = queue
            if batch.is_full:
                placed.full.append(self._hand_out(self._open))
                self._open = None
        return placed


Assembler = LockstepAssembler | AsyncAssembler
