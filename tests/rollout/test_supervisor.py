"""When actors begin their next lives, and which of them hang: decisions, without a process."""

import random
import signal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.control import ActorEnded
from rollout.host_memory import SLOT
from rollout.supervisor import (
    FIRST_DELAY_S,
    JITTER,
    LONGEST_DELAY_S,
    MOST_FAILURES,
    HangWatch,
    Lives,
    Supervisor,
    how_ended,
)
from rollout.wire import REFUSED

SECOND = 1_000_000_000
START_NS = 5_000 * SECOND  # the clock counts from the boot


def make_lives(seed: int = 0) -> Lives:
    return Lives(random.Random(seed))


def fail(lives: Lives, times: int, produced: int = 0) -> list[float | None]:
    return [lives.end(produced, f"error {i}") for i in range(times)]


def test_first_failure_is_forgiven_at_once():
    assert make_lives().end(0, "x") == 0.0


def test_unrolls_that_the_learner_refuses_are_no_progress():
    lives, error = make_lives(), f"Refused: {REFUSED}: malformed"
    delays = [lives.end(produced, error) for produced in range(1, MOST_FAILURES + 1)]
    assert delays[0] == 0.0
    assert delays[-1] is None, "given up"
    others = make_lives()
    assert [others.end(produced, "x") for produced in range(1, 20)] == [0.0] * 19


def test_failures_in_a_row_wait_twice_as_long_each_time_more_or_less():
    delays = fail(make_lives(), MOST_FAILURES - 1)
    assert delays[0] == 0.0
    for i, delay in enumerate(delays[1:]):
        wanted = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2**i)
        assert delay is not None
        assert wanted * (1 - JITTER) <= delay <= wanted * (1 + JITTER)


def test_delays_of_two_actors_differ():
    jitter = random.Random(0)
    assert fail(Lives(jitter), 4)[1:] != fail(Lives(jitter), 4)[1:]


def test_row_of_failures_ends_it_with_the_first_error():
    lives = make_lives()
    assert fail(lives, MOST_FAILURES)[-1] is None
    assert lives.is_over and lives.first_error == "error 0"
    assert lives.end(100, "later") is None, "it stays over"
    assert lives.first_error == "error 0"


def test_unroll_in_between_begins_a_new_row():
    lives = make_lives()
    fail(lives, MOST_FAILURES - 1, produced=7)
    assert lives.end(8, "after an unroll") == 0.0
    assert lives.first_error == "after an unroll"
    assert fail(lives, MOST_FAILURES - 2, produced=8)[-1] is not None
    assert lives.end(8, "too many") is None
    assert lives.first_error == "after an unroll"


@given(st.lists(st.booleans(), max_size=60), st.integers(0, 99))
def test_only_failures_without_an_unroll_in_between_count(has_produced, seed):
    """Against the obvious way: keep the whole history, and look back to the last unroll."""
    lives = make_lives(seed)
    produced = 0
    row: list[int] = []
    for i, more in enumerate(has_produced):
        produced += more
        row = [i] if more else [*row, i]
        delay = lives.end(produced, f"error {i}")
        assert lives.first_error == f"error {row[0]}"
        assert (delay is None) == (len(row) >= MOST_FAILURES)
        assert (delay == 0.0) == (len(row) == 1)
        if delay is None:
            return


class Schedule:
    """A supervisor with the history of what it was told, to be compared with what it does."""

    def __init__(self, num_slots: int, seed: int) -> None:
        self.supervisor = Supervisor(num_slots, random.Random(seed))
        self.now_s = 1000.0
        self.alive: set[int] = set()
        self.over: set[int] = set()
        self.produced = [0] * num_slots
        self.row = [0] * num_slots
        self.ended_s = [0.0] * num_slots

    def least_wait_s(self, slot: int) -> float:
        failures = self.row[slot]
        if failures <= 1:
            return 0.0
        return (1 - JITTER) * min(LONGEST_DELAY_S, FIRST_DELAY_S * 2 ** (failures - 2))

    def start_due(self) -> None:
        for slot in self.supervisor.take_due(self.now_s, most=2):
            assert slot not in self.alive | self.over
            assert self.now_s >= self.ended_s[slot] + self.least_wait_s(slot)
            self.alive.add(slot)

    def lose_template(self) -> None:
        self.supervisor.begin(self.alive, self.now_s)
        for slot in self.alive:
            self.ended_s[slot] = -1e9  # it may start at once
        self.alive.clear()

    def end(self, slot: int, more: int) -> None:
        self.alive.discard(slot)
        self.produced[slot] += more
        self.row[slot] = 1 if more else self.row[slot] + 1
        self.ended_s[slot] = self.now_s
        first = self.supervisor.end(slot, self.produced[slot], "error", self.now_s)
        if self.row[slot] >= MOST_FAILURES:
            assert first is not None
            self.over.add(slot)
        else:
            assert first is None


EVENTS = st.one_of(
    st.tuples(st.just("pass"), st.floats(0.0, 30.0)),
    st.tuples(st.just("end"), st.integers(0, 3)),
    st.tuples(st.just("end after an unroll"), st.integers(0, 3)),
    st.tuples(st.just("template"), st.none()),
)


@given(st.lists(EVENTS, max_size=80), st.integers(0, 99))
def test_no_schedule_starts_anyone_before_its_time_or_twice_or_after_its_end(events, seed):
    schedule = Schedule(4, seed)
    schedule.supervisor.begin(range(4), schedule.now_s)
    for what, value in events:
        schedule.start_due()
        if what == "pass":
            schedule.now_s += value
        elif what == "template":  # it takes all actors with it, and that is not their fault
            schedule.lose_template()
        elif value in schedule.alive:
            schedule.end(value, more=int(what == "end after an unroll"))
    schedule.now_s += 2 * LONGEST_DELAY_S
    for _ in range(2):  # two at a time
        schedule.start_due()
    assert schedule.alive | schedule.over == set(range(4)), "someone was forgotten"
    assert schedule.supervisor.next_due_s() is None


def test_those_who_are_due_longest_come_first_and_no_more_than_asked_for():
    supervisor = Supervisor(5, random.Random(0))
    for slot, at_s in enumerate([3.0, 1.0, 2.0, 9.0, 1.5]):
        supervisor.begin([slot], at_s)
    assert supervisor.next_due_s() == 1.0
    assert supervisor.take_due(5.0, 2) == [1, 4]
    assert supervisor.take_due(5.0, 0) == []
    assert supervisor.take_due(5.0, 9) == [2, 0]
    assert supervisor.next_due_s() == 9.0


def test_actor_that_is_over_is_not_begun_with_the_others():
    supervisor = Supervisor(2, random.Random(0))
    first_errors = [supervisor.end(0, 0, "why", 1.0) for _ in range(MOST_FAILURES)]
    assert first_errors == [None] * (MOST_FAILURES - 1) + ["why"]
    supervisor.begin(range(2), 2.0)
    assert supervisor.take_due(100.0, 9) == [1]


def make_slots(began_s: list[float | None], longest_s: float = 0.0) -> np.ndarray:
    """Rows of a page; began_s: seconds after START_NS, None: not at an unroll."""
    slots = np.zeros(len(began_s), SLOT)
    for slot, began in enumerate(began_s):
        slots["began_ns"][slot] = 0 if began is None else START_NS + int(began * SECOND)
    slots["longest_ns"][0] = int(longest_s * SECOND)
    return slots


def look_until(watch: HangWatch, slots: np.ndarray, end_s: float, step_s: float = 0.5):
    """(seconds, answer) of the first look that finds somebody, up to end_s."""
    now_s = 0.0
    while now_s <= end_s:
        hung = watch.look(START_NS + int(now_s * SECOND), slots)
        if hung:
            return now_s, hung
        now_s += step_s
    return None


@pytest.mark.parametrize(
    ("longest_s", "limit_s"), [(0.0, 60.0), (0.001, 10.0), (0.5, 10.0), (2.0, 40.0)]
)
def test_limit_follows_the_longest_unroll_of_the_host(longest_s, limit_s):
    assert HangWatch(3, None).limit_s(make_slots([None] * 3, longest_s)) == limit_s


@given(
    longest_s=st.sampled_from([0.0, 0.001]),
    chosen_s=st.sampled_from([None, 30.0]),
    step_s=st.floats(0.5, 120.0),
)
def test_limit_is_for_one_step_until_an_unroll_was_measured(longest_s, chosen_s, step_s):
    """A first unroll may take any time, if none of its steps does."""
    watch = HangWatch(1, chosen_s)
    slots = make_slots([0.0], longest_s)
    limit_s = watch.limit_s(slots)
    is_of_steps = chosen_s is None and longest_s == 0.0
    assert watch.is_of_steps(slots) == is_of_steps
    hung_s = None
    for now_s in np.arange(0.0, 200.0, 0.5):
        slots["position"][0] = int(now_s / step_s)
        if watch.look(START_NS + int(now_s * SECOND), slots):
            hung_s = now_s
            break
    if not is_of_steps:
        assert hung_s == limit_s + 0.5
    elif step_s <= limit_s:
        assert hung_s is None
    elif step_s > limit_s + 1.0:
        assert hung_s == pytest.approx(limit_s + 0.5, abs=0.5)


def test_limit_that_was_chosen_is_kept():
    assert HangWatch(3, 2.5).limit_s(make_slots([None] * 3, 100.0)) == 2.5


def test_who_is_at_one_unroll_for_longer_than_the_limit_hangs():
    slots = make_slots([None, 0.0, 7.0])
    found = look_until(HangWatch(3, 5.0), slots, 60.0)
    assert found is not None
    assert list(found[1]) == [1]
    assert 5.0 < found[0] <= 5.5 and found[1][1] == pytest.approx(found[0])


@given(
    steps_s=st.lists(st.floats(0.01, 0.9), min_size=30, max_size=60),
    unrolls_s=st.lists(st.floats(0.01, 1.9), min_size=60, max_size=60),
)
def test_actor_that_gets_on_never_hangs(steps_s, unrolls_s):
    """Whenever it is looked at, and however its unrolls lie between the looks."""
    watch = HangWatch(1, 2.0)
    ends_s = np.cumsum(unrolls_s)
    for now_s in np.cumsum(steps_s):
        began = int(np.searchsorted(ends_s, now_s, side="right"))
        slots = make_slots([float(ends_s[began - 1]) if began else 0.001])
        if began < len(unrolls_s):
            assert watch.look(START_NS + int(now_s * SECOND), slots) == {}


@given(st.lists(st.floats(0.01, 0.9), min_size=20, max_size=60))
def test_actor_that_hangs_is_found_at_the_first_look_after_its_limit(steps_s):
    watch = HangWatch(2, 2.0)
    slots = make_slots([None, 0.0])
    for now_s in np.cumsum(steps_s):
        hung = watch.look(START_NS + int(now_s * SECOND), slots)
        assert (list(hung) == [1]) == (now_s > 2.0 + 1e-6) or abs(now_s - 2.0) < 1e-6


@given(st.lists(st.floats(1.0, 10_000.0), max_size=5))
def test_time_in_which_nobody_looked_is_forgiven(gaps_s):
    """As when the machine, or all of the run, was stopped: each gap counts for a second at most."""
    watch = HangWatch(1, 20.0)
    slots = make_slots([0.0])
    now_s = 0.0
    for gap_s in gaps_s:
        assert watch.look(START_NS + int(now_s * SECOND), slots) == {}
        now_s += gap_s
    assert watch.look(START_NS + int(now_s * SECOND), slots) == {}


def test_who_is_stopped_between_two_unrolls_hangs_as_well():
    watch = HangWatch(3, 5.0)
    slots = make_slots([None, None, 0.0])
    paused_ns = {1: START_NS + SECOND}
    found = [
        watch.look(START_NS + int(0.5 * i * SECOND), slots, paused_ns if i > 2 else {})
        for i in range(2, 14)
    ]
    assert [list(hung) for hung in found] == [[]] * 9 + [[2]] * 2 + [[1, 2]]
    assert found[-1][1] == 5.5
    assert list(watch.look(START_NS + 7 * SECOND, slots)) == [2], "it goes on"


def test_limit_counts_on_after_a_gap():
    watch = HangWatch(1, 5.0)
    slots = make_slots([0.0])
    assert look_until(watch, slots, 4.0) is None
    later = [watch.look(START_NS + int((1000 + 0.5 * i) * SECOND), slots) for i in range(4)]
    assert [bool(hung) for hung in later] == [False, True, True, True]


def test_what_the_watcher_reads_is_read_once():
    """Actors write it meanwhile; a second reading could find an unroll begun after `now`."""
    watch = HangWatch(1, 1.0)
    slots = make_slots([50.0])
    assert watch.look(START_NS, slots) == {}
    assert watch.look(START_NS + SECOND // 2, slots) == {}


@pytest.mark.parametrize(
    ("status", "error", "hung_s", "text"),
    [
        (-9, "", 0.0, "was killed by SIGKILL"),
        (-9, "", 12.34, "hung for 12.3 s and was killed; run.log has its stack"),
        (1, "ValueError: no", 0.0, "ended with status 1: ValueError: no"),
        (3, "", 0.0, "ended with status 3"),
        (-40, "", 0.0, "was killed by signal 40"),
    ],
)
def test_end_of_an_actor_is_told_in_words(status, error, hung_s, text):
    assert how_ended(ActorEnded(0, 0, 1, status, error, hung_s, -1, -1, 0)) == text


def test_crash_comes_with_advice():
    for number in (signal.SIGSEGV, signal.SIGABRT):  # of either, as the allocator notices
        ended = ActorEnded(0, 0, 1, -number, "", 0.0, 0, 0, 0)
        wanted = f"was killed by {number.name}: an environment probably wrote outside an array"
        assert how_ended(ended) == wanted
