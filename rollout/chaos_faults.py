"""What is done to a run, and when: a plan of faults that depends on nothing but its seed."""

import random
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """The first four: SIGKILL of such a process. stop: SIGSTOP. slow: many short ones."""

    actor = "actor"
    template = "template"
    host = "host"
    learner = "learner"
    stop = "stop"
    slow = "slow"


WEIGHTS = {  # how many of a hundred faults; the costlier for the run, the fewer
    Kind.actor: 60,
    Kind.stop: 13,
    Kind.slow: 13,
    Kind.template: 5,
    Kind.host: 5,
    Kind.learner: 4,
}
STOPPED = {Kind.actor: 7, Kind.template: 1, Kind.host: 1, Kind.learner: 1}  # who is, by weight
STOP_S = (0.05, 2.0)
PULSE_S = 0.01  # a slow process is stopped for this long, then runs for as long
NUM_PULSES = 30
AT_ONCE = 0.25  # part of the faults that do not wait until the one before is recovered from
LONGEST_DELAY_S = 0.02  # so that faults do not all come right after an update
FIRST, LAST = 0.05, 0.9  # of the run's updates, so that there is time to recover


@dataclass(frozen=True)
class Fault:
    """One thing to do. update: not before there have been so many; then delay_s later.

    role: whose process is meant. pick: which of them, 0 to 1. stops: seconds, for each time it is
    stopped; empty for a kill. at_once: also while the run recovers from the one before.
    """

    kind: Kind
    update: int
    delay_s: float
    role: Kind
    pick: float
    stops: tuple[float, ...]
    at_once: bool


def plan_faults(kinds: Iterable[Kind], count: int, seed: int, num_updates: int) -> list[Fault]:
    """So many faults, spread over so many updates; each kind at least once, if `count` allows."""
    rng = random.Random(seed)
    wanted = sorted(set(kinds))
    weights = [WEIGHTS[kind] for kind in wanted]
    chosen = wanted if len(wanted) <= count else rng.sample(wanted, count)
    chosen = chosen + rng.choices(wanted, weights, k=count - len(chosen))
    rng.shuffle(chosen)
    first, last = FIRST * num_updates, LAST * num_updates
    return [
        _plan_one(kind, int(first + (last - first) * (i + rng.random()) / count), rng)
        for i, kind in enumerate(chosen)
    ]


def _plan_one(kind: Kind, update: int, rng: random.Random) -> Fault:
    role, stops = kind, ()
    if kind in (Kind.stop, Kind.slow):
        role = rng.choices(list(STOPPED), list(STOPPED.values()))[0]
        stops = (rng.uniform(*STOP_S),) if kind == Kind.stop else (PULSE_S,) * NUM_PULSES
    return Fault(
        kind=kind,
        update=update,
        delay_s=rng.uniform(0.0, LONGEST_DELAY_S),
        role=role,
        pick=rng.random(),
        stops=stops,
        at_once=rng.random() < AT_ONCE,
    )
