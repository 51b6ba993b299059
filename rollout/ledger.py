"""The account of all unrolls: produced = trained + in flight + dropped, per actor and in sum.

Each number is counted where it happens. *Produced*: by the actor, on its host's page, which
outlives it. *Accepted* and *trained*: by the learner. *Dropped*: by the learner, when it knows that
an unroll will never come, or never be trained on. Between an actor and the learner there are at
most as many unrolls as the actor's window allows; what is missing beyond that, or there without
having been produced, shows in the balance.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

ACTOR_DIED = "actor_died"  # sealed by an actor that died, and never arrived
RUN_ENDED = "run_ended"  # the run ended before it was trained on
LEARNER_DIED = "learner_died"  # not trained on at the checkpoint from which a run was resumed
REASONS = (ACTOR_DIED, RUN_ENDED, LEARNER_DIED)

UNROLLS, STEPS = 0, 1  # rows of every array below


@dataclass(frozen=True)
class Totals:
    """An account in unrolls or in steps.

    produced: sealed by actors. trained: in a batch that was trained on. in_flight: neither, when
    the account was made. dropped: by reason, what no batch will hold.
    """

    produced: int
    trained: int
    in_flight: int
    dropped: Mapping[str, int] = field(default_factory=dict)

    @property
    def balance(self) -> int:
        """What nobody can account for: 0, or something is wrong."""
        return self.produced - self.trained - self.in_flight - sum(self.dropped.values())

    def as_dict(self) -> dict[str, Any]:
        return {
            "produced": self.produced,
            "trained": self.trained,
            "in_flight": self.in_flight,
            "dropped": dict(self.dropped),
            "balance": self.balance,
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Totals":
        return cls(*(content[name] for name in ("produced", "trained", "in_flight", "dropped")))


@dataclass(frozen=True)
class Ledger:
    """The account of a run. actors: of each, by number, in unrolls."""

    unrolls: Totals
    steps: Totals
    actors: Sequence[Totals] = ()

    @property
    def balance(self) -> int:
        return self.unrolls.balance

    @property
    def is_balanced(self) -> bool:
        """Whether every actor's account balances, and both sums."""
        accounts = (self.unrolls, self.steps, *self.actors)
        return all(account.balance == 0 for account in accounts)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Ledger":
        """What `as_dict` returned. Raises KeyError or TypeError for anything else."""
        actors = [Totals.from_dict(actor) for actor in content["actors"]]
        return cls(Totals.from_dict(content), Totals.from_dict(content["steps"]), actors)

    def as_dict(self) -> dict[str, Any]:
        """The sums in unrolls; `steps`: the same in steps; `actors`: the same of each actor."""
        return {
            **self.unrolls.as_dict(),
            "steps": self.steps.as_dict(),
            "actors": [actor.as_dict() for actor in self.actors],
        }


@dataclass(frozen=True)
class Part:
    """What one actor's unroll gave to a batch. unrolls: 1 if nothing of it is left for the next."""

    actor: int
    unrolls: int
    steps: int


class Account:
    """The ledger of a run that goes on; all arrays are int64 [2, actors], in unrolls and steps."""

    def __init__(self, window: int) -> None:
        """window: unrolls that may be on the way from an actor."""
        self.window = window
        self._before = _zeros()  # produced under host agents, or learners, that are dead
        self._now = _zeros()  # produced under those that live, as far as is known
        self._accepted = _zeros()
        self._trained = _zeros()
        self._held = _zeros()  # accepted, and neither trained on nor dropped yet
        self._dropped = {reason: _zeros() for reason in REASONS}
        self._unexplained = _zeros()  # missing, or too much, when the window had been allowed for
        self._unroll_steps = np.zeros(0, np.int64)  # of each actor's present share

    def __repr__(self) -> str:
        return f"Account({self._accepted.shape[1]} actors, {self.ledger().unrolls})"

    def add_actors(self, count: int) -> None:
        """Actors with the next `count` numbers may appear."""
        missing = count - self._accepted.shape[1]
        if missing > 0:
            for name in ("_before", "_now", "_accepted", "_trained", "_held", "_unexplained"):
                setattr(self, name, _wider(getattr(self, name), missing))
            self._dropped = {r: _wider(array, missing) for r, array in self._dropped.items()}
            self._unroll_steps = np.concatenate([self._unroll_steps, np.zeros(missing, np.int64)])

    def is_possible(self, actor: int, produced: int, produced_steps: int) -> bool:
        """Whether an actor can have produced that much, going by what has arrived."""
        missing = self._missing(np.array([[produced], [produced_steps]]), slice(actor, actor + 1))
        unrolls, steps = missing[:, 0]
        most = self.window if self._unroll_steps[actor] else 0  # who has no share makes nothing
        return bool(0 <= unrolls <= most and steps == unrolls * self._unroll_steps[actor])

    def grant(self, actor: int, unroll_steps: int) -> None:
        """The actor's unrolls have so many steps from now on."""
        self._unroll_steps[actor] = unroll_steps

    def accept(self, actor: int, steps: int) -> None:
        """An unroll has arrived."""
        for row, count in ((UNROLLS, 1), (STEPS, steps)):
            self._accepted[row, actor] += count
            self._held[row, actor] += count

    def train(self, parts: Iterable[Part]) -> None:
        """A batch has been trained on."""
        for part in parts:
            for row, count in ((UNROLLS, part.unrolls), (STEPS, part.steps)):
                self._trained[row, part.actor] += count
                self._held[row, part.actor] -= count

    def observe(self, first_actor: int, produced: np.ndarray, produced_steps: np.ndarray) -> None:
        """What the page of a living host says."""
        place = slice(first_actor, first_actor + len(produced))
        self._now[UNROLLS, place] = produced
        self._now[STEPS, place] = produced_steps

    def settle(self, actor: int, produced: int, produced_steps: int) -> int:
        """All former lives of an actor are over, and nothing of theirs can arrive any more.

        produced, produced_steps: by its host's page. Returns how many unrolls were lost with them.
        """
        return int(self._settle(slice(actor, actor + 1), [[produced], [produced_steps]])[0])

    def settle_host(
        self, first_actor: int, produced: np.ndarray, produced_steps: np.ndarray
    ) -> None:
        """A host's actors are dead, and its page with these last numbers will be forgotten."""
        place = slice(first_actor, first_actor + len(produced))
        self._settle(place, [produced, produced_steps])
        self._before[:, place] += self._now[:, place]
        self._now[:, place] = 0

    def drop_held(self, parts: Iterable[Part]) -> None:
        """The run is over; these are what has arrived and will not be trained on."""
        for part in parts:
            for row, count in ((UNROLLS, part.unrolls), (STEPS, part.steps)):
                self._dropped[RUN_ENDED][row, part.actor] += count
                self._held[row, part.actor] -= count

    def drop_missing(self) -> None:
        """The run is over, and nothing more can arrive: what was on its way never will."""
        everyone = slice(0, self._now.shape[1])
        missing = np.clip(self._missing(self._now, everyone), 0, self._limit(everyone))
        self._dropped[RUN_ENDED] += missing
        self._accepted += missing

    def ledger(self, with_actors: bool = False) -> Ledger:
        """The account as it stands."""
        produced = self._before + self._now
        everyone = slice(0, produced.shape[1])
        on_the_way = np.clip(self._missing(self._now, everyone), 0, self._limit(everyone))
        in_flight = on_the_way + np.maximum(self._held, 0)
        actors = range(produced.shape[1]) if with_actors else ()
        return Ledger(
            self._totals(UNROLLS, everyone, produced, in_flight),
            self._totals(STEPS, everyone, produced, in_flight),
            [self._totals(UNROLLS, slice(a, a + 1), produced, in_flight) for a in actors],
        )

    def state(self, reason: str = LEARNER_DIED) -> dict[str, Any]:
        """What a checkpoint keeps of it: whoever goes on from there has nothing in flight.

        reason: why what is in flight now will not be trained on then.
        """
        produced, trained = self._before + self._now, self._trained
        dropped = {reason: array.copy() for reason, array in self._dropped.items()}
        lost = produced - trained - sum(dropped.values()) - self._unexplained
        dropped[reason] += lost
        arrays = {"produced": produced, "trained": trained, "unexplained": self._unexplained}
        return {
            **{name: array.tolist() for name, array in arrays.items()},
            "dropped": {reason: array.tolist() for reason, array in dropped.items()},
        }

    def put_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        read = {n: np.array(state[n], np.int64) for n in ("produced", "trained", "unexplained")}
        self.add_actors(read["produced"].shape[1])
        self._before, self._trained = read["produced"], read["trained"]
        self._unexplained = read["unexplained"]
        for reason, rows in state["dropped"].items():
            self._dropped[reason] = np.array(rows, np.int64)
        self._accepted = self._before - self._dropped[ACTOR_DIED] - self._unexplained

    def _missing(self, now: np.ndarray, actors: slice) -> np.ndarray:
        """Produced, but neither arrived nor known to be lost."""
        explained = self._accepted + self._dropped[ACTOR_DIED] + self._unexplained
        return self._before[:, actors] + now - explained[:, actors]

    def _limit(self, actors: slice) -> np.ndarray:
        """The most that can be on the way."""
        steps = self._unroll_steps[actors]
        return self.window * np.stack([np.ones_like(steps), steps])

    def _settle(self, actors: slice, produced: Any) -> np.ndarray:
        self._now[:, actors] = produced
        missing = self._missing(self._now[:, actors], actors)
        lost = np.clip(missing, 0, self._limit(actors))
        self._dropped[ACTOR_DIED][:, actors] += lost
        self._unexplained[:, actors] += missing - lost
        return lost[UNROLLS]

    def _totals(
        self, row: int, actors: slice, produced: np.ndarray, in_flight: np.ndarray
    ) -> Totals:
        dropped = {r: int(array[row, actors].sum()) for r, array in self._dropped.items()}
        return Totals(
            produced=int(produced[row, actors].sum()),
            trained=int(self._trained[row, actors].sum()),
            in_flight=int(in_flight[row, actors].sum()),
            dropped={reason: count for reason, count in dropped.items() if count},
        )


def _zeros() -> np.ndarray:
    return np.zeros((2, 0), np.int64)


def _wider(array: np.ndarray, count: int) -> np.ndarray:
    return np.concatenate([array, np.zeros((2, count), np.int64)], axis=1)
