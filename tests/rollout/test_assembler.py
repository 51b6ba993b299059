"""Unrolls become batches: each column in its place, everybody in turn, nothing twice.

The slow twin of an assembler is a list of columns: who acted which environment in which unroll.
"""

import itertools
from collections import Counter, deque
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from rollout.assembler import Arrival, AsyncAssembler, FullBatch, LockstepAssembler
from rollout.learners.unroll import COLUMNS, STARTS_AND_ENDS, TAILS, Batch, Unroll, UnrollSchema
from rollout.skipped_steps import describe_skipped
from rollout.wire import Header, Kind

T = 3
SCHEMA = UnrollSchema(T, (2,), "<f4", (), "<i4", has_value=True, state_bytes=8)


def mark(env: int, index: int) -> int:
    """A number that no other unroll of any environment has."""
    return 1000 * env + index


def make_column(env: int, index: int) -> Unroll:
    """Unroll `index` of one environment; every number in it tells which one it is."""
    random = np.random.default_rng([env, index])
    truncated = random.random((T, 1)) < 0.3
    terminated = ~truncated & (random.random((T, 1)) < 0.3)
    final_t, episode_t = truncated.nonzero()[0], (truncated | terminated).nonzero()[0]
    arrays = {}
    for name, dtype, shape in SCHEMA.fields(1, len(final_t), len(episode_t)):
        arrays[name] = np.full(shape, mark(env, index)).astype(dtype)
    for name in ("observation", "reward", "value"):
        arrays[name] += np.arange(len(arrays[name])).reshape(-1, *[1] * (arrays[name].ndim - 1)) / 8
    arrays["env_state"] = np.array([[mark(env, index)]], np.int64).view(np.uint8)
    arrays |= {"final_t": final_t.astype(np.int32), "episode_t": episode_t.astype(np.int32)}
    for kind in ("final", "episode"):
        arrays[f"{kind}_env"] = np.zeros(len(arrays[f"{kind}_t"]), np.int32)
    return Unroll(**arrays | {"truncated": truncated, "terminated": terminated})


def joined(columns: list[Unroll]) -> Unroll:
    """Columns side by side, tails in the order (t, column); a row at a time."""
    arrays = {name: np.concatenate([getattr(c, name) for c in columns], 1) for name in COLUMNS}
    for name in STARTS_AND_ENDS:
        arrays[name] = np.concatenate([getattr(column, name) for column in columns])
    for kind in ("final", "episode"):
        rows = []
        for position, column in enumerate(columns):
            moved = replace(column, **{f"{kind}_env": getattr(column, f"{kind}_env") + position})
            rows += [
                (t, position, moved, row) for row, t in enumerate(getattr(column, f"{kind}_t"))
            ]
        rows.sort(key=lambda entry: entry[:2])
        for name in TAILS:
            if name.startswith(kind):
                empty = getattr(columns[0], name)[:0]
                found = [getattr(moved, name)[row : row + 1] for *_, moved, row in rows]
                arrays[name] = np.concatenate([empty, *found]).astype(empty.dtype)
    return Unroll(**arrays)


def make_arrival(
    actor: int, envs: list[int], indices: list[int], sequence: int, version: int = 0
) -> Arrival:
    """An unroll of these environments, each with the index it has in its own history."""
    unroll = joined([make_column(*column) for column in zip(envs, indices, strict=True)])
    header = Header(
        kind=Kind.UNROLL,
        run=bytes(16),
        actor=actor,
        incarnation=0,
        sequence=sequence,
        unroll_index=indices[0],
        weights_version=version,
        first_env=envs[0],
        num_envs=len(envs),
        num_finals=len(unroll.final_t),
        num_episodes=len(unroll.episode_t),
        act_us=1,
        wait_weights_us=10,
        wait_credit_us=100,
    )
    return Arrival(b"", header, unroll, np.array(envs))


def assert_holds(batch: Batch, columns: list[tuple[int, int]], versions: list[int]) -> None:
    """The batch is of these (environment, index), and nothing else."""
    wanted = joined([make_column(*column) for column in columns])
    assert batch.env.tolist() == [env for env, _ in columns]
    assert batch.weights_version.tolist() == versions
    for field in fields(Unroll):
        found, expected = getattr(batch, field.name), getattr(wanted, field.name)
        np.testing.assert_array_equal(found, expected, err_msg=field.name)


def counted(parts) -> Counter:
    """(actor, unrolls or steps): how many."""
    counts: Counter = Counter()
    for part in parts:
        counts[part.actor, "unrolls"] += part.unrolls
        counts[part.actor, "steps"] += part.steps
    return +counts


# ---- lockstep


class LockstepMachine(RuleBasedStateMachine):
    """Actors with shares of their own, as far ahead of each other as the policy lag lets them."""

    @initialize(data=st.data(), num_envs=st.integers(1, 6), lag=st.integers(0, 1))
    def begin(self, data, num_envs, lag):
        self.lag, self.num_envs = lag, num_envs
        self.first = self.version = data.draw(st.sampled_from([0, 4]))
        cuts = data.draw(st.sets(st.integers(1, num_envs - 1)) if num_envs > 1 else st.just(set()))
        edges = [0, *sorted(cuts), num_envs]
        self.shares = [list(range(*edge)) for edge in itertools.pairwise(edges)]
        self.next = [self.first] * len(self.shares)
        self.assembler = LockstepAssembler(
            [Batch(SCHEMA, num_envs) for _ in range(lag + 1)], self.first
        )
        self.full: deque[FullBatch] = deque()
        self.held: Counter = Counter()

    def able(self) -> list[int]:
        if not hasattr(self, "next"):
            return []
        return [a for a, index in enumerate(self.next) if index <= self.version + self.lag]

    @precondition(lambda self: self.able())
    @rule(data=st.data())
    def put(self, data):
        actor = data.draw(st.sampled_from(self.able()))
        envs, index = self.shares[actor], self.next[actor]
        version = max(0, index - self.lag)
        arrival = make_arrival(actor, envs, [index] * len(envs), index, version)
        before = min(self.next)
        self.next[actor] += 1
        self.held[actor, "unrolls"] += 1
        self.held[actor, "steps"] += T * len(envs)
        placed = self.assembler.put(arrival)
        assert placed.acknowledge == [arrival], "there is always room"
        assert len(placed.full) == min(self.next) - before
        for offset, full in enumerate(placed.full):
            wanted = before + offset
            columns = [(env, wanted) for env in range(self.num_envs)]
            assert_holds(full.batch, columns, [max(0, wanted - self.lag)] * self.num_envs)
            assert full.times == tuple(len(self.shares) * us for us in (1, 10, 100))
            self.full.append(full)

    @precondition(lambda self: hasattr(self, "full") and self.full)
    @rule()
    def train(self):
        parts, placed = self.assembler.recycle(self.full.popleft().batch)
        assert not placed.acknowledge
        assert not placed.full
        wanted = Counter({(a, "unrolls"): 1 for a in range(len(self.shares))})
        wanted += Counter({(a, "steps"): T * len(e) for a, e in enumerate(self.shares)})
        assert counted(parts) == wanted
        self.held -= wanted
        self.version += 1

    @invariant()
    def what_is_held_is_what_was_put_and_not_trained_on(self):
        if hasattr(self, "held"):
            assert counted(self.assembler.held()) == self.held
            assert self.assembler.is_settled


TestLockstep = LockstepMachine.TestCase
TestLockstep.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_lockstep_hands_batches_out_in_order_although_a_later_one_is_full_first():
    """It cannot happen with shares, whose unrolls come in order; a cut may change who is first."""
    assembler = LockstepAssembler([Batch(SCHEMA, 2) for _ in range(2)])
    assert assembler.put(make_arrival(0, [0, 1], [1, 1], 0)).full == []
    assert assembler.put(make_arrival(0, [0], [0], 0)).full == []
    full = assembler.put(make_arrival(1, [1], [0], 0)).full
    assert [batch.batch.observation[0, 0, 0] for batch in full] == [mark(0, 0), mark(0, 1)]


def test_lockstep_unroll_of_a_batch_that_was_trained_on_is_our_own_fault():
    assembler = LockstepAssembler([Batch(SCHEMA, 1)], first_unroll=3)
    with pytest.raises(AssertionError, match="an unroll of a batch that was full"):
        assembler.put(make_arrival(0, [0], [2], 0))


def test_lockstep_weights_published_too_early_are_our_own_fault():
    assembler = LockstepAssembler([Batch(SCHEMA, 1)])
    assembler.put(make_arrival(0, [0], [0], 0))
    with pytest.raises(AssertionError, match="published before their batch was recycled"):
        assembler.put(make_arrival(0, [0], [1], 1))


# ---- async


class AsyncMachine(RuleBasedStateMachine):
    """Actors with unrolls of any width; a line in which they take turns, written down slowly."""

    WINDOW = 2

    @initialize(data=st.data(), width=st.integers(1, 7), num_batches=st.integers(1, 3))
    def begin(self, data, width, num_batches):
        self.width, self.num_batches = width, num_batches
        sizes = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
        first = np.cumsum([0, *sizes]).tolist()
        self.shares = [list(range(f, f + size)) for f, size in zip(first, sizes, strict=False)]
        self.next = [0] * len(sizes)
        self.assembler = AsyncAssembler([Batch(SCHEMA, width) for _ in range(num_batches)])
        self.line: deque[int] = deque()  # actors with something waiting, in their turn
        self.queues: dict[int, deque] = {a: deque() for a in range(len(sizes))}
        self.columns: list[tuple[int, int, int, bool]] = []  # of the open batch
        self.full: list[tuple[FullBatch, list]] = []
        self.unacknowledged: Counter = Counter()
        self.num_free = num_batches
        self.is_open = False
        self.unserved: dict[int, set[int]] = {}  # by actor waiting: who was served since

    @rule(data=st.data())
    def put(self, data):
        free = [a for a in self.queues if self.unacknowledged[a] < self.WINDOW]
        if not free:
            return
        actor = data.draw(st.sampled_from(free))
        envs, index = self.shares[actor], self.next[actor]
        self.next[actor] += 1
        self.unacknowledged[actor] += 1
        arrival = make_arrival(actor, envs, [index] * len(envs), index, version=index)
        if not self.queues[actor]:
            self.line.append(actor)
        self.queues[actor].append([arrival, 0])
        self.check(self.assembler.put(arrival))

    @precondition(lambda self: bool(getattr(self, "full", None)))
    @rule(data=st.data())
    def train(self, data):
        """Batches may come back in any order."""
        full, columns = self.full.pop(data.draw(st.integers(0, len(self.full) - 1)))
        self.num_free += 1
        parts, placed = self.assembler.recycle(full.batch)
        assert counted(parts) == self.count(columns)
        self.check(placed)

    def check(self, placed):
        """Do the same a column at a time, and compare."""
        acknowledged, batches = [], []
        while self.line and (self.is_open or self.num_free):
            if not self.is_open:
                self.is_open, self.num_free = True, self.num_free - 1
            actor = self.line[0]
            entry = self.queues[actor][0]
            arrival, position = entry
            entry[1] += 1
            is_last = entry[1] == len(arrival.env)
            self.columns.append(
                (actor, int(arrival.env[position]), arrival.header.sequence, is_last)
            )
            if is_last:
                acknowledged.append(arrival)
                self.queues[actor].popleft()
                self.line.popleft()
                if self.queues[actor]:
                    self.line.append(actor)
            if len(self.columns) == self.width:
                batches.append(self.columns)
                self.columns, self.is_open = [], False
        assert placed.acknowledge == acknowledged
        assert len(placed.full) == len(batches)
        for arrival in placed.acknowledge:
            self.unacknowledged[arrival.header.actor] -= 1
            self.note_turn(arrival.header.actor)
        for full, columns in zip(placed.full, batches, strict=True):
            places = [(env, index) for _, env, index, _ in columns]
            assert_holds(full.batch, places, [index for _, index in places])
            num_whole = sum(is_last for *_, is_last in columns)
            assert full.times == (num_whole, 10 * num_whole, 100 * num_whole)
            self.full.append((full, columns))
        assert len(self.full) <= self.num_batches

    def note_turn(self, served: int):
        """Of those who wait, nobody is passed twice by the same."""
        self.unserved.pop(served, None)
        for actor, passed_by in self.unserved.items():
            assert served not in passed_by, f"{served} was served twice while {actor} waited"
            passed_by.add(served)
        for actor in self.line:
            self.unserved.setdefault(actor, set())

    @staticmethod
    def count(columns) -> Counter:
        counts: Counter = Counter()
        for actor, _, _, is_last in columns:
            counts[actor, "unrolls"] += is_last
            counts[actor, "steps"] += T
        return +counts

    @invariant()
    def what_is_held_is_what_was_put_and_not_trained_on(self):
        if not hasattr(self, "full"):
            return
        wanted = self.count(self.columns)
        for _, columns in self.full:
            wanted += self.count(columns)
        for actor, queue in self.queues.items():
            for arrival, num_put in queue:
                wanted[actor, "unrolls"] += 1
                wanted[actor, "steps"] += T * (len(arrival.env) - num_put)
        assert counted(self.assembler.held()) == wanted
        assert self.assembler.is_settled == (not self.line)
        for actor, queue in self.queues.items():
            assert self.assembler.is_settled_for(actor) == (not queue)

    def teardown(self):
        """All that was put in is trained on, but for what does not fill a batch."""
        while getattr(self, "full", None):
            full, columns = self.full.pop(0)
            self.num_free += 1
            parts, placed = self.assembler.recycle(full.batch)
            assert counted(parts) == self.count(columns)
            self.check(placed)
        if hasattr(self, "full"):
            assert self.assembler.is_settled
            assert sum(self.unacknowledged.values()) == 0
            assert counted(self.assembler.held()) == self.count(self.columns)


TestAsync = AsyncMachine.TestCase
TestAsync.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


@given(num_actors=st.integers(2, 5), flood=st.integers(2, 6))
def test_actor_that_floods_gets_no_more_turns_than_the_others(num_actors, flood):
    """One sends a lot before the others come: each of them waits for one of its unrolls at most."""
    assembler = AsyncAssembler([Batch(SCHEMA, 1)])
    order = []
    for sequence in range(flood + 1):
        assembler.put(make_arrival(0, [0], [sequence], sequence))
    for actor in range(1, num_actors):
        assembler.put(make_arrival(actor, [actor], [0], 0))
    batch = next(iter(assembler._training.values())).batch
    for _ in range(num_actors + 1):
        _, placed = assembler.recycle(batch)
        order += [arrival.header.actor for arrival in placed.acknowledge]
    assert sorted(order[:num_actors]) == list(range(num_actors))


def test_unroll_wider_than_a_batch_is_acknowledged_once_when_all_of_it_is_in():
    assembler = AsyncAssembler([Batch(SCHEMA, 2)])
    arrival = make_arrival(5, [0, 1, 2, 3, 4], [0] * 5, 0, version=9)
    placed = assembler.put(arrival)
    for first in (0, 2):
        assert placed.acknowledge == []
        assert_holds(placed.full[0].batch, [(first, 0), (first + 1, 0)], [9, 9])
        assert placed.full[0].times == (0, 0, 0), "an unroll's times count where it ends"
        parts, placed = assembler.recycle(placed.full[0].batch)
        assert counted(parts) == {(5, "steps"): 2 * T}
    assert placed.acknowledge == [arrival]
    assert placed.full == []
    assert counted(assembler.held()) == {(5, "unrolls"): 1, (5, "steps"): T}


def test_skipped_step_is_blamed_on_the_unroll_that_brought_the_number():
    """In async a batch may have two unrolls of one environment; the second's numbers are larger."""
    assembler = AsyncAssembler([Batch(SCHEMA, 2)])
    placed = [assembler.put(make_arrival(4, [7], [index], index)) for index in (0, 1)][-1]
    text = describe_skipped(3, 1, placed.full[0])
    assert text.startswith("update 3: 1 optimizer step was skipped")
    assert "(environment 7, unroll 1, step 2 of it)" in text
    assert "unroll 0, step" not in text
