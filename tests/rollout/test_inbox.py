"""The verdict on every message: exactly one of them accepts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from rollout.inbox import Inbox, Judgement, Verdict
from rollout.learners.unroll import Unroll, UnrollSchema
from rollout.plan import share_of
from rollout.wire import Header, Kind, routing_id

SCHEMA = UnrollSchema(5, (4,), "<f4", (), "<i4", has_value=True)
RUN, OTHER_RUN = bytes(16), bytes(15) + b"\1"
NUM_ENVS, NUM_ACTORS, NUM_ACTIONS = 7, 3, 2


def make_inbox(policy_lag: int = 1, newest_version: int = 10) -> Inbox:
    inbox = Inbox(RUN, SCHEMA, NUM_ENVS, NUM_ACTORS, NUM_ACTIONS, policy_lag)
    inbox.newest_version = newest_version
    return inbox


def hello(actor: int = 0, incarnation: int = 0) -> Header:
    first_env, num_envs = share_of(actor, NUM_ACTORS, NUM_ENVS)
    return Header(Kind.HELLO, RUN, actor, incarnation, 0, 0, 0, first_env, num_envs, 0, 0)


@pytest.fixture
def message(make_payload):
    """message(actor=0, sequence=0, …): header and payload of an unroll as an actor sends it."""

    def make(
        actor: int = 0,
        sequence: int = 0,
        incarnation: int = 0,
        policy_lag: int = 1,
        seed: int = 0,
        first_unroll: int = 0,
    ) -> tuple[Header, bytes]:
        unroll_index = first_unroll + sequence
        first_env, num_envs = share_of(actor, NUM_ACTORS, NUM_ENVS)
        payload, num_finals, num_episodes = make_payload(SCHEMA, num_envs, seed)
        header = Header(
            kind=Kind.UNROLL,
            run=RUN,
            actor=actor,
            incarnation=incarnation,
            sequence=sequence,
            unroll_index=unroll_index,
            weights_version=max(0, unroll_index - policy_lag),
            first_env=first_env,
            num_envs=num_envs,
            num_finals=num_finals,
            num_episodes=num_episodes,
        )
        return header, payload

    return make


def say_hello(inbox: Inbox, header: Header, digest: bytes = SCHEMA.digest) -> Verdict:
    return inbox.judge(header, routing_id(header.actor, header.incarnation), digest).verdict


def judge(inbox: Inbox, header: Header, payload: bytes | bytearray) -> Judgement:
    return inbox.judge(header, routing_id(header.actor, header.incarnation), bytes(payload))


def test_unroll_of_a_known_actor_is_accepted_with_its_arrays(message):
    inbox = make_inbox()
    assert say_hello(inbox, hello(actor=0)) == Verdict.ACCEPTED
    header, payload = message(actor=0)
    verdict, unroll = judge(inbox, header, payload)
    assert verdict == Verdict.ACCEPTED and unroll is not None
    sent = Unroll.view(SCHEMA, payload, header.num_envs, header.num_finals, header.num_episodes)
    np.testing.assert_array_equal(unroll.observation, sent.observation)
    np.testing.assert_array_equal(unroll.episode_return, sent.episode_return)


def test_unroll_that_arrives_twice_is_a_duplicate(message):
    inbox = make_inbox()
    say_hello(inbox, hello())
    verdicts = [judge(inbox, *message(sequence=n)).verdict for n in (0, 0, 1, 0, 1, 2)]
    A, D = Verdict.ACCEPTED, Verdict.DUPLICATE
    assert verdicts == [A, D, A, D, D, A]


def test_unroll_that_leaves_one_out_is_out_of_order(message):
    inbox = make_inbox()
    say_hello(inbox, hello())
    assert judge(inbox, *message(sequence=1)).verdict == Verdict.OUT_OF_ORDER
    assert judge(inbox, *message(sequence=0)).verdict == Verdict.ACCEPTED
    assert judge(inbox, *message(sequence=1)).verdict == Verdict.ACCEPTED


def test_hello_said_twice_is_a_duplicate_and_begins_nothing_anew(message):
    inbox = make_inbox()
    say_hello(inbox, hello())
    judge(inbox, *message(sequence=0))
    assert say_hello(inbox, hello()) == Verdict.DUPLICATE
    assert inbox.actors[0].next_sequence == 1


def test_unroll_before_any_hello_is_malformed(message):
    inbox = make_inbox()
    assert judge(inbox, *message()).verdict == Verdict.MALFORMED
    say_hello(inbox, hello(actor=1))
    assert judge(inbox, *message(actor=0)).verdict == Verdict.MALFORMED


def test_hello_with_another_schema_is_refused():
    inbox = make_inbox()
    other = UnrollSchema(6, (4,), "<f4", (), "<i4", has_value=True)
    for digest in (other.digest, b"", SCHEMA.digest + b"\0"):
        assert say_hello(inbox, hello(), digest) == Verdict.WRONG_SCHEMA
    assert inbox.actors == {}


def test_message_of_another_run_is_foreign(message):
    inbox = make_inbox()
    say_hello(inbox, hello())
    assert say_hello(inbox, hello(actor=1)._replace(run=OTHER_RUN)) == Verdict.FOREIGN_RUN
    header, payload = message()
    assert judge(inbox, header._replace(run=OTHER_RUN), payload).verdict == Verdict.FOREIGN_RUN
    assert list(inbox.actors) == [0] and inbox.actors[0].next_sequence == 0


def test_new_life_of_an_actor_goes_on_where_the_former_one_ended(message):
    inbox = make_inbox()
    say_hello(inbox, hello(incarnation=0))
    judge(inbox, *message(sequence=0))
    assert say_hello(inbox, hello(incarnation=1)) == Verdict.ACCEPTED
    stale = judge(inbox, *message(sequence=1, incarnation=0)).verdict
    assert stale == Verdict.STALE_INCARNATION
    assert say_hello(inbox, hello(incarnation=0)) == Verdict.STALE_INCARNATION
    again = judge(inbox, *message(sequence=0, incarnation=1)).verdict
    assert again == Verdict.MALFORMED, "its first unroll has been accepted in the former life"
    next_one = message(sequence=0, incarnation=1, first_unroll=1)
    assert judge(inbox, *next_one).verdict == Verdict.ACCEPTED


def test_unroll_of_a_life_that_has_not_said_hello_is_malformed(message):
    inbox = make_inbox()
    say_hello(inbox, hello(incarnation=0))
    assert judge(inbox, *message(incarnation=1)).verdict == Verdict.MALFORMED
    assert judge(inbox, *message(incarnation=0)).verdict == Verdict.ACCEPTED


@pytest.mark.parametrize(
    "forged",
    [
        {"kind": 0},
        {"kind": 3},
        {"actor": NUM_ACTORS},
        {"actor": 2**32 - 1},
        {"first_env": 1},
        {"num_envs": 2},
        {"num_envs": 4},
        {"num_envs": 2**32 - 1},
        {"num_finals": 2**32 - 1},
        {"num_finals": 0},
        {"num_episodes": 2**32 - 1},
        {"num_episodes": 0},
        {"unroll_index": 1},
        {"unroll_index": 2**64 - 1},
        {"weights_version": 1},
        {"weights_version": 2**64 - 1},
        {"sequence": 2**64 - 1},
    ],
    ids=str,
)
def test_forged_header_is_malformed_and_changes_nothing(message, forged):
    inbox = make_inbox()
    say_hello(inbox, hello())
    header, payload = message(seed=4)
    assert header.num_finals and header.num_episodes
    assert judge(inbox, header._replace(**forged), payload).verdict == Verdict.MALFORMED
    assert judge(inbox, header, payload).verdict == Verdict.ACCEPTED


def test_message_under_another_actors_name_is_malformed(message):
    inbox = make_inbox()
    for actor in (0, 1):
        say_hello(inbox, hello(actor))
    header, payload = message(actor=0)
    for sender in (routing_id(1, 0), routing_id(0, 1), b"", b"someone"):
        assert inbox.judge(header, sender, payload).verdict == Verdict.MALFORMED
        assert inbox.judge(hello(2), sender, SCHEMA.digest).verdict == Verdict.MALFORMED
    assert 2 not in inbox.actors


@pytest.mark.parametrize("policy_lag", [0, 1])
def test_unroll_acted_with_weights_nobody_has_published_is_malformed(message, policy_lag):
    """Else one actor could fill the learner's memory with unrolls from the future."""
    inbox = make_inbox(policy_lag, newest_version=0)
    say_hello(inbox, hello())
    got = [judge(inbox, *message(sequence=n, policy_lag=policy_lag)).verdict for n in range(3)]
    assert got == [Verdict.ACCEPTED] * (1 + policy_lag) + [Verdict.MALFORMED] * (2 - policy_lag)
    inbox.newest_version = 1
    next_one = message(sequence=1 + policy_lag, policy_lag=policy_lag)
    assert judge(inbox, *next_one).verdict == Verdict.ACCEPTED


def test_payload_of_another_length_is_malformed(message):
    inbox = make_inbox()
    say_hello(inbox, hello())
    header, payload = message()
    for wrong in (payload[:-1], payload + b"\0", b"", payload[:8]):
        assert judge(inbox, header, wrong).verdict == Verdict.MALFORMED
    assert judge(inbox, header, payload).verdict == Verdict.ACCEPTED


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("action", NUM_ACTIONS),
        ("action", -1),
        ("action", np.iinfo(np.int32).min),
        ("final_t", SCHEMA.unroll_length),
        ("final_t", -1),
        ("final_env", 3),
        ("final_env", -1),
        ("episode_t", SCHEMA.unroll_length),
        ("episode_t", np.iinfo(np.int32).min),
        ("episode_env", 3),
        ("episode_env", -3),
    ],
)
def test_unroll_with_an_index_that_leads_outside_is_malformed(message, field, value):
    inbox = make_inbox()
    say_hello(inbox, hello())
    header, payload = message(seed=4)
    counts = header.num_envs, header.num_finals, header.num_episodes
    forged = bytearray(payload)
    getattr(Unroll.view(SCHEMA, forged, *counts), field).flat[-1] = value
    assert judge(inbox, header, forged).verdict == Verdict.MALFORMED
    assert judge(inbox, header, payload).verdict == Verdict.ACCEPTED


@pytest.mark.parametrize("field", ["terminated", "truncated"])
def test_unroll_with_a_flag_that_is_neither_true_nor_false_is_malformed(message, field):
    inbox = make_inbox()
    say_hello(inbox, hello())
    header, payload = message(seed=4)
    forged = bytearray(payload)
    counts = header.num_envs, header.num_finals, header.num_episodes
    flags = getattr(Unroll.view(SCHEMA, forged, *counts), field)
    flags.view(np.uint8)[flags] = 2
    assert judge(inbox, header, forged).verdict == Verdict.MALFORMED
    assert judge(inbox, header, payload).verdict == Verdict.ACCEPTED


def test_unroll_whose_finals_do_not_match_its_truncations_is_malformed(message):
    inbox = make_inbox()
    say_hello(inbox, hello())
    header, payload = message(seed=4)
    counts = header.num_envs, header.num_finals, header.num_episodes
    forged = bytearray(payload)
    unroll = Unroll.view(SCHEMA, forged, *counts)
    assert len(unroll.final_t) > 1
    for rows in (unroll.final_t, unroll.final_env):  # the last place named twice, one never
        rows[0] = rows[-1]
    assert judge(inbox, header, forged).verdict == Verdict.MALFORMED
    assert judge(inbox, header, payload).verdict == Verdict.ACCEPTED


@given(data=st.data())
def test_unroll_accepted_from_a_liar_holds_nothing_that_leads_outside(data):
    """Any bytes of the right length: what is accepted can be indexed with."""
    inbox = make_inbox()
    say_hello(inbox, hello())
    counts = (3, data.draw(st.integers(0, 2)), data.draw(st.integers(0, 2)))
    payload = bytearray(SCHEMA.size_bytes(*counts))
    unroll = Unroll.view(SCHEMA, payload, *counts)
    for name in ("terminated", "truncated", "action"):
        array = getattr(unroll, name)
        bytes_ = array.view(np.uint8).reshape(-1)
        for place in data.draw(st.lists(st.integers(0, bytes_.size - 1), max_size=2)):
            bytes_[place] = data.draw(st.integers(0, 3))
    for name in ("final_t", "final_env", "episode_t", "episode_env"):
        array = getattr(unroll, name)
        for row in range(len(array)):
            array[row] = data.draw(st.integers(-1, 5))
    header = Header(Kind.UNROLL, RUN, 0, 0, 0, 0, 0, 0, *counts)
    accepted = judge(inbox, header, payload).unroll
    if accepted is not None:
        places = set(zip(accepted.final_t.tolist(), accepted.final_env.tolist(), strict=True))
        wanted = {(int(t), int(i)) for t, i in zip(*accepted.truncated.nonzero(), strict=True)}
        assert places == wanted
        assert accepted.action.min() >= 0 and accepted.action.max() < NUM_ACTIONS


def test_statistics_count_every_verdict(message):
    inbox = make_inbox()
    say_hello(inbox, hello())
    say_hello(inbox, hello())
    say_hello(inbox, hello(actor=1), b"")
    judge(inbox, *message(sequence=0))
    judge(inbox, *message(sequence=5))
    inbox.count(Verdict.MALFORMED)
    statistics = inbox.statistics()
    assert statistics.verdicts == {
        "accepted": 2,
        "duplicate": 1,
        "wrong_schema": 1,
        "out_of_order": 1,
        "malformed": 1,
    }
    assert statistics.num_actors == 1
    assert "1 of 3 actors" in repr(inbox)


class Delivery(RuleBasedStateMachine):
    """Actors send in order, and again whatever they like; a network repeats and reorders.

    The twin is a list per actor: what has been accepted of it, over all of its lives, must be the
    unrolls 0, 1, 2, … and each once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.inbox = make_inbox(newest_version=10**6)
        self.sent: dict[int, int] = {}
        self.incarnation: dict[int, int] = {}
        self.accepted: dict[int, list[int]] = {}
        self.first_unroll: dict[int, int] = {}

    @rule(actor=st.integers(0, NUM_ACTORS - 1), is_new=st.booleans())
    def say_hello(self, actor, is_new):
        if is_new or actor not in self.incarnation:
            self.incarnation[actor] = self.incarnation.get(actor, -1) + 1
            self.sent[actor] = 0
            self.first_unroll[actor] = len(self.accepted.setdefault(actor, []))
            assert say_hello(self.inbox, hello(actor, self.incarnation[actor])) == Verdict.ACCEPTED
        else:
            verdict = say_hello(self.inbox, hello(actor, self.incarnation[actor]))
            assert verdict == Verdict.DUPLICATE

    @precondition(lambda self: self.incarnation)
    @rule(data=st.data())
    def deliver(self, data):
        actor = data.draw(st.sampled_from(sorted(self.incarnation)))
        newest = self.incarnation[actor]
        incarnation = newest - data.draw(st.integers(0, min(1, newest)))
        ahead = data.draw(st.integers(0, 2))
        done = self.accepted[actor]
        due = len(done) - self.first_unroll[actor]
        sequence = max(0, due + ahead - data.draw(st.integers(0, 2)))
        unroll_index = self.first_unroll[actor] + sequence
        first_env, num_envs = share_of(actor, NUM_ACTORS, NUM_ENVS)
        header = Header(
            kind=Kind.UNROLL,
            run=RUN,
            actor=actor,
            incarnation=incarnation,
            sequence=sequence,
            unroll_index=unroll_index,
            weights_version=max(0, unroll_index - 1),
            first_env=first_env,
            num_envs=num_envs,
            num_finals=0,
            num_episodes=0,
        )
        payload = bytes(SCHEMA.size_bytes(num_envs, 0, 0))
        verdict = judge(self.inbox, header, payload).verdict
        if incarnation < newest:
            assert verdict == Verdict.STALE_INCARNATION
        elif sequence < due:
            assert verdict == Verdict.DUPLICATE
        elif sequence > due:
            assert verdict == Verdict.OUT_OF_ORDER
        else:
            assert verdict == Verdict.ACCEPTED
            done.append(unroll_index)

    @invariant()
    def every_unroll_has_had_its_effect_once(self):
        for actor, done in self.accepted.items():
            state = self.inbox.actors[actor]
            assert done == list(range(state.first_unroll + state.next_sequence))


TestDelivery = Delivery.TestCase
