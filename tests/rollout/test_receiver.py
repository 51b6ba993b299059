"""The learner's end of the stream, over real sockets, with fake actors and agents at the other."""

import logging
import os
import random
import signal
from collections.abc import Iterator

import numpy as np
import pytest
import zmq

from rollout import control
from rollout.assembler import FullBatch
from rollout.errors import RunFailed
from rollout.events import FleetFailed, FleetStopped, PhaseChanged
from rollout.learners.unroll import Unroll, UnrollSchema
from rollout.outbox import Outbox, Refused
from rollout.plan import HostPlan
from rollout.wire import (
    Answer,
    Header,
    Kind,
    Reply,
    decode_reply,
    encode_header,
    encode_reply,
    routing_id,
)
from tests.rollout.conftest import wait_until
from tests.rollout.fakes import TIMEOUT_MS, WEIGHTS, Actor, Fleet, continued, hello_message


@pytest.fixture
def make_fleet(make_plan, tmp_path) -> Iterator:
    fleets = []

    def make(**others) -> Fleet:
        fleets.append(Fleet(make_plan(**others), tmp_path))
        return fleets[-1]

    yield make
    for fleet in fleets:
        fleet.close()


@pytest.fixture
def fleet(make_fleet) -> Fleet:
    """With the local host agent, and weights version 0."""
    return start(make_fleet())


def start(fleet: Fleet) -> Fleet:
    fleet.agent()
    fleet.receiver.publish(0, WEIGHTS)
    return fleet


def actors_of(fleet: Fleet) -> list[Actor]:
    """All actors, welcomed."""
    actors = [fleet.actor(number) for number in range(fleet.plan.num_actors)]
    for actor in actors:
        actor.join()
    return actors


def reply_of(socket: zmq.Socket) -> tuple[int, int]:
    reply = decode_reply(*socket.recv_multipart())
    return reply.answer, reply.number


def wait_accepted(fleet: Fleet, unrolls: int) -> None:
    """Until so many unrolls have been accepted."""
    what = f"{unrolls} accepted unrolls"
    wait_until(lambda: fleet.inbox.account._accepted[0].sum() >= unrolls, 20, what)
    assert fleet.inbox.account._accepted[0].sum() == unrolls


# Unrolls


def test_unrolls_of_all_actors_become_a_batch_in_environment_order(fleet, make_payload):
    actors = actors_of(fleet)
    sent = {n: actors[n].send(make_payload, seed=n) for n in (1, 0)}
    full = fleet.event(FullBatch)
    assert full.batch.is_full and set(full.batch.weights_version) == {0}
    assert full.batch.env.tolist() == list(range(6))
    for n, (payload, counts) in sent.items():
        unroll = Unroll.view(fleet.plan.schema, payload, 3, *counts)
        columns = slice(3 * n, 3 * n + 3)
        np.testing.assert_array_equal(full.batch.observation[:, columns], unroll.observation)
        np.testing.assert_array_equal(full.batch.action[:, columns], unroll.action)
        np.testing.assert_array_equal(full.batch.env_state[columns], unroll.env_state)
    places = list(zip(full.batch.episode_t, full.batch.episode_env, strict=True))
    assert places == sorted(places) and len(set(places)) == len(places)


def test_unroll_is_acknowledged_when_it_is_in_a_batch(make_fleet, make_payload):
    actors = actors_of(start(make_fleet(window=1)))
    for _ in range(2):
        actors[0].outbox.wait_credit()  # with a window of one: the one before is acknowledged
        actors[0].send(make_payload)
    actors[0].outbox.wait_credit()


def test_unroll_that_waits_for_room_in_a_batch_is_not_acknowledged(make_fleet, make_payload):
    fleet = start(make_fleet(mode="async", num_actors=1, window=1))
    actor = actors_of(fleet)[0]
    for _ in range(3):  # two batches; the third unroll has to wait
        actor.outbox.wait_credit()
        actor.send(make_payload, version=0)
    wait_accepted(fleet, 3)
    assert not actor.outbox._has_answers()
    fleet.receiver.trained(fleet.event(FullBatch).batch)
    actor.outbox.wait_credit()


def test_actor_that_is_ahead_does_not_change_the_order_of_batches(fleet, make_payload):
    behind, ahead = actors_of(fleet)
    for _ in range(2):
        ahead.send(make_payload)
    wait_accepted(fleet, 2)
    for _ in range(2):
        behind.send(make_payload)
    first, second = fleet.event(FullBatch), fleet.event(FullBatch)
    assert first.batch is not second.batch
    np.testing.assert_array_equal(first.batch.weights_version, 0)
    assert fleet.inbox.states.num_unrolls.tolist() == [2] * 6


def test_recycled_batch_takes_the_next_unrolls(make_fleet, make_payload):
    fleet = start(make_fleet(num_actors=1, num_envs=3, window=1))
    actor = actors_of(fleet)[0]
    for _ in range(2):
        actor.send(make_payload)
        actor.outbox.wait_credit()
    first, second = fleet.event(FullBatch), fleet.event(FullBatch)
    fleet.receiver.trained(first.batch)
    fleet.receiver.publish(1, WEIGHTS)
    fleet.receiver.snapshot()  # an answer: all that was asked before has been done
    payload, counts = actor.send(make_payload, seed=5)
    third = fleet.event(FullBatch)
    assert third.batch is first.batch and second.batch.is_full
    unroll = Unroll.view(fleet.plan.schema, payload, 3, *counts)
    np.testing.assert_array_equal(third.batch.observation, unroll.observation)


def test_account_balances_with_unrolls_in_every_place(fleet, make_payload):
    """One trained on, one in a batch that is open, one produced and not sent."""
    agent_page = fleet.receiver._hosts._hosts
    actors = actors_of(fleet)
    for actor in actors:
        actor.send(make_payload)
    fleet.receiver.trained(fleet.event(FullBatch).batch)
    actors[0].send(make_payload)
    wait_accepted(fleet, 3)
    (host,) = agent_page.values()
    for slot, unrolls in enumerate((3, 1)):
        host.page.slots["produced"][slot] = unrolls
        host.page.slots["produced_steps"][slot, unrolls % 2] = unrolls * 15
    ledger = fleet.ledger()
    assert ledger.is_balanced
    assert [actor.trained for actor in ledger.actors] == [1, 1]
    assert [actor.in_flight for actor in ledger.actors] == [2, 0]
    assert (ledger.unrolls.produced, ledger.steps.in_flight) == (4, 30)


def test_successor_goes_on_from_the_newest_states(fleet, make_payload):
    first = actors_of(fleet)[0]
    first.send(make_payload)
    wait_accepted(fleet, 1)
    first.close()
    successor = fleet.actor(0, incarnation=1, produced=(2, 30))  # one was lost
    share = successor.join()
    assert (share.first_env, share.num_envs, share.first_unroll) == (0, 3, 1)
    assert share.states == first.states.tobytes()
    successor.send(make_payload)
    wait_accepted(fleet, 2)
    assert fleet.inbox.account.ledger().unrolls.dropped == {"actor_died": 1}


# What is refused


def test_unroll_that_arrives_twice_is_acknowledged_twice_and_put_once(fleet, make_payload):
    socket = fleet.stranger(routing_id(0, 0))
    socket.send_multipart(hello_message(fleet.plan))
    assert reply_of(socket) == (Answer.WELCOME, 0)
    message = good_message(fleet, make_payload)
    for _ in range(3):
        socket.send_multipart(message)
        assert reply_of(socket) == (Answer.ACKNOWLEDGED, 0)
    wait_accepted(fleet, 1)
    assert fleet.receiver.statistics().verdicts["duplicate"] == 2


def test_actor_with_another_schema_is_refused_and_says_why(fleet):
    others = {f: getattr(fleet.plan, f) for f in fleet.plan.__struct_fields__}
    others["schema"] = UnrollSchema(6, (4,), "<f4", (), "<i4", has_value=True)
    outbox = Outbox(HostPlan(**others), 0, 0)
    outbox._socket.set(zmq.RCVTIMEO, TIMEOUT_MS)
    try:
        with pytest.raises(Refused, match="wrong schema"):
            outbox.wait_assignment((0, 0))
    finally:
        outbox.close()


def good_message(fleet: Fleet, make_payload) -> list[bytes]:
    """Actor 0's first unroll."""
    schema = fleet.plan.schema
    payload, *counts = continued(
        schema, make_payload(schema, 3, 4), fleet.inbox.states.newest[:3].copy()
    )
    header = Header(Kind.UNROLL, fleet.plan.run, 0, 0, 0, 0, 0, 0, 3, *counts)
    return [encode_header(header, payload), payload]


def hostile_messages(fleet: Fleet, make_payload) -> dict[str, list[bytes]]:
    """What no actor sends. Headers are sealed anew, so that only the content is wrong."""
    schema, run = fleet.plan.schema, fleet.plan.run
    payload, *counts = continued(
        schema, make_payload(schema, 3, 4), fleet.inbox.states.newest[:3].copy()
    )
    header = Header(Kind.UNROLL, run, 0, 0, 0, 0, 0, 0, 3, *counts)
    good = [encode_header(header, payload), payload]

    def forged(**fields) -> list[bytes]:
        return [encode_header(header._replace(**fields), payload), payload]

    def with_content(name: str, value: int) -> list[bytes]:
        changed = bytearray(payload)
        array = getattr(Unroll.view(schema, changed, 3, *counts), name)
        array.view(f"u{array.itemsize}").flat[0] = value
        return [encode_header(header, bytes(changed)), bytes(changed)]

    noise = random.Random(7)
    return {
        "no frame": [b""],
        "one frame": good[:1],
        "three frames": [*good, b""],
        "five frames": [*good, *good, b""],
        "empty frames": [b"", b""],
        "noise": [noise.randbytes(88), noise.randbytes(200)],
        "noise for a payload": [good[0], noise.randbytes(len(payload))],
        "short header": [good[0][:-1], payload],
        "short payload": [good[0], payload[:-1]],
        "short payload, sealed": [encode_header(header, payload[:-8]), payload[:-8]],
        "empty payload, sealed": [encode_header(header, b""), b""],
        "a reply": [encode_reply(Reply(Answer.WELCOME, run, 0))],
        "another run": forged(run=bytes(16)),
        "another actor": forged(actor=1),
        "no such actor": forged(actor=2**32 - 1),
        "no such kind": forged(kind=77),
        "a life to come": forged(incarnation=1),
        "from the future": forged(sequence=0, unroll_index=9, weights_version=8),
        "another share": forged(num_envs=2**32 - 1),
        "many finals": forged(num_finals=2**32 - 1),
        "many episodes": forged(num_episodes=2**31),
        "out of order": forged(sequence=1, unroll_index=1),
        "beyond the window": forged(sequence=2, unroll_index=2),
        "action": with_content("action", 2),
        "negative action": with_content("action", 2**32 - 1),
        "flag": with_content("terminated", 2),
        "other flag": with_content("truncated", 255),
        "final_t": with_content("final_t", schema.unroll_length),
        "final_env": with_content("final_env", 3),
        "negative final_env": with_content("final_env", 2**32 - 1),
        "episode_t": with_content("episode_t", 2**31),
        "episode_env": with_content("episode_env", 1000),
        "another environment's state": with_content("env_state", 1),
        "much produced": [hello_message(fleet.plan)[0], b"x" * 48],
    }


def test_hostile_messages_are_counted_and_change_nothing(fleet, make_payload):
    socket = fleet.stranger(routing_id(0, 0))
    socket.send_multipart(hello_message(fleet.plan))
    assert reply_of(socket) == (Answer.WELCOME, 0)
    before = fleet.everything()
    hostile = hostile_messages(fleet, make_payload)
    for message in hostile.values():
        socket.send_multipart(message)
    # A hello is always answered: when its answer is there, all before it has been judged.
    socket.send_multipart(hello_message(fleet.plan))
    while (answer := reply_of(socket))[0] != Answer.WELCOME:
        assert answer[0] == Answer.REFUSED
    assert fleet.refused() == len(hostile)
    assert fleet.receiver.statistics().verdicts["accepted"] == 2
    assert fleet.everything() == before
    # The run goes on, as if nothing had been.
    socket.send_multipart(good_message(fleet, make_payload))
    assert reply_of(socket) == (Answer.ACKNOWLEDGED, 0)
    other = fleet.actor(1)
    other.join()
    other.send(make_payload)
    full = fleet.event(FullBatch)
    np.testing.assert_array_equal(full.batch.env_state[:3], fleet.inbox.states.newest[:3])


def test_strangers_without_an_actors_name_get_nowhere(fleet, make_payload):
    before = fleet.everything()
    count = 0
    for name in (None, b"x", b"A" * 200, routing_id(7, 0)):
        stranger = fleet.stranger(name)
        hostile = [*hostile_messages(fleet, make_payload).values(), hello_message(fleet.plan)]
        for message in hostile:
            stranger.send_multipart(message)
        count += len(hostile)
    wait_until(lambda: fleet.refused() == count, 20, f"{count} refused messages")
    assert "accepted" not in fleet.receiver.statistics().verdicts
    assert fleet.everything() == before
    for actor in actors_of(fleet):
        actor.send(make_payload)
    fleet.event(FullBatch)


def test_message_longer_than_any_unroll_is_cut_off_by_the_socket(fleet):
    longest = fleet.plan.schema.max_size_bytes(fleet.plan.num_envs)
    stranger = fleet.stranger(routing_id(0, 0))
    stranger.send_multipart(hello_message(fleet.plan))
    assert reply_of(stranger)[0] == Answer.WELCOME
    with stranger.get_monitor_socket(zmq.EVENT_DISCONNECTED) as monitor:
        stranger.send_multipart([b"x" * 88, b"x" * (longest + 1)])
        assert monitor.poll(TIMEOUT_MS), "the connection was not closed"
        stranger.disable_monitor()
    assert fleet.refused() == 0
    fleet.actor(1).join()  # others are served


def test_flood_without_reading_does_not_pile_up_answers(fleet, caplog):
    """A peer that reads nothing: its answers fill what is kept for it, and are then dropped."""
    socket = fleet.stranger(b"deaf")
    socket.set(zmq.RCVHWM, 1)
    with caplog.at_level(logging.WARNING, "rollout.receiver"):
        for sent in range(1, 100_000):
            socket.send_multipart(hello_message(fleet.plan))
            if sent % 1000 == 0 and "does not read" in caplog.text:
                break
    assert "b'deaf' does not read its answers" in caplog.text
    for actor in (0, 1):
        fleet.actor(actor).join()


def test_reply_to_an_actor_that_is_gone_harms_nobody(fleet, make_payload):
    for _ in range(20):
        stranger = fleet.stranger(routing_id(0, 0))
        for message in hostile_messages(fleet, make_payload).values():
            stranger.send_multipart(message)
        stranger.close()
    for number in (0, 1):
        actor = fleet.actor(number, incarnation=1)
        actor.join()
        actor.send(make_payload)
    fleet.event(FullBatch)


def test_what_is_refused_is_logged_once_per_kind(fleet, make_payload, caplog):
    socket = fleet.stranger(routing_id(0, 0))
    agent = fleet.joining_agent()
    with caplog.at_level(logging.WARNING, "rollout"):
        for _ in range(5):
            for message in hostile_messages(fleet, make_payload).values():
                socket.send_multipart(message)
            agent.socket.send(b"\xc1 no message")
            agent.say(control.Hello(bytes(16), 1, 1, "/"))
        agent.join()
        socket.send_multipart(hello_message(fleet.plan))
        while reply_of(socket)[0] != Answer.WELCOME:
            pass
    lines = [r.getMessage() for r in caplog.records if "refused" in r.getMessage()]
    assert sum("control message" in line for line in lines) == 2
    assert sum("MALFORMED" in line for line in lines) == 1
    assert sum("FOREIGN_RUN" in line for line in lines) == 1
    assert len(lines) == len(set(lines)) <= 8
    assert fleet.receiver.statistics().control_refused == 10


# The end


def test_stopping_asks_the_agents_and_brings_their_counts(make_fleet):
    fleet = make_fleet()
    agent = fleet.agent()
    agent.say(control.Ready(0.5))
    assert fleet.event() == PhaseChanged("compiled in 0.5 s; forking actors")
    agent.start(0)
    fleet.receiver.stop_fleet()
    agent.hear(control.Stop)
    agent.end(0, status=-signal.SIGKILL)  # no failure: it was asked for
    agent.say(control.Stopped([3, 4], [45, 60]))
    assert fleet.event() == FleetStopped()
    ledger = fleet.receiver.end_account()
    assert (ledger.unrolls.produced, ledger.steps.produced) == (7, 105)
    assert fleet.receiver.statistics().actor_restarts == 0


def test_stopping_without_an_agent_ends_at_once(make_fleet):
    fleet = make_fleet()
    fleet.receiver.stop_fleet()
    assert fleet.event() == FleetStopped()


def test_agent_that_dies_while_stopping_keeps_nobody_waiting(make_fleet):
    fleet = make_fleet()
    agent = fleet.agent()
    fleet.receiver.stop_fleet()
    agent.hear(control.Stop)
    os.kill(fleet.cluster.agent_pid, signal.SIGKILL)
    assert fleet.event() == FleetStopped()


def test_what_was_not_trained_on_at_the_end_is_dropped_by_reason(fleet, make_payload):
    for actor in actors_of(fleet):
        actor.send(make_payload)
    fleet.event(FullBatch)
    ledger = fleet.receiver.end_account()
    assert ledger.unrolls.dropped == {"run_ended": 2}
    assert ledger.steps.dropped == {"run_ended": 30}


def test_error_in_the_thread_fails_the_run_and_keeps_nobody_waiting(make_fleet):
    fleet = make_fleet()

    def fail(*_):
        raise KeyError("a bug")

    fleet.receiver._request(fail)
    failed = fleet.event(FleetFailed)
    assert isinstance(failed.error, RunFailed) and "a bug" in str(failed.error)
    with pytest.raises(RunFailed, match="the receiver has failed"):
        fleet.receiver.snapshot()


def test_receiver_says_how_it_is_on_one_line(fleet, make_payload):
    actors_of(fleet)[0].send(make_payload)
    wait_accepted(fleet, 1)
    text = repr(fleet.receiver)
    assert text.startswith("Receiver(Inbox(2 of 2 actors") and "\n" not in text
