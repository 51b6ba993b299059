"""Who acts which environments: all of them are cut into contiguous shares, one for each actor.

When actors come or go the environments are cut anew. In lockstep that happens between two unrolls:
a cut names the unroll from which its shares count, one that nobody can have begun; the old shares
are acted up to there, those of actors that are gone by whoever is free, and only then are the new
ones given out. In async there is no such unroll, and every actor lets go after the one it is at.

An actor that dies keeps its share for its next life. No sockets here: the receiver tells what
happened, and sends the grants.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass
class Share:
    """first_env, num_envs: places in `Shares.order`. next_unroll: what is not accepted yet."""

    cut: int
    first_env: int
    num_envs: int
    next_unroll: int


@dataclass(frozen=True)
class Cut:
    """A cut that actors must be told of. first_unroll: with which its shares begin."""

    number: int
    first_unroll: int


def share_of(position: int, num_actors: int, num_envs: int) -> tuple[int, int]:
    """(first environment, number of environments) of the actor at this position.

    Contiguous shares; the first `num_envs % num_actors` actors have one environment more.
    """
    size, more = divmod(num_envs, num_actors)
    return position * size + min(position, more), size + (position < more)


class Shares:
    """The shares of a run.

    order: int64 [≤ num_envs], the environments that are in play, in the order that shares cut.
    group: so many, side by side, go to the same actor.
    """

    def __init__(
        self,
        num_envs: int,
        first_unroll: int,
        is_lockstep: bool,
        set_aside: Sequence[int] = (),
        group: int = 1,
    ) -> None:
        self.order = np.setdiff1d(np.arange(num_envs), set_aside)
        self._next_order = self.order
        self._is_lockstep = is_lockstep
        self.group = group
        self._members: set[int] = set()
        self._open: dict[int, Share] = {}  # by actor
        self._orphans: list[Share] = []  # of actors that are gone; lockstep only
        self._reserved: dict[int, Share] = {}  # of the newest cut, not asked for yet
        self._asking: list[int] = []
        self._cut = Cut(0, first_unroll)
        self._is_cutting = self._is_stale = False

    def __repr__(self) -> str:
        return (
            f"Shares(cut {self._cut.number} from unroll {self._cut.first_unroll}, "
            f"{len(self._members)} members, {len(self._open)} at work, "
            f"{len(self._asking)} asking, {len(self._orphans)} orphans)"
        )

    @property
    def cut(self) -> Cut:
        """The newest one."""
        return self._cut

    @property
    def num_envs(self) -> int:
        """Environments that are in play, or will be after the next cut."""
        return len(self._next_order)

    @property
    def is_unsettled(self) -> bool:
        """Whether a new cut waits for old shares to be over, or is yet to be told of."""
        return self._is_cutting or self._is_stale

    @property
    def num_members(self) -> int:
        return len(self._members)

    def of(self, actor: int) -> Share | None:
        """What the actor, in its present life or the one before, is at."""
        return self._open.get(actor)

    # What happens

    def join(self, actors: range) -> None:
        """Actors that will ask for shares."""
        if not self._members.issuperset(actors):
            self._members.update(actors)
            self._is_stale = True

    def leave(self, actors: range) -> None:
        """Actors that are to have no share any more. Those that are dead must be `end`ed, too."""
        if not self._members.isdisjoint(actors):
            self._members.difference_update(actors)
            self._is_stale = True

    def end(self, actors: range) -> None:
        """Actors that will do nothing any more."""
        for actor in actors:
            share = self._open.pop(actor, None)
            if share is not None and self._is_lockstep:
                self._orphans.append(share)
            if actor in self._asking:
                self._asking.remove(actor)

    def set_aside(self, env: int) -> list[int]:
        """Act an environment, and those of its group, no more (async only); returns them."""
        assert not self._is_lockstep
        is_of_group = self._next_order // self.group == env // self.group
        group = self._next_order[is_of_group].tolist()
        if group:
            self._next_order = self._next_order[~is_of_group]
            self._is_stale = True
        return group

    def ask(self, actor: int) -> None:
        """An actor wants to be told what to do.

        If it has a share (its former life had), it is to go on with that; but when the environments
        are being cut anew, and it has done what it had to, it lets go.
        """
        if actor not in self._asking:
            self._asking.append(actor)

    def allows(self, share: Share, unroll_index: int) -> bool:
        """Whether an unroll may still be of this share: a newer cut may have given it to others."""
        if not self._is_lockstep or share.cut == self._cut.number:
            return True
        return unroll_index < self._cut.first_unroll

    def accepted(self, actor: int) -> None:
        """One more unroll of the actor's share has arrived."""
        self._open[actor].next_unroll += 1

    # What follows from it

    def cut_anew(self, next_possible_unroll: int) -> Cut | None:
        """The cut to tell the actors of, if there must be one now.

        next_possible_unroll: lockstep: the first that no actor can have begun, nor will before it
        has heard of the cut.
        """
        if not self._is_stale or self._is_cutting or not self._members:
            return None
        self._is_stale = False
        self._is_cutting = True
        first = 0
        if self._is_lockstep:
            is_first = not (self._open or self._reserved or self._orphans)
            first = max(self._cut.first_unroll, 0 if is_first else next_possible_unroll)
        self._orphans += self._reserved.values() if self._is_lockstep else ()
        self._reserved = {}
        self._cut = Cut(self._cut.number + 1, first)
        return self._cut

    def grants(
        self, is_settled: bool = True, may_begin: Callable[[int], bool] = lambda actor: True
    ) -> list[tuple[int, Share]]:
        """Shares for actors that ask, as far as there are any; they are theirs from now on.

        is_settled: whether all that was accepted is in a batch. Until then no environment goes to
        another actor, whose next unroll of it could overtake the last. may_begin: whether an actor
        is to get one at all yet.
        """
        for actor in self._asking if self._is_cutting else ():
            share = self._open.get(actor)
            if share is not None and self._is_done(share):
                del self._open[actor]
        if self._is_cutting and is_settled and self._is_over():
            self._is_cutting = False
            self._orphans.clear()
            self.order = self._next_order
            self._reserve()
        granted = []
        waiting = []
        for actor in self._asking:
            if not may_begin(actor):
                waiting.append(actor)
                continue
            share = self._open.get(actor) or self._reserved.pop(actor, None)
            if share is None and self._orphans and self._is_cutting:
                share = self._next_orphan()
            if share is None:
                waiting.append(actor)
            else:
                self._open[actor] = share
                granted.append((actor, share))
        self._asking = waiting
        return granted

    def _is_done(self, share: Share) -> bool:
        """Whether nothing of an old share is left to act before the new cut."""
        return not self._is_lockstep or share.next_unroll >= self._cut.first_unroll

    def _is_over(self) -> bool:
        """Whether all old shares are acted up to the new cut."""
        if not self._is_lockstep:
            return not self._open
        return all(self._is_done(share) for share in (*self._open.values(), *self._orphans))

    def _next_orphan(self) -> Share | None:
        while self._orphans:
            share = self._orphans.pop()
            if not self._is_done(share):
                return share
        return None

    def _reserve(self) -> None:
        self._open.clear()
        num_groups = len(self.order) // self.group
        members = sorted(self._members)[:num_groups]
        for position, actor in enumerate(members):
            first, count = (
                self.group * groups for groups in share_of(position, len(members), num_groups)
            )
            self._reserved[actor] = Share(self._cut.number, first, count, self._cut.first_unroll)
