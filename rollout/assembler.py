"""Unrolls become batches here, without any socket: put one in, and take out what is full.

How many batches there must be: unroll u is acted with weights version u - policy_lag at the
earliest, which is published after batch u - policy_lag - 1 was trained on and recycled. So at most
policy_lag + 1 batches are open or in training at any time, and an accepted unroll always has room.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rollout.learners.unroll import Batch, Unroll
from rollout.wire import ActorTimes, Header

NO_TIME = ActorTimes(0, 0, 0)


@dataclass(frozen=True)
class FullBatch:
    """A sealed batch. times: the actors' summed time by activity, for this batch."""

    unroll_index: int
    batch: Batch
    times: ActorTimes


@dataclass
class _OpenBatch:
    batch: Batch
    times: ActorTimes


class BatchAssembler:
    """Owns the batches that are not in training."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self._free = list(batches)
        self._open: dict[int, _OpenBatch] = {}
        self._next_index = 0

    def __repr__(self) -> str:
        filling = {index: entry.batch for index, entry in self._open.items()}
        return f"BatchAssembler(next {self._next_index}, open {filling}, {len(self._free)} free)"

    def put(self, header: Header, unroll: Unroll) -> list[FullBatch]:
        """Copy an accepted unroll into its batch; returns the batches this makes due, in order."""
        assert header.unroll_index >= self._next_index, "an unroll of a batch that was full"
        if header.unroll_index not in self._open:
            assert self._free, "weights were published before their batch was recycled"
            self._open[header.unroll_index] = _OpenBatch(self._free.pop(), NO_TIME)
        target = self._open[header.unroll_index]
        target.batch.put(unroll, header.first_env, header.weights_version)
        target.times = target.times.plus(header.times)
        full = []
        while (due := self._open.get(self._next_index)) and due.batch.is_full:
            due.batch.seal()
            del self._open[self._next_index]
            full.append(FullBatch(self._next_index, due.batch, due.times))
            self._next_index += 1
        return full

    def recycle(self, batch: Batch) -> None:
        """Take a batch back that was trained on."""
        batch.clear()
        self._free.append(batch)
