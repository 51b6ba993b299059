"""The account against a slow twin, which follows every single unroll through whatever happens."""

import json
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from rollout.ledger import (
    ACTOR_DIED,
    LEARNER_DIED,
    RUN_ENDED,
    STEPS,
    UNROLLS,
    Account,
    Ledger,
    Part,
    Totals,
)

WINDOW = 2
SENT, HELD, TRAINED = "sent", "held", "trained"
PLACES = (SENT, HELD, TRAINED, ACTOR_DIED, RUN_ENDED, LEARNER_DIED)


def counts(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


# ---- what a ledger says


def test_balance_is_what_nobody_can_account_for():
    assert Totals(10, 6, 1, {ACTOR_DIED: 2, RUN_ENDED: 1}).balance == 0
    assert Totals(10, 6, 1, {ACTOR_DIED: 2}).balance == 1
    assert Totals(10, 6, 1, {ACTOR_DIED: 4}).balance == -1


@pytest.mark.parametrize("wrong", ["unrolls", "steps", "actors"])
def test_ledger_is_balanced_only_if_every_account_in_it_is(wrong):
    """Two actors' errors may cancel each other out in the sum."""
    right, less, more = Totals(5, 4, 1), Totals(5, 3, 1), Totals(5, 4, 2)
    accounts = {"unrolls": right, "steps": right, "actors": [right, right]}
    assert Ledger(**accounts).is_balanced
    accounts[wrong] = [less, more] if wrong == "actors" else less
    ledger = Ledger(**accounts)
    assert not ledger.is_balanced
    assert ledger.balance == (1 if wrong == "unrolls" else 0)


def test_ledger_read_back_from_json_is_the_same():
    totals = Totals(7, 4, 1, {ACTOR_DIED: 2})
    ledger = Ledger(totals, Totals(70, 40, 10, {ACTOR_DIED: 20}), [totals, Totals(0, 0, 0)])
    assert Ledger.from_dict(json.loads(json.dumps(ledger.as_dict()))) == ledger


# ---- every single unroll


@dataclass
class Made:
    """One unroll. place: where it is. trained_steps: a part of it may be trained on before it."""

    actor: int
    steps: int
    place: str = SENT
    trained_steps: int = 0


class AccountMachine(RuleBasedStateMachine):
    """A run, as far as the account goes. A host is an actor here, or two of them."""

    @initialize(num_actors=st.integers(1, 4))
    def begin(self, num_actors):
        self.account = Account(WINDOW)
        self.made: list[Made] = []
        self.saved = None
        self.welcome(num_actors)

    def welcome(self, num_actors):
        """A learner is there, and a host with these actors."""
        self.num_actors = num_actors
        self.page = [[0, 0] for _ in range(num_actors)]
        self.size = [0] * num_actors
        self.account.add_actors(num_actors)

    def of(self, actor: int, place: str) -> list[Made]:
        return [made for made in self.made if made.actor == actor and made.place == place]

    def remember(self):
        self.observe()
        self.saved = json.dumps(self.account.state()), [Made(**vars(made)) for made in self.made]

    def observe(self):
        for actor, (unrolls, steps) in enumerate(self.page):
            self.account.observe(actor, counts(unrolls), counts(steps))

    def some_actor(self, data) -> int:
        return data.draw(st.integers(0, self.num_actors - 1))

    @rule(data=st.data(), steps=st.sampled_from([3, 4, 10]))
    def grant(self, data, steps):
        """Only who has nothing on the way gets another share."""
        actor = self.some_actor(data)
        if not self.of(actor, SENT):
            self.size[actor] = steps
            self.account.grant(actor, steps)

    @rule(data=st.data(), times=st.integers(1, 2))
    def seal(self, data, times):
        actor = self.some_actor(data)
        for _ in range(times):
            if not self.size[actor]:
                self.size[actor] = 4
                self.account.grant(actor, 4)
            if len(self.of(actor, SENT)) < WINDOW:
                self.made.append(Made(actor, self.size[actor]))
                self.page[actor][UNROLLS] += 1
                self.page[actor][STEPS] += self.size[actor]

    @rule(data=st.data())
    def arrive(self, data):
        """Seen or not on the page before."""
        actor = self.some_actor(data)
        if data.draw(st.booleans()):
            self.observe()
        for made in self.of(actor, SENT)[:1]:
            made.place = HELD
            self.account.accept(actor, made.steps)

    @rule(data=st.data(), is_part=st.booleans())
    def train(self, data, is_part):
        held = [made for made in self.made if made.place == HELD]
        if not held:
            return
        made = data.draw(st.sampled_from(held))
        left = made.steps - made.trained_steps
        if is_part and left > 1:
            made.trained_steps += 1
            self.account.train([Part(made.actor, 0, 1)])
        else:
            made.place, made.trained_steps = TRAINED, made.steps
            self.account.train([Part(made.actor, 1, left)])

    @rule(data=st.data())
    def actor_dies_and_comes_back(self, data):
        """Its successor's hello tells what its page says."""
        actor = self.some_actor(data)
        lost = self.of(actor, SENT)
        assert self.account.is_possible(actor, *self.page[actor])
        assert self.account.settle(actor, *self.page[actor]) == len(lost)
        for made in lost:
            made.place = ACTOR_DIED

    @rule(data=st.data())
    def host_dies(self, data):
        first = self.some_actor(data)
        stop = data.draw(st.integers(first + 1, self.num_actors))
        self.account.settle_host(
            first, *(counts(*row) for row in zip(*self.page[first:stop], strict=True))
        )
        for actor in range(first, stop):
            self.page[actor] = [0, 0]
            for made in self.of(actor, SENT):
                made.place = ACTOR_DIED

    @rule(count=st.integers(1, 2))
    def more_actors_come(self, count):
        if self.num_actors + count <= 6:
            self.num_actors += count
            self.page += [[0, 0] for _ in range(count)]
            self.size += [0] * count
            self.account.add_actors(self.num_actors)

    @precondition(lambda self: any(made.place in (SENT, HELD) for made in self.made))
    @rule()
    def save(self):
        self.remember()

    @precondition(lambda self: self.saved is not None)
    @rule(num_actors=st.integers(1, 5))
    def resume(self, num_actors):
        """The learner died; another goes on from the checkpoint, with another fleet perhaps."""
        assert self.saved is not None
        state, self.made = json.loads(self.saved[0]), [Made(**vars(m)) for m in self.saved[1]]
        for made in self.made:
            if made.place in (SENT, HELD):
                made.place = LEARNER_DIED
        known = 1 + max((made.actor for made in self.made), default=0)
        self.account = Account(WINDOW)
        self.account.put_state(state)
        self.welcome(max(num_actors, known))

    @precondition(lambda self: any(made.place in (SENT, HELD) for made in self.made))
    @rule()
    def run_ends(self):
        """And is resumed from what it leaves."""
        self.observe()
        self.account.drop_missing()
        parts = []
        for made in self.made:
            if made.place == HELD:
                parts.append(Part(made.actor, 1, made.steps - made.trained_steps))
            if made.place in (SENT, HELD):
                made.place = RUN_ENDED
        self.account.drop_held(parts)
        self.remember()
        ledger = self.account.ledger(with_actors=True)
        assert ledger.unrolls.in_flight == ledger.steps.in_flight == 0
        self.resume(self.num_actors)

    def expected(self, actors: range, in_steps: bool) -> Totals:
        """One unroll after the other."""
        total: Counter = Counter()
        for made in self.made:
            if made.actor not in actors:
                continue
            size = made.steps if in_steps else 1
            total["produced"] += size
            if in_steps:
                total[TRAINED] += made.trained_steps
                total[made.place] += made.steps - made.trained_steps
            else:
                total[made.place] += 1
        in_flight = total[SENT] + total[HELD]
        dropped = {reason: total[reason] for reason in PLACES[3:] if total[reason]}
        return Totals(total["produced"], total[TRAINED], in_flight, dropped)

    @invariant()
    def account_says_what_became_of_every_unroll(self):
        if not hasattr(self, "account"):
            return
        self.observe()
        ledger = self.account.ledger(with_actors=True)
        everyone = range(self.num_actors)
        assert ledger.unrolls == self.expected(everyone, in_steps=False)
        assert ledger.steps == self.expected(everyone, in_steps=True)
        for actor, totals in enumerate(ledger.actors):
            assert totals == self.expected(range(actor, actor + 1), in_steps=False)
        assert ledger.is_balanced

    @invariant()
    def what_an_actor_may_say_is_what_can_be(self):
        if not hasattr(self, "account"):
            return
        for actor, (unrolls, steps) in enumerate(self.page):
            size = self.size[actor]
            assert self.account.is_possible(actor, unrolls, steps)
            accepted = unrolls - len(self.of(actor, SENT))
            beyond = WINDOW + 1 - (unrolls - accepted)
            assert not self.account.is_possible(
                actor, unrolls + beyond, steps + beyond * max(size, 1)
            )
            assert not self.account.is_possible(actor, unrolls, steps + 1)
            if unrolls == accepted:
                assert not self.account.is_possible(actor, unrolls - 1, steps - size)


TestAccount = AccountMachine.TestCase
TestAccount.settings = settings(max_examples=80, stateful_step_count=50, deadline=None)


# ---- when something is wrong


class Run:
    """One actor with unrolls of 10 steps, of which 5 were made and 5 arrived."""

    def __init__(self) -> None:
        self.account = Account(WINDOW)
        self.account.add_actors(2)
        self.account.grant(0, 10)
        for _ in range(5):
            self.account.accept(0, 10)
        self.see(5)

    def see(self, produced: int) -> None:
        self.account.observe(0, counts(produced, 0), counts(10 * produced, 0))

    def balance(self) -> int:
        ledger = self.account.ledger(with_actors=True)
        assert ledger.is_balanced == (ledger.balance == 0)
        assert ledger.steps.balance == 10 * ledger.balance
        assert ledger.actors[0].balance == ledger.balance
        return ledger.balance

    def die(self, produced: int, how: str) -> None:
        if how == "actor":
            self.account.settle(0, produced, 10 * produced)
        else:
            self.account.settle_host(0, counts(produced, 0), counts(10 * produced, 0))

    def resume(self) -> None:
        state = json.loads(json.dumps(self.account.state()))
        self.account = Account(WINDOW)
        self.account.put_state(state)
        self.account.add_actors(2)


def test_unroll_that_is_trained_on_twice_shows():
    run = Run()
    run.account.train([Part(0, 1, 10)] * 5)
    assert run.balance() == 0
    run.account.train([Part(0, 1, 10)])
    assert run.balance() == -1


@pytest.mark.parametrize("lost", [1, 3])
def test_unroll_that_vanishes_beyond_the_window_shows(lost):
    run = Run()
    run.see(5 + WINDOW)
    assert run.balance() == 0, "these may be on their way"
    run.see(5 + WINDOW + lost)
    assert run.balance() == lost


def test_unroll_that_arrives_without_having_been_made_shows():
    run = Run()
    run.account.accept(0, 10)
    assert run.balance() == -1
    run.see(6)
    assert run.balance() == 0, "the page was only looked at too early"


@pytest.mark.parametrize("how", ["actor", "host"])
@pytest.mark.parametrize(("produced", "balance"), [(5, 0), (7, 0), (8, 1), (4, -1)])
def test_what_was_wrong_when_an_actor_died_shows_for_ever(how, produced, balance):
    """After later lives, after the next learner, and at the end."""
    run = Run()
    run.die(produced, how)
    assert run.balance() == balance
    run.account.train([Part(0, 1, 10)] * 5)
    assert run.balance() == balance
    for _ in range(2):
        run.resume()
        assert run.balance() == balance
    run.account.grant(0, 10)
    run.account.accept(0, 10)
    run.account.observe(0, counts(2, 0), counts(20, 0))
    assert run.balance() == balance, "one held, one on its way"
    run.account.drop_missing()
    run.account.drop_held([Part(0, 1, 10)])
    assert run.balance() == balance
    assert run.account.ledger().unrolls.in_flight == 0


def test_unroll_of_the_dead_that_arrives_after_all_shows():
    run = Run()
    run.die(6, "actor")
    assert run.account.ledger().unrolls.dropped == {ACTOR_DIED: 1}
    run.account.accept(0, 10)
    assert run.balance() == -1


def test_batch_that_forgets_a_part_shows_at_the_end():
    """Trained on, but not among the parts: it stays held, and nobody drops it."""
    run = Run()
    run.account.train([Part(0, 1, 10)] * 4)
    run.account.drop_held([])
    assert run.account.ledger().unrolls.in_flight == 1


def test_errors_of_two_actors_do_not_cancel_out():
    run = Run()
    run.account.grant(1, 10)
    run.account.accept(1, 10)
    run.account.observe(0, counts(5 + WINDOW + 1, 0), counts(10 * (5 + WINDOW + 1), 0))
    ledger = run.account.ledger(with_actors=True)
    assert ledger.balance == 0
    assert [totals.balance for totals in ledger.actors] == [1, -1]
    assert not ledger.is_balanced


def test_steps_that_do_not_fit_the_unrolls_show():
    run = Run()
    run.account.observe(0, counts(6, 0), counts(75, 0))
    ledger = run.account.ledger()
    assert ledger.balance == 0
    assert ledger.steps.balance == 5, "one unroll on its way has 10 steps, or 20 in two"
    assert not ledger.is_balanced
