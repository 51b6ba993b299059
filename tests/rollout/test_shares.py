"""Who acts which environments: a fleet that obeys the protocol, against everything that can happen.

The fleet here is a model without processes: actors act, die, come back and leave, messages are on
their way for as long as they like, and the learner does what the receiver does. Whatever happens,
every unroll of every environment arrives once and in order, and training goes on.
"""

from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from rollout.shares import Cut, Share, Shares, share_of

WINDOW = 2
MOST_ACTORS = 7
ROUNDS = 400  # far more than any fleet here needs for a few updates


@given(data=st.data(), num_actors=st.integers(1, 500))
def test_shares_are_contiguous_and_cover_every_environment_once(data, num_actors):
    num_envs = data.draw(st.integers(num_actors, 20_000))
    next_env = 0
    sizes = []
    for actor in range(num_actors):
        first, size = share_of(actor, num_actors, num_envs)
        assert first == next_env
        sizes.append(size)
        next_env = first + size
    assert next_env == num_envs
    assert min(sizes) >= 1
    # The first num_envs % num_actors actors have one more.
    assert sizes == sorted(sizes, reverse=True) and max(sizes) - min(sizes) <= 1


def start(num_envs: int, num_actors: int, first_unroll: int = 0, is_lockstep: bool = True):
    """Shares of a fleet whose actors have all been welcomed, and what they got."""
    shares = Shares(num_envs, first_unroll, is_lockstep)
    shares.join(range(num_actors))
    assert shares.cut_anew(first_unroll + 1) == Cut(1, first_unroll if is_lockstep else 0)
    for actor in range(num_actors):
        shares.ask(actor)
    return shares, dict(shares.grants())


def test_nobody_gets_a_share_before_the_first_actors_have_joined():
    shares = Shares(6, 0, is_lockstep=True)
    shares.ask(3)
    assert shares.cut_anew(1) is None
    assert shares.grants() == []
    shares.join(range(2, 4))
    assert shares.cut_anew(1) == Cut(1, 0)
    assert shares.grants() == [(3, Share(1, 3, 3, 0))]


def test_more_actors_than_environments_leave_the_last_ones_without():
    shares, granted = start(num_envs=3, num_actors=5)
    assert [(s.first_env, s.num_envs) for s in granted.values()] == [(0, 1), (1, 1), (2, 1)]
    assert list(granted) == [0, 1, 2]
    assert shares.of(4) is None
    assert not shares.is_unsettled


def test_run_that_is_resumed_begins_where_it_was():
    _, granted = start(num_envs=4, num_actors=2, first_unroll=9)
    assert {share.next_unroll for share in granted.values()} == {9}


def test_successor_goes_on_with_the_share_of_its_former_life():
    shares, granted = start(num_envs=4, num_actors=2)
    shares.accepted(1)
    shares.ask(1)
    assert shares.grants() == [(1, granted[1])]
    assert granted[1] == Share(1, 2, 2, 1)


def test_old_shares_are_acted_up_to_the_cut_and_only_then_given_anew():
    shares, _ = start(num_envs=4, num_actors=2)
    shares.join(range(2, 3))
    assert shares.cut_anew(next_possible_unroll=2) == Cut(2, 2)
    assert shares.cut_anew(next_possible_unroll=3) is None, "one cut at a time"
    shares.ask(2)
    for actor in (0, 0, 1):
        assert shares.grants() == []
        assert shares.is_unsettled
        shares.accepted(actor)
    shares.ask(0)
    assert shares.grants() == []
    shares.accepted(1)
    assert shares.grants() == [(2, Share(2, 3, 1, 2)), (0, Share(2, 0, 2, 2))]
    assert not shares.is_unsettled
    shares.ask(1)
    assert shares.grants() == [(1, Share(2, 2, 1, 2))]


def test_share_of_an_actor_that_is_gone_is_finished_by_whoever_is_free():
    shares, granted = start(num_envs=4, num_actors=2)
    shares.accepted(0)
    shares.leave(range(1))
    shares.end(range(1))
    assert shares.cut_anew(next_possible_unroll=3) == Cut(2, 3)
    assert shares.grants() == []
    for _ in range(3):
        shares.accepted(1)
    shares.ask(1)
    assert shares.grants() == [(1, granted[0])]
    assert granted[0].next_unroll == 1
    for _ in range(2):
        shares.accepted(1)
    shares.ask(1)
    assert shares.grants() == [(1, Share(2, 0, 4, 3))]


def test_actors_that_have_left_already_cause_no_other_cut_when_they_end():
    shares, _ = start(num_envs=4, num_actors=2)
    shares.leave(range(1, 2))
    assert shares.cut_anew(2) == Cut(2, 2)
    for actor in (0, 1, 0, 1):
        shares.accepted(actor)
    shares.grants()
    shares.leave(range(1, 2))
    shares.end(range(1, 2))
    assert not shares.is_unsettled
    assert shares.cut_anew(9) is None


def test_async_environments_change_hands_only_when_all_that_arrived_is_in_a_batch():
    shares, _ = start(num_envs=4, num_actors=1, is_lockstep=False)
    shares.join(range(1, 2))
    assert shares.cut_anew(99) == Cut(2, 0)
    shares.ask(1)
    shares.ask(0)
    assert shares.grants(is_settled=False) == []
    assert shares.grants() == [(1, Share(2, 2, 2, 0)), (0, Share(2, 0, 2, 0))]


@pytest.mark.parametrize("num_actors", [1, 2, 3, 4, 5])
def test_groups_stay_together_and_are_set_aside_whole(num_actors):
    shares = Shares(12, 0, is_lockstep=False, group=3)
    shares.join(range(num_actors))
    shares.cut_anew(0)
    for actor in range(num_actors):
        shares.ask(actor)
    granted = [share for _, share in shares.grants()]
    assert len(granted) == min(num_actors, 4), "nobody has a part of a group"
    assert all(share.first_env % 3 == share.num_envs % 3 == 0 for share in granted)
    assert sum(share.num_envs for share in granted) == 12
    assert shares.set_aside(7) == [6, 7, 8] and shares.set_aside(8) == []
    assert shares.num_envs == 9


def test_environment_that_is_set_aside_is_in_no_share_of_the_next_cut():
    shares, _ = start(num_envs=5, num_actors=2, is_lockstep=False)
    shares.set_aside(3)
    assert shares.order.tolist() == [0, 1, 2, 3, 4], "shares that are open still count it"
    assert shares.cut_anew(0) == Cut(2, 0)
    for actor in range(2):
        shares.ask(actor)
    granted = dict(shares.grants())
    assert shares.order.tolist() == [0, 1, 2, 4]
    assert [(s.first_env, s.num_envs) for s in granted.values()] == [(0, 2), (2, 2)]


# ---- a fleet


@dataclass(repr=False)
class Page:
    """What a host knows, and what was told to it but is still on its way.

    actors: of this host. version, cut: see host_memory.HostPage.
    """

    actors: range
    version: int = -1
    cut: Cut = field(default_factory=lambda: Cut(0, 0))
    coming: deque = field(default_factory=deque)
    is_leaving: bool = False

    def __repr__(self) -> str:
        return f"Page({self.actors})"

    def hear(self) -> None:
        message = self.coming.popleft()
        if isinstance(message, Cut):
            self.cut = message
        else:
            self.version = message

    def wait_version(self, version: int, cut: int, unroll: int) -> bool | None:
        """As HostPage has it; None where that one blocks."""
        if self.cut.number > cut and (unroll >= self.cut.first_unroll or self.cut.number > cut + 1):
            return False
        return True if self.version >= version else None


@dataclass
class Unroll:
    """first_env, num_envs: places. begun: of each of its environments, unrolls before this one."""

    share: Share
    index: int
    begun: dict[int, int]


HELLO = "hello"


@dataclass(repr=False)
class Actor:
    """One actor of the model, whichever life it is in.

    share: its own copy, as the welcome had it. sent: messages on their way to the learner.
    is_known: whether the hello of its present life has arrived.
    """

    number: int
    page: Page
    is_alive: bool = True
    is_known: bool = False
    share: Share | None = None
    counts: dict[int, int] = field(default_factory=dict)
    sent: deque = field(default_factory=deque)

    def __repr__(self) -> str:
        return f"Actor({self.number}, {self.share}, {len(self.sent)} sent)"

    def hello(self) -> None:
        self.share = None
        self.sent.append(HELLO)


class Fleet:
    """Actors and a learner; every method is one thing that can happen."""

    def __init__(self, num_envs: int, policy_lag: int, first_unroll: int, is_lockstep: bool):
        self.shares = Shares(num_envs, first_unroll, is_lockstep)
        self.policy_lag = policy_lag
        self.is_lockstep = is_lockstep
        self.version = first_unroll
        self.counts = dict.fromkeys(range(num_envs), first_unroll)  # accepted, by environment
        self.waiting: dict[int, int] = {}  # environments of unrolls not in a batch yet: by whom
        self.pages: list[Page] = []
        self.actors: dict[int, Actor] = {}
        self.gone: set[int] = set()
        self.num_actors = 0

    # What happens to the fleet

    def join(self, count: int) -> None:
        page = Page(range(self.num_actors, self.num_actors + count))
        self.num_actors += count
        self.pages.append(page)
        self.introduce(page)
        for number in page.actors:
            self.actors[number] = Actor(number, page)
            self.actors[number].hello()
        self.shares.join(page.actors)
        self.share_out()

    def introduce(self, page: Page) -> None:
        """What a host is told when it comes."""
        page.coming = deque([self.version])
        if self.shares.cut.number:
            page.coming.append(self.shares.cut)

    def restart_host(self, page: Page) -> None:
        """Its agent died, and its actors with it; another one begins with an empty page."""
        for number in page.actors:
            if number in self.actors:
                self.kill(number)
        page.version, page.cut = -1, Cut(0, 0)
        self.introduce(page)
        self.share_out()

    def leave(self, page: Page) -> None:
        page.is_leaving = True
        self.shares.leave(page.actors)
        self.share_out()

    def lose(self, actors: range) -> None:
        """For ever."""
        for number in actors:
            self.actors.pop(number, None)
            self.gone.add(number)
        self.shares.leave(actors)
        self.shares.end(actors)
        self.share_out()

    def kill(self, number: int) -> None:
        actor = self.actors[number]
        actor.is_alive, actor.is_known, actor.share = False, False, None
        actor.sent.clear()  # what has not arrived comes from a former life

    def revive(self, number: int) -> None:
        self.actors[number].is_alive = True
        self.actors[number].hello()

    def set_aside(self, env: int) -> None:
        self.shares.set_aside(env)
        self.share_out()

    def can_act(self, actor: Actor) -> bool:
        if not actor.is_alive or actor.share is None:
            return False
        return sum(isinstance(m, Unroll) for m in actor.sent) < WINDOW and (
            self.answer(actor) is not None
        )

    def answer(self, actor: Actor) -> bool | None:
        share = actor.share
        assert share is not None
        wanted = max(0, share.next_unroll - self.policy_lag) if self.is_lockstep else 0
        return actor.page.wait_version(wanted, share.cut, share.next_unroll)

    def act(self, actor: Actor) -> None:
        share = actor.share
        assert share is not None
        if not self.answer(actor):
            actor.hello()
            return
        if self.is_lockstep:
            assert share.next_unroll <= self.version + self.policy_lag
        actor.sent.append(Unroll(share, share.next_unroll, dict(actor.counts)))
        actor.counts = {env: count + 1 for env, count in actor.counts.items()}
        share.next_unroll += 1

    def arrive(self, actor: Actor) -> None:
        message = actor.sent.popleft()
        if message == HELLO:
            actor.is_known = True
            self.shares.ask(actor.number)
            self.share_out()
            return
        share = self.shares.of(actor.number)
        assert share is not None, f"actor {actor.number} sends, and has no share"
        place = (message.share.cut, message.share.first_env, message.share.num_envs)
        assert place == (share.cut, share.first_env, share.num_envs)
        assert message.index == share.next_unroll
        assert self.shares.allows(share, message.index)
        for env, count in message.begun.items():
            assert count == self.counts[env], f"unroll {count} of {env} after {self.counts[env]}"
            assert not self.is_lockstep or count == message.index
            assert self.waiting.get(env, actor.number) == actor.number, "it could overtake"
            self.counts[env] += 1
        self.shares.accepted(actor.number)
        if not self.is_lockstep:
            self.waiting.update(dict.fromkeys(message.begun, actor.number))
        if self.shares.is_unsettled:
            self.share_out()

    # What the learner does

    def place(self) -> None:
        """All that has arrived is in a batch now (async)."""
        self.waiting.clear()
        self.share_out()

    @property
    def can_train(self) -> bool:
        """In async there is no telling when: a batch may be full at any time."""
        return not self.is_lockstep or min(self.counts.values()) > self.version

    def train(self) -> None:
        self.version += 1
        for page in self.pages:
            page.coming.append(self.version)
        self.share_out()

    def share_out(self) -> None:
        cut = self.shares.cut_anew(self.version + self.policy_lag + 1)
        if cut is not None:
            for page in self.pages:
                page.coming.append(cut)
        busy = set(self.waiting.values())
        for number, share in self.shares.grants(not busy, lambda actor: actor not in busy):
            actor = self.actors[number]
            envs = self.shares.order[share.first_env : share.first_env + share.num_envs].tolist()
            if actor.is_known:
                assert number not in busy, "two windows of one actor's unrolls"
                actor.share = Share(share.cut, share.first_env, share.num_envs, share.next_unroll)
                actor.counts = {env: self.counts[env] for env in envs}
        if not self.shares.is_unsettled:
            released = [page for page in self.pages if page.is_leaving]
            self.pages = [page for page in self.pages if not page.is_leaving]
            for page in released:
                self.lose(page.actors)

    # Looking at it

    def open_places(self) -> list[int]:
        places = []
        for number in range(self.num_actors):
            if (share := self.shares.of(number)) is not None:
                places += range(share.first_env, share.first_env + share.num_envs)
        return places

    def settle(self) -> None:
        """Whoever can do something does, until nobody can, but for training."""
        for number, actor in list(self.actors.items()):
            if not actor.is_alive:
                self.revive(number)
        for _ in range(ROUNDS):
            if not self.settle_once():
                return
        raise AssertionError("a fleet that never comes to rest")

    def settle_once(self) -> bool:
        before = sum(self.counts.values())
        is_moving = False
        for page in self.pages:
            while page.coming:
                page.hear()
                is_moving = True
        for actor in list(self.actors.values()):
            if self.can_act(actor) and (self.is_lockstep or before < self.goal):
                self.act(actor)
                is_moving = True
            while actor.sent and actor.number in self.actors:
                self.arrive(actor)
                is_moving = True
        self.place()
        return is_moving

    goal = 0  # async: unrolls of single environments after which nobody needs to act


class FleetMachine(RuleBasedStateMachine):
    """Everything that can happen, in any order."""

    is_lockstep = True

    @initialize(
        num_envs=st.integers(1, 9),
        num_actors=st.integers(1, 4),
        policy_lag=st.integers(0, 1),
        first_unroll=st.sampled_from([0, 5]),
    )
    def begin(self, num_envs, num_actors, policy_lag, first_unroll):
        self.fleet = Fleet(num_envs, policy_lag, first_unroll, self.is_lockstep)
        self.fleet.join(num_actors)

    def some_actor(self, data, condition) -> Actor:
        return data.draw(st.sampled_from([a for a in self.fleet.actors.values() if condition(a)]))

    def has_actor(self, condition) -> bool:
        return any(condition(actor) for actor in self.fleet.actors.values())

    @precondition(lambda self: self.has_actor(self.fleet.can_act))
    @rule(data=st.data(), times=st.integers(1, 3))
    def act(self, data, times):
        actor = self.some_actor(data, self.fleet.can_act)
        for _ in range(times):
            if self.fleet.can_act(actor):
                self.fleet.act(actor)

    @precondition(lambda self: self.has_actor(lambda a: a.sent))
    @rule(data=st.data())
    def arrive(self, data):
        self.fleet.arrive(self.some_actor(data, lambda a: a.sent))

    @precondition(lambda self: any(page.coming for page in self.fleet.pages))
    @rule(data=st.data())
    def hear(self, data):
        data.draw(st.sampled_from([page for page in self.fleet.pages if page.coming])).hear()

    @precondition(lambda self: self.fleet.can_train)
    @rule()
    def train(self):
        self.fleet.train()

    @rule()
    def everybody_does_something(self):
        self.fleet.goal = sum(self.fleet.counts.values()) + 1
        self.fleet.settle_once()

    @precondition(lambda self: self.has_actor(lambda a: a.is_alive))
    @rule(data=st.data())
    def die(self, data):
        self.fleet.kill(self.some_actor(data, lambda a: a.is_alive).number)

    @precondition(lambda self: self.has_actor(lambda a: not a.is_alive))
    @rule(data=st.data())
    def come_back(self, data):
        self.fleet.revive(self.some_actor(data, lambda a: not a.is_alive).number)

    @rule(data=st.data())
    def host_agent_dies(self, data):
        if self.fleet.pages:
            self.fleet.restart_host(data.draw(st.sampled_from(self.fleet.pages)))

    @precondition(lambda self: self.fleet.num_actors < MOST_ACTORS)
    @rule(count=st.integers(1, 3))
    def join(self, count):
        self.fleet.join(count)

    @precondition(lambda self: self.fleet.shares.num_members > 1)
    @rule(data=st.data())
    def give_up(self, data):
        number = self.some_actor(data, lambda a: True).number
        self.fleet.lose(range(number, number + 1))

    @precondition(lambda self: len(self.fleet.pages) > 1)
    @rule(data=st.data())
    def leave(self, data):
        stays = [page for page in self.fleet.pages if not page.is_leaving]
        if len(stays) > 1:
            self.fleet.leave(data.draw(st.sampled_from(stays)))

    @invariant()
    def no_environment_is_in_two_shares(self):
        if hasattr(self, "fleet"):
            places = self.fleet.open_places()
            assert len(places) == len(set(places)), f"{sorted(places)} by {self.fleet.shares}"

    def teardown(self):
        if hasattr(self, "fleet"):
            self.check_that_training_goes_on()

    def check_that_training_goes_on(self):
        fleet = self.fleet
        for _ in range(3 + fleet.policy_lag):
            fleet.settle()
            if not fleet.shares.num_members:
                return
            assert fleet.can_train, f"nobody acts unroll {fleet.version}: {fleet.shares}"
            fleet.train()
        self.check_the_cut()

    def check_the_cut(self):
        fleet = self.fleet
        fleet.settle()
        assert not fleet.shares.is_unsettled
        assert sorted(fleet.open_places()) == list(range(len(fleet.shares.order)))
        shares = [fleet.shares.of(actor) for actor in range(fleet.num_actors)]
        sizes = [share.num_envs for share in shares if share is not None]
        assert max(sizes) - min(sizes) <= 1
        assert len(sizes) == min(fleet.shares.num_members, len(fleet.shares.order))
        assert {share.cut for share in shares if share} == {fleet.shares.cut.number}


class AsyncFleetMachine(FleetMachine):
    is_lockstep = False

    @rule()
    def place(self):
        self.fleet.place()

    @precondition(lambda self: len(self.fleet.shares._next_order) > 1)
    @rule(data=st.data())
    def set_aside(self, data):
        self.fleet.set_aside(data.draw(st.sampled_from(self.fleet.shares._next_order.tolist())))

    def check_that_training_goes_on(self):
        fleet, before = self.fleet, dict(self.fleet.counts)
        for _ in range(3):
            before = dict(fleet.counts)
            fleet.goal = sum(before.values()) + 3 * len(before)
            fleet.settle()
            if not fleet.shares.num_members:
                return
            fleet.train()
        self.check_the_cut()
        for env in fleet.shares.order.tolist():
            assert fleet.counts[env] > before[env], f"nobody acts {env}: {fleet.shares}"


@pytest.mark.parametrize("machine", [FleetMachine, AsyncFleetMachine])
def test_whatever_happens_every_unroll_arrives_once_and_training_goes_on(machine):
    run_state_machine_as_test(
        machine, settings=settings(max_examples=80, stateful_step_count=60, deadline=None)
    )
