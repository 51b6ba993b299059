"""The verdict on every message: exactly one of them accepts, and only that one changes anything."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from rollout.env_states import EnvStates
from rollout.envs.philox import CLOCK
from rollout.inbox import NO_LIFE, Inbox, Judgement
from rollout.learners.unroll import Unroll, UnrollSchema
from rollout.ledger import Account
from rollout.shares import Shares
from rollout.wire import Greeting, Header, Kind, Verdict, encode_greeting, routing_id
from tests.rollout.fakes import everything, follow

SCHEMA = UnrollSchema(5, (4,), "<f4", (), "<i4", True, CLOCK.itemsize + 8)
T = SCHEMA.unroll_length
OTHER_SCHEMA = UnrollSchema(6, (4,), "<f4", (), "<i4", True, CLOCK.itemsize + 8)
RUN, OTHER_RUN = bytes(16), bytes(15) + b"\1"
NUM_ENVS, NUM_ACTORS, NUM_ACTIONS, WINDOW = 7, 3, 2, 2
SHARES = [(0, 3), (3, 2), (5, 2)]  # first environment and number of them, by actor


class World:
    """An inbox, and all that a receiver does for it. Asserts that what is refused changes nothing.

    acknowledges: whether each unroll is in a batch at once.
    """

    def __init__(self, policy_lag: int | None = 1, newest_version: int = 10) -> None:
        self.policy_lag = policy_lag
        self.acknowledges = True
        self.inbox = Inbox(
            RUN,
            SCHEMA,
            (NUM_ACTIONS,),
            policy_lag,
            Shares(NUM_ENVS, 0, policy_lag is not None),
            EnvStates(NUM_ENVS, SCHEMA.state_bytes, seed=3),
            Account(WINDOW),
        )
        self.inbox.newest_version = newest_version
        self.inbox.num_actors = NUM_ACTORS
        self.inbox.account.add_actors(NUM_ACTORS)
        self.inbox.shares.join(range(NUM_ACTORS))
        self.inbox.shares.cut_anew(0)

    def hello(
        self,
        actor: int = 0,
        incarnation: int = 0,
        produced: tuple[int, int] = (0, 0),
        digest: bytes = SCHEMA.digest,
        **forged,
    ) -> Judgement:
        empty = Header(Kind.HELLO, RUN, actor, incarnation, *[0] * 7)
        return self.judge(empty._replace(**forged), encode_greeting(Greeting(digest, *produced)))

    def judge(
        self, header: Header, payload: bytes | bytearray, sender: bytes | None = None
    ) -> Judgement:
        before = everything(self.inbox)
        name = routing_id(header.actor, header.incarnation) if sender is None else sender
        judgement = self.inbox.judge(header, name, bytes(payload))
        if judgement.verdict != Verdict.ACCEPTED:
            assert everything(self.inbox) == before, judgement.verdict
            assert judgement.unroll is None and judgement.env is None
        elif header.kind == Kind.HELLO:
            self.share_out()
        elif self.acknowledges:
            self.inbox.acknowledge(header)
        return judgement

    def share_out(self) -> None:
        shares = self.inbox.shares
        for actor, share in shares.grants():
            self.inbox.account.grant(actor, T * share.num_envs)
            envs = shares.order[share.first_env :][: share.num_envs]
            self.inbox.states.give(envs, share.cut)

    def version(self, unroll_index: int) -> int:
        if self.policy_lag is None:
            return self.inbox.newest_version
        return max(0, unroll_index - self.policy_lag)


@pytest.fixture
def world() -> World:
    """Actors 0 and 1 have said hello, and have shares."""
    world = World()
    for actor in (0, 1):
        assert world.hello(actor).verdict == Verdict.ACCEPTED
    return world


@pytest.fixture
def message(make_payload):
    """message(world, actor=0, ahead=0, …): the unroll that an actor is to send next.

    ahead: or one after that. Other arguments go into the header.
    """

    def make(world: World, actor: int = 0, ahead: int = 0, seed: int = 4, **others):
        share, known = world.inbox.shares.of(actor), world.inbox.actors[actor]
        assert share is not None
        payload, *counts = make_payload(SCHEMA, share.num_envs, seed)
        payload = bytearray(payload)
        before = world.inbox.states.newest[share.first_env :][: share.num_envs]
        follow(before, Unroll.view(SCHEMA, payload, share.num_envs, *counts))
        index = share.next_unroll + ahead
        header = Header(
            kind=Kind.UNROLL,
            run=RUN,
            actor=actor,
            incarnation=known.incarnation,
            sequence=known.next_sequence + ahead,
            unroll_index=index,
            weights_version=world.version(index),
            first_env=share.first_env,
            num_envs=share.num_envs,
            num_finals=counts[0],
            num_episodes=counts[1],
        )
        return header._replace(**others), payload

    return make


def fields_of(header: Header, payload: bytearray) -> Unroll:
    return Unroll.view(SCHEMA, payload, header.num_envs, header.num_finals, header.num_episodes)


# What is accepted


def test_unroll_of_a_known_actor_is_accepted_with_its_arrays(world, message):
    header, payload = message(world, actor=1)
    judgement = world.judge(header, payload)
    assert judgement.verdict == Verdict.ACCEPTED
    assert judgement.unroll is not None and judgement.env is not None
    sent = fields_of(header, payload)
    np.testing.assert_array_equal(judgement.unroll.observation, sent.observation)
    np.testing.assert_array_equal(judgement.unroll.episode_return, sent.episode_return)
    assert judgement.env.tolist() == [3, 4]


def test_accepted_unroll_takes_its_environments_further_and_no_others(world, message):
    header, payload = message(world, actor=1)
    before = world.inbox.states.newest.copy()
    world.judge(header, payload)
    states = world.inbox.states
    np.testing.assert_array_equal(states.newest[3:5], fields_of(header, payload).env_state)
    np.testing.assert_array_equal(np.delete(states.newest, (3, 4), 0), np.delete(before, (3, 4), 0))
    assert states.num_unrolls.tolist() == [0, 0, 0, 1, 1, 0, 0]
    share = world.inbox.shares.of(1)
    assert share is not None and share.next_unroll == 1
    assert world.inbox.account._accepted.tolist() == [[0, 1, 0], [0, 2 * T, 0]]


@pytest.mark.parametrize("policy_lag", [0, 1, None])
def test_whole_conversation_of_an_actor_is_accepted(message, policy_lag):
    world = World(policy_lag)
    assert world.hello().verdict == Verdict.ACCEPTED
    for seed in range(8):
        assert world.judge(*message(world, seed=seed)).verdict == Verdict.ACCEPTED
    assert world.inbox.states.num_unrolls.tolist() == [8] * 3 + [0] * 4


def test_hello_said_twice_begins_nothing_anew(world, message):
    world.judge(*message(world))
    before = everything(world.inbox)
    assert world.hello(produced=(1, 3 * T)).verdict == Verdict.ACCEPTED
    assert everything(world.inbox) == before


# Every other verdict


def test_unroll_that_arrives_twice_is_a_duplicate(world, message):
    sent = []
    for _ in range(3):
        sent.append(message(world))
        assert world.judge(*sent[-1]).verdict == Verdict.ACCEPTED
        for old in sent:
            assert world.judge(*old).verdict == Verdict.DUPLICATE


def test_unroll_that_leaves_one_out_is_out_of_order(world, message):
    assert world.judge(*message(world, ahead=1)).verdict == Verdict.OUT_OF_ORDER
    assert world.judge(*message(world)).verdict == Verdict.ACCEPTED
    assert world.judge(*message(world)).verdict == Verdict.ACCEPTED


def test_message_of_another_run_is_foreign(world, message):
    assert world.hello(2, run=OTHER_RUN).verdict == Verdict.FOREIGN_RUN
    assert world.judge(*message(world, run=OTHER_RUN)).verdict == Verdict.FOREIGN_RUN
    assert sorted(world.inbox.actors) == [0, 1]


def test_hello_with_another_schema_is_refused(world):
    for digest in (OTHER_SCHEMA.digest, bytes(32), SCHEMA.digest[::-1]):
        assert world.hello(2, digest=digest).verdict == Verdict.WRONG_SCHEMA
    assert sorted(world.inbox.actors) == [0, 1]


def test_message_of_a_former_life_is_stale(world, message):
    old = message(world)
    assert world.hello(incarnation=1).verdict == Verdict.ACCEPTED
    assert world.judge(*old).verdict == Verdict.STALE_INCARNATION
    assert world.hello(incarnation=0).verdict == Verdict.STALE_INCARNATION
    assert world.judge(*message(world)).verdict == Verdict.ACCEPTED


def test_life_that_a_dead_agent_began_is_stale_even_if_nobody_knew_it(world, message):
    world.inbox.first_incarnation[2] = 1 << 16
    for incarnation in (0, 7, (1 << 16) - 1):
        assert world.hello(2, incarnation).verdict == Verdict.STALE_INCARNATION
    assert world.hello(2, 1 << 16).verdict == Verdict.ACCEPTED
    old = message(world)
    world.inbox.first_incarnation[0] = 1 << 16
    assert world.judge(*old).verdict == Verdict.STALE_INCARNATION


def test_actor_of_a_host_that_is_gone_has_no_life_that_is_not_stale(world):
    world.inbox.first_incarnation[0] = NO_LIFE
    for incarnation in (0, 1, 2**32 - 1):
        assert world.hello(0, incarnation).verdict == Verdict.STALE_INCARNATION


def clocks_of(header: Header, payload: bytearray) -> np.ndarray:
    states = fields_of(header, payload).env_state
    return np.ndarray(len(states), CLOCK, states, strides=(states.shape[1],))


@pytest.mark.parametrize("place", [0, -1])
@pytest.mark.parametrize("name", ["env", "seed", "episode", "t"])
@pytest.mark.parametrize("by", [1, 1 << 31])
def test_unroll_that_does_not_continue_the_states_is_discontinuous(world, message, name, place, by):
    header, payload = message(world)
    clocks_of(header, payload)[name][place] ^= np.uint32(by)
    assert world.judge(header, payload).verdict == Verdict.DISCONTINUOUS
    assert world.judge(*message(world)).verdict == Verdict.ACCEPTED


def test_unroll_with_the_states_of_other_environments_is_discontinuous(world, message):
    header, payload = message(world)
    states = fields_of(header, payload).env_state
    states[[0, 1]] = states[[1, 0]]
    assert world.judge(header, payload).verdict == Verdict.DISCONTINUOUS


def test_old_unroll_under_a_new_number_is_discontinuous(world, message):
    header, payload = message(world)
    assert world.judge(header, payload).verdict == Verdict.ACCEPTED
    forged, _ = message(world)
    counts = {"num_finals": header.num_finals, "num_episodes": header.num_episodes}
    verdict = world.judge(forged._replace(**counts), payload).verdict
    assert verdict == Verdict.DISCONTINUOUS


# What is malformed


def test_unroll_before_any_hello_is_malformed(world, message):
    header, payload = message(world, actor=1)
    other = header._replace(actor=2, first_env=5)
    assert world.judge(other, payload).verdict == Verdict.MALFORMED
    later = message(world, incarnation=1)
    assert world.judge(*later).verdict == Verdict.MALFORMED


def test_unroll_of_an_actor_that_waits_for_a_share_is_malformed(world, message):
    header, payload = message(world, actor=1)
    world.inbox.shares.end(range(1, 2))
    assert world.judge(header, payload).verdict == Verdict.MALFORMED


def test_unroll_of_a_share_that_was_let_go_is_malformed(message):
    world = World(policy_lag=None)
    for actor in range(NUM_ACTORS):
        world.hello(actor)
    header, payload = message(world, actor=0)
    world.inbox.shares.leave(range(2, 3))
    world.inbox.shares.end(range(2, 3))
    world.inbox.shares.cut_anew(0)
    for actor in (0, 1):
        world.hello(actor)
    share = world.inbox.shares.of(0)
    assert share is not None and share.num_envs == 4
    assert world.judge(header, payload).verdict == Verdict.MALFORMED


@pytest.mark.parametrize(
    "forged",
    [
        {"kind": 0},
        {"kind": 3},
        {"kind": Kind.HELLO},
        {"actor": 2},
        {"actor": NUM_ACTORS},
        {"actor": 2**32 - 1},
        {"incarnation": 1},
        {"incarnation": 2**32 - 1},
        {"first_env": 1},
        {"first_env": 2**32 - 1},
        {"num_envs": 0},
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
        {"sequence": 1},
        {"sequence": 2**64 - 1},
        {"sequence": WINDOW, "unroll_index": WINDOW, "weights_version": WINDOW - 1},
    ],
    ids=str,
)
def test_forged_header_is_malformed(world, message, forged):
    header, payload = message(world)
    assert header.num_finals and header.num_episodes
    assert world.judge(header._replace(**forged), payload).verdict == Verdict.MALFORMED
    assert world.judge(header, payload).verdict == Verdict.ACCEPTED


def test_message_under_another_actors_name_is_malformed(world, message):
    header, payload = message(world)
    for sender in (routing_id(1, 0), routing_id(0, 1), b"", b"someone", routing_id(0, 0) + b"\0"):
        assert world.judge(header, payload, sender).verdict == Verdict.MALFORMED
        hello = Header(Kind.HELLO, RUN, 2, 0, *[0] * 7)
        greeting = encode_greeting(Greeting(SCHEMA.digest, 0, 0))
        assert world.judge(hello, greeting, sender).verdict == Verdict.MALFORMED
    assert 2 not in world.inbox.actors


@pytest.mark.parametrize("policy_lag", [0, 1])
def test_unroll_acted_with_weights_nobody_has_published_is_malformed(message, policy_lag):
    """Else one actor could fill the learner's memory with unrolls from the future."""
    world = World(policy_lag, newest_version=0)
    world.hello()
    for _ in range(1 + policy_lag):
        assert world.judge(*message(world)).verdict == Verdict.ACCEPTED
    assert world.judge(*message(world)).verdict == Verdict.MALFORMED
    world.inbox.newest_version = 1
    assert world.judge(*message(world)).verdict == Verdict.ACCEPTED


def test_version_that_is_not_the_one_of_this_unroll_is_malformed_in_lockstep(world, message):
    for _ in range(5):
        world.judge(*message(world))
    for version in (0, 3, 5, 10):
        verdict = world.judge(*message(world, weights_version=version)).verdict
        assert verdict == Verdict.MALFORMED
    assert world.judge(*message(world, weights_version=4)).verdict == Verdict.ACCEPTED


def test_versions_only_grow_in_async_up_to_the_newest(message):
    world = World(policy_lag=None, newest_version=5)
    world.hello()
    verdicts = [
        world.judge(*message(world, weights_version=version)).verdict
        for version in (2, 1, 2, 4, 3, 6, 2**64 - 1, 5, 4, 5)
    ]
    A, M = Verdict.ACCEPTED, Verdict.MALFORMED
    assert verdicts == [A, M, A, A, M, M, M, A, M, A]


def test_actor_that_does_not_wait_for_credit_is_refused(message):
    """Else it could fill the learner's memory: in async nothing else bounds what is waiting."""
    world = World(policy_lag=None)
    world.hello()
    world.acknowledges = False
    headers = [message(world)[0]]
    for _ in range(WINDOW):
        headers.append(message(world)[0])
        assert world.judge(*message(world)).verdict == Verdict.ACCEPTED
    for _ in range(3):
        assert world.judge(*message(world)).verdict == Verdict.MALFORMED
    world.inbox.acknowledge(headers[0])
    assert world.judge(*message(world)).verdict == Verdict.ACCEPTED
    assert world.judge(*message(world)).verdict == Verdict.MALFORMED


def test_credit_of_a_former_life_is_not_that_of_the_next(message):
    world = World(policy_lag=None)
    world.hello()
    world.acknowledges = False
    old = message(world)[0]
    world.judge(*message(world))
    world.hello(incarnation=1, produced=(1, 3 * T))
    world.inbox.acknowledge(old._replace(sequence=40))
    assert world.inbox.actors[0].num_acknowledged == 0


@pytest.mark.parametrize(
    ("unrolls", "steps"),
    [
        (0, 0),  # less than what has arrived
        (0, 3 * T),
        (1, 0),
        (1, 3 * T - 1),
        (1, 3 * T + 1),
        (2, 3 * T),  # unrolls without steps
        (2, 5 * T),  # steps of another share
        (1 + WINDOW + 1, (1 + WINDOW + 1) * 3 * T),  # more than can be on the way
        (2**62, 3 * T),
        (2**64 - 1, 2**64 - 1),
        (1, 2**63),
    ],
)
@pytest.mark.parametrize("incarnation", [0, 1])
def test_greeting_with_counts_that_cannot_be_is_malformed(
    world, message, unrolls, steps, incarnation
):
    world.judge(*message(world))
    forged = world.hello(incarnation=incarnation, produced=(unrolls, steps))
    assert forged.verdict == Verdict.MALFORMED


@pytest.mark.parametrize("produced", [(1, 0), (WINDOW, 0), (1, T), (0, T), (1, 3 * T)])
def test_actor_that_never_had_a_share_cannot_have_produced_anything(produced):
    world = World()
    assert world.hello(produced=produced).verdict == Verdict.MALFORMED
    assert world.hello().verdict == Verdict.ACCEPTED


@pytest.mark.parametrize("lost", range(WINDOW + 1))
def test_what_died_with_a_former_life_is_told_and_accounted_for(world, message, lost):
    world.judge(*message(world))
    produced = 1 + lost, (1 + lost) * 3 * T
    judgement = world.hello(incarnation=1, produced=produced)
    assert judgement.verdict == Verdict.ACCEPTED and judgement.lost == lost
    ledger = world.inbox.account.ledger(with_actors=True)
    assert ledger.is_balanced
    assert ledger.unrolls.dropped.get("actor_died", 0) == lost


@pytest.mark.parametrize("size", [0, 1, 32, 47, 49, 1000])
def test_greeting_of_another_length_is_malformed(world, size):
    empty = Header(Kind.HELLO, RUN, 2, 0, *[0] * 7)
    payload = encode_greeting(Greeting(SCHEMA.digest, 0, 0)).ljust(size, b"\0")[:size]
    assert world.judge(empty, payload).verdict == Verdict.MALFORMED


def test_payload_of_another_length_is_malformed(world, message):
    header, payload = message(world)
    for wrong in (payload[:-1], payload + b"\0", b"", payload[:8], payload + payload):
        assert world.judge(header, wrong).verdict == Verdict.MALFORMED
    assert world.judge(header, payload).verdict == Verdict.ACCEPTED


@pytest.mark.parametrize("more", [{"num_finals": 1}, {"num_episodes": 1}], ids=str)
def test_more_ends_than_there_were_are_malformed_even_if_the_payload_has_them(world, message, more):
    header, payload = message(world)
    forged = header._replace(**{name: getattr(header, name) + n for name, n in more.items()})
    counts = forged.num_envs, forged.num_finals, forged.num_episodes
    longer = bytearray(SCHEMA.size_bytes(*counts))
    there, here = Unroll.view(SCHEMA, longer, *counts), fields_of(header, payload)
    for name, array in vars(here).items():
        getattr(there, name)[: len(array)] = array
    assert world.judge(forged, longer).verdict == Verdict.MALFORMED


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("action", NUM_ACTIONS),
        ("action", -1),
        ("action", np.iinfo(np.int32).min),
        ("final_t", T),
        ("final_t", -1),
        ("final_env", 3),
        ("final_env", -1),
        ("episode_t", T),
        ("episode_t", np.iinfo(np.int32).min),
        ("episode_env", 3),
        ("episode_env", -3),
    ],
)
def test_unroll_with_an_index_that_leads_outside_is_malformed(world, message, field, value):
    header, payload = message(world)
    forged = payload.copy()
    getattr(fields_of(header, forged), field).flat[-1] = value
    assert world.judge(header, forged).verdict == Verdict.MALFORMED
    assert world.judge(header, payload).verdict == Verdict.ACCEPTED


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("field", ["observation", "reward", "behavior_log_prob", "episode_return"])
def test_unroll_with_a_number_that_is_not_finite_is_refused_by_its_place(
    world, message, field, value
):
    header, payload = message(world)
    forged = payload.copy()
    getattr(fields_of(header, forged), field).flat[0] = value
    judgement = world.judge(header, forged)
    assert judgement.verdict == Verdict.NOT_FINITE
    assert judgement.reason.startswith(f"{field}[0")
    assert world.judge(header, payload).verdict == Verdict.ACCEPTED


@pytest.mark.parametrize("field", ["terminated", "truncated"])
def test_unroll_with_a_flag_that_is_neither_true_nor_false_is_malformed(world, message, field):
    header, payload = message(world)
    forged = payload.copy()
    flags = getattr(fields_of(header, forged), field)
    flags.view(np.uint8)[flags] = 2
    assert world.judge(header, forged).verdict == Verdict.MALFORMED
    assert world.judge(header, payload).verdict == Verdict.ACCEPTED


def test_unroll_whose_finals_do_not_match_its_truncations_is_malformed(world, message):
    header, payload = message(world)
    forged = payload.copy()
    unroll = fields_of(header, forged)
    assert len(unroll.final_t) > 1
    for rows in (unroll.final_t, unroll.final_env):  # the last place named twice, one never
        rows[0] = rows[-1]
    assert world.judge(header, forged).verdict == Verdict.MALFORMED
    assert world.judge(header, payload).verdict == Verdict.ACCEPTED


# Liars


def test_whole_conversation_that_is_replayed_changes_nothing(world, message):
    said: list[tuple[Header, bytes]] = []

    def say(header: Header, payload: bytes) -> None:
        said.append((header, payload))
        assert world.judge(header, payload).verdict == Verdict.ACCEPTED

    for incarnation in range(3):
        produced = Greeting(SCHEMA.digest, 4 * incarnation, 4 * incarnation * 3 * T)
        say(Header(Kind.HELLO, RUN, 0, incarnation, *[0] * 7), encode_greeting(produced))
        for seed in range(4):
            header, payload = message(world, seed=seed)
            say(header, bytes(payload))
    before = everything(world.inbox)
    verdicts = {world.judge(*each).verdict for each in (*said, *reversed(said))}
    stale, twice = Verdict.STALE_INCARNATION, Verdict.DUPLICATE
    assert verdicts == {stale, twice, Verdict.MALFORMED}  # the last hello's counts are old
    for header, payload in said:
        foreign = header._replace(run=OTHER_RUN)
        assert world.judge(foreign, payload).verdict == Verdict.FOREIGN_RUN
    assert everything(world.inbox) == before


@given(data=st.data())
def test_unroll_accepted_from_a_liar_holds_nothing_that_leads_outside(data):
    """Any bytes of the right length: what is accepted can be indexed with."""
    world = World()
    world.hello()
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
    follow(world.inbox.states.newest[:3], unroll)
    accepted = world.judge(Header(Kind.UNROLL, RUN, 0, 0, 0, 0, 0, 0, *counts), payload).unroll
    if accepted is not None:
        for kind, ends in (
            ("final", accepted.truncated),
            ("episode", accepted.terminated | accepted.truncated),
        ):
            rows = (getattr(accepted, f"{kind}_{name}").tolist() for name in ("t", "env"))
            wanted = {(int(t), int(i)) for t, i in zip(*ends.nonzero(), strict=True)}
            assert set(zip(*rows, strict=True)) == wanted
        assert accepted.action.min() >= 0 and accepted.action.max() < NUM_ACTIONS


numbers = st.one_of(st.integers(0, 4), st.sampled_from([2**16, 2**32 - 1]))
long_numbers = st.one_of(numbers, st.sampled_from([2**62, 2**63 - 1, 2**63, 2**64 - 1]))


@given(
    header=st.builds(
        Header,
        kind=st.integers(0, 3),
        run=st.sampled_from([RUN, RUN, RUN, OTHER_RUN]),
        actor=numbers,
        incarnation=numbers,
        sequence=long_numbers,
        unroll_index=long_numbers,
        weights_version=long_numbers,
        first_env=numbers,
        num_envs=numbers,
        num_finals=numbers,
        num_episodes=numbers,
    ),
    produced=st.tuples(long_numbers, long_numbers),
    payload=st.binary(max_size=600),
)
def test_header_of_any_numbers_changes_nothing_unless_it_is_accepted(header, produced, payload):
    """`World.judge` compares. Payloads of zeros have the length that the counts ask for."""
    world = World()
    world.hello(0, 1)
    world.hello(1)
    if header.kind == Kind.HELLO:
        payload = encode_greeting(Greeting(SCHEMA.digest, *produced))
    elif max(header[-6:]) < 100:
        payload = bytes(SCHEMA.size_bytes(*header[8:11]))
    verdict = world.judge(header, payload).verdict
    if header.kind != Kind.HELLO:
        assert verdict != Verdict.ACCEPTED  # zeros are no states that anything continues with
    assert world.inbox.account.ledger(with_actors=True).balance in (0, -sum(produced[:1]))


def test_statistics_count_every_verdict(world, message):
    header, payload = message(world)
    world.judge(*message(world, ahead=1))
    world.judge(header, payload)
    world.judge(header, payload)
    world.hello(2, digest=bytes(32))
    world.hello(2, run=OTHER_RUN)
    world.judge(*message(world, kind=9))
    header, payload = message(world)
    clocks_of(header, payload)["t"] += 1
    world.judge(header, payload)
    header, payload = message(world)
    fields_of(header, payload).reward[0] = np.nan
    world.judge(header, payload)
    world.hello(0, 1, produced=(1, 3 * T))
    world.hello(0, 0)
    world.inbox.count(Verdict.MALFORMED)
    statistics = world.inbox.statistics()
    assert statistics.verdicts == {
        "accepted": 4,
        "duplicate": 1,
        "out_of_order": 1,
        "foreign_run": 1,
        "malformed": 2,
        "stale_incarnation": 1,
        "wrong_schema": 1,
        "discontinuous": 1,
        "not_finite": 1,
    }
    assert set(statistics.verdicts) == {verdict.name.lower() for verdict in Verdict}
    assert "2 of 3 actors" in repr(world.inbox)


class Delivery(RuleBasedStateMachine):
    """Actors send in order, and again whatever they like; a network repeats and reorders.

    The twin is a list per actor: what has been accepted of it, over all of its lives, must be the
    unrolls 0, 1, 2, … and each once; and the account of what lives and lost must balance.
    """

    def __init__(self) -> None:
        super().__init__()
        self.world = World(newest_version=10**6)
        self.incarnation: dict[int, int] = {}
        self.accepted: dict[int, list[int]] = {}
        self.before_life: dict[int, int] = {}
        self.lost: dict[int, int] = {}

    def produced(self, actor: int) -> tuple[int, int]:
        unrolls = len(self.accepted[actor]) + self.lost[actor]
        return unrolls, unrolls * T * SHARES[actor][1]

    @rule(actor=st.integers(0, NUM_ACTORS - 1), lost=st.integers(0, WINDOW))
    def begin_life(self, actor, lost):
        is_first = actor not in self.incarnation
        self.incarnation[actor] = self.incarnation.get(actor, -1) + 1
        self.lost[actor] = self.lost.get(actor, 0) + (0 if is_first else lost)
        self.before_life[actor] = len(self.accepted.setdefault(actor, []))
        judgement = self.world.hello(actor, self.incarnation[actor], self.produced(actor))
        assert judgement.verdict == Verdict.ACCEPTED
        assert judgement.lost == (0 if is_first else lost)

    @precondition(lambda self: self.incarnation)
    @rule(data=st.data())
    def say_hello_again(self, data):
        actor = data.draw(st.sampled_from(sorted(self.incarnation)))
        before = everything(self.world.inbox)
        judgement = self.world.hello(actor, self.incarnation[actor], self.produced(actor))
        assert judgement.verdict == Verdict.ACCEPTED
        assert everything(self.world.inbox) == before

    @precondition(lambda self: self.incarnation)
    @rule(data=st.data(), ends=st.booleans())
    def deliver(self, data, ends):
        actor = data.draw(st.sampled_from(sorted(self.incarnation)))
        newest = self.incarnation[actor]
        incarnation = newest - data.draw(st.integers(0, min(1, newest)))
        done = self.accepted[actor]
        due = len(done) - self.before_life[actor]
        sequence = max(0, due + data.draw(st.integers(-2, WINDOW)))
        unroll_index = self.before_life[actor] + sequence
        first_env, num_envs = SHARES[actor]
        counts = (num_envs, 0, num_envs if ends else 0)
        payload = bytearray(SCHEMA.size_bytes(*counts))
        unroll = Unroll.view(SCHEMA, payload, *counts)
        unroll.terminated[2] = ends
        unroll.episode_t[:] = 2
        unroll.episode_env[:] = range(counts[2])
        follow(self.world.inbox.states.newest[first_env:][:num_envs], unroll)
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
            num_episodes=counts[2],
        )
        verdict = self.world.judge(header, payload).verdict
        if incarnation < newest:
            assert verdict == Verdict.STALE_INCARNATION
        elif sequence < due:
            assert verdict == Verdict.DUPLICATE
        elif sequence >= due + WINDOW:
            assert verdict == Verdict.MALFORMED
        elif sequence > due:
            assert verdict == Verdict.OUT_OF_ORDER
        else:
            assert verdict == Verdict.ACCEPTED
            done.append(unroll_index)

    @invariant()
    def every_unroll_has_had_its_effect_once(self):
        inbox = self.world.inbox
        for actor, done in self.accepted.items():
            first_env, num_envs = SHARES[actor]
            assert done == list(range(len(done)))
            assert (
                inbox.states.num_unrolls[first_env:][:num_envs].tolist() == [len(done)] * num_envs
            )
            assert inbox.actors[actor].next_sequence == len(done) - self.before_life[actor]
            inbox.account._now[:, actor] = self.produced(actor)  # as its host's page says
        ledger = inbox.account.ledger(with_actors=True)
        assert ledger.is_balanced
        assert ledger.unrolls.dropped.get("actor_died", 0) == sum(self.lost.values())


TestDelivery = Delivery.TestCase
TestDelivery.settings = settings(max_examples=40, stateful_step_count=30)
