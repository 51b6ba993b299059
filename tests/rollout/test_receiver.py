"""The learner's end of the stream, over real sockets, with fake actors and agents at the other."""

import hashlib
import logging
import os
import queue
import random
import resource
import subprocess
from collections.abc import Iterator

import numpy as np
import pytest
import zmq

from rollout import control
from rollout.assembler import FullBatch
from rollout.cluster import Cluster
from rollout.inbox import Inbox
from rollout.learners.unroll import Batch, Unroll, UnrollSchema
from rollout.outbox import Outbox, Refused
from rollout.plan import HostPlan
from rollout.receiver import (
    FleetFailed,
    FleetStopped,
    PhaseChanged,
    Receiver,
)
from rollout.wire import (
    ActorTimes,
    Answer,
    Header,
    Kind,
    Reply,
    decode_reply,
    encode_header,
    encode_reply,
    routing_id,
)

TIMEOUT_MS = 20_000


class ClusterWithoutAgent(Cluster):
    """Real sockets; in the agent's place a process that ends when its standard input is closed."""

    def _start_agent(self, log):
        return subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)


class Fleet:
    """A receiver, and fakes to talk to it."""

    def __init__(self, plan: HostPlan, log) -> None:
        self.plan = plan
        self.cluster = ClusterWithoutAgent(plan, log)
        self.context = zmq.Context()
        inbox = Inbox(
            plan.run,
            plan.schema,
            plan.num_envs,
            plan.num_actors,
            plan.network.num_actions,
            plan.policy_lag,
        )
        self.batches = [Batch(plan.schema, plan.num_envs) for _ in range(plan.policy_lag + 1)]
        self.receiver = Receiver(self.cluster, inbox, self.batches, queue.SimpleQueue())
        self.outboxes: list[Outbox] = []
        self.sockets: list[zmq.Socket] = []

    def close(self) -> None:
        for outbox in self.outboxes:
            outbox.close()
        self.context.destroy(linger=0)
        self.receiver.close()
        self.cluster.close()

    def event(self):
        return self.receiver.events.get(timeout=TIMEOUT_MS / 1000)

    def dealer(self, endpoint: str, name: bytes | None = None) -> zmq.Socket:
        socket = self.context.socket(zmq.DEALER)
        socket.set(zmq.LINGER, 0)
        socket.set(zmq.RCVTIMEO, TIMEOUT_MS)
        socket.set(zmq.SNDTIMEO, TIMEOUT_MS)
        if name is not None:
            socket.set(zmq.ROUTING_ID, name)
        socket.connect(endpoint)
        self.sockets.append(socket)
        return socket

    def stranger(self, name: bytes | None = None) -> zmq.Socket:
        """A socket that sends whatever it likes to where unrolls go."""
        return self.dealer(self.plan.unroll_endpoint, name)

    def agent(self, says_hello: bool = True) -> "Agent":
        agent = Agent(self.dealer(self.plan.control_endpoint))
        if says_hello:
            agent.say(control.Hello(self.plan.run))
        return agent

    def outbox(self, actor: int, incarnation: int = 0) -> Outbox:
        """A real actor's end, welcomed."""
        outbox = Outbox(self.plan, actor, incarnation)
        self.outboxes.append(outbox)
        assert outbox.wait_welcome() == 0
        return outbox

    def wait_judged(self, outbox: Outbox) -> list[int]:
        """The answers to all an actor has sent; a hello, always answered, comes behind it."""
        outbox._send(Kind.HELLO, self.plan.schema.digest)
        answers = []
        while (answer := outbox._receive()[0]) != Answer.WELCOME:
            answers.append(answer)
        return answers


class Agent:
    """A fake host agent."""

    def __init__(self, socket: zmq.Socket) -> None:
        self.socket = socket

    def say(self, message: control.ToLearner) -> None:
        self.socket.send(control.encode(message))

    def hear(self) -> tuple[control.ToAgent, list[bytes]]:
        message, *frames = self.socket.recv_multipart()
        return control.decode_to_agent(message), frames


@pytest.fixture
def make_fleet(make_plan, tmp_path) -> Iterator:
    fleets = []

    def make(**others) -> Fleet:
        fleets.append(Fleet(make_plan(**others), tmp_path / "run.log"))
        return fleets[-1]

    yield make
    for fleet in fleets:
        fleet.close()


@pytest.fixture
def fleet(make_fleet) -> Fleet:
    return make_fleet()


@pytest.fixture
def send(make_payload):
    """send(outbox, unroll_index): an unroll; returns its payload and counts."""

    def send(outbox: Outbox, unroll_index: int, seed: int = 0):
        payload, finals, episodes = make_payload(outbox._plan.schema, outbox.num_envs, seed)
        outbox.send(memoryview(payload), unroll_index, finals, episodes, ActorTimes(1, 2, 3))
        return payload, (finals, episodes)

    return send


def hello(plan: HostPlan, actor: int, **others) -> list[bytes]:
    first_env, num_envs = plan.share_of(actor)
    header = Header(Kind.HELLO, plan.run, actor, 0, 0, 0, 0, first_env, num_envs, 0, 0)
    digest = plan.schema.digest
    return [encode_header(header._replace(**others), digest), digest]


def reply_of(socket: zmq.Socket) -> tuple[int, int]:
    reply = decode_reply(socket.recv())
    return reply.answer, reply.number


# Unrolls


def test_unrolls_of_all_actors_become_a_batch_in_environment_order(fleet, send):
    fleet.receiver.publish(0, b"weights!")
    outboxes = [fleet.outbox(0), fleet.outbox(1)]
    sent = {n: send(outboxes[n], 0, seed=n) for n in (1, 0)}
    event = fleet.event()
    assert isinstance(event, FullBatch) and event.unroll_index == 0
    assert event.batch.is_full and event.batch.weights_version == 0
    for n, (payload, counts) in sent.items():
        first_env, num_envs = fleet.plan.share_of(n)
        unroll = Unroll.view(fleet.plan.schema, payload, num_envs, *counts)
        columns = slice(first_env, first_env + num_envs)
        np.testing.assert_array_equal(event.batch.observation[:, columns], unroll.observation)
        np.testing.assert_array_equal(event.batch.action[:, columns], unroll.action)
    places = list(zip(event.batch.episode_t, event.batch.episode_env, strict=True))
    assert places == sorted(places) and len(set(places)) == len(places)
    assert fleet.receiver.statistics().unrolls_put == [1, 1]


def test_unroll_is_acknowledged_when_it_is_in_a_batch(make_fleet, send):
    fleet = make_fleet(window=1)
    fleet.receiver.publish(0, b"weights!")
    outbox = fleet.outbox(0)
    for unroll_index in (0, 1):
        outbox.wait_credit()  # with a window of one: the one before is acknowledged
        send(outbox, unroll_index)
    outbox.wait_credit()
    assert fleet.receiver.statistics().unrolls_put == [2, 0]


def test_actor_that_is_ahead_does_not_change_the_order_of_batches(fleet, send):
    fleet.receiver.publish(0, b"weights!")
    ahead, behind = fleet.outbox(1), fleet.outbox(0)
    send(ahead, 0)
    send(ahead, 1)
    ahead.wait_credit()
    send(behind, 0)
    send(behind, 1)
    first, second = fleet.event(), fleet.event()
    assert [first.unroll_index, second.unroll_index] == [0, 1]
    assert first.batch is not second.batch


def test_recycled_batch_takes_the_next_unrolls(make_fleet, send):
    fleet = make_fleet(num_actors=1, num_envs=3, window=1)
    for version in (0, 1):
        fleet.receiver.publish(version, b"weights!")
    outbox = fleet.outbox(0)
    for unroll_index in (0, 1):
        send(outbox, unroll_index)
        outbox.wait_credit()
    first, second = fleet.event(), fleet.event()
    fleet.receiver.recycle(first.batch)
    payload, counts = send(outbox, 2, seed=5)
    third = fleet.event()
    outbox.wait_credit()
    assert third.unroll_index == 2 and third.batch is first.batch
    unroll = Unroll.view(fleet.plan.schema, payload, 3, *counts)
    np.testing.assert_array_equal(third.batch.observation, unroll.observation)
    assert fleet.receiver.statistics().unrolls_put == [3]
    assert second.batch.is_full


def test_unroll_that_arrives_twice_is_acknowledged_twice_and_put_once(fleet, make_payload):
    fleet.receiver.publish(0, b"weights!")
    plan = fleet.plan
    socket = fleet.stranger(routing_id(0, 0))
    socket.send_multipart(hello(plan, 0))
    assert reply_of(socket) == (Answer.WELCOME, 0)
    payload, *counts = make_payload(plan.schema, 3)
    header = Header(Kind.UNROLL, plan.run, 0, 0, 0, 0, 0, 0, 3, *counts)
    for _ in range(3):
        socket.send_multipart([encode_header(header, payload), payload])
        assert reply_of(socket) == (Answer.ACKNOWLEDGED, 0)
    assert fleet.receiver.statistics().unrolls_put == [1, 0]
    assert fleet.receiver.statistics().verdicts["duplicate"] == 2


def test_actor_with_another_schema_is_refused_and_says_why(make_fleet, make_plan):
    fleet = make_fleet()
    others = {**{f: getattr(fleet.plan, f) for f in fleet.plan.__struct_fields__}}
    others["schema"] = UnrollSchema(6, (4,), "<f4", (), "<i4", has_value=True)
    outbox = Outbox(HostPlan(**others), 0, 0)
    fleet.outboxes.append(outbox)
    with pytest.raises(Refused, match="wrong schema"):
        outbox.wait_welcome()


def hostile_messages(plan: HostPlan, make_payload) -> dict[str, list[bytes]]:
    """What no actor sends. Headers are sealed anew, so that only the content is wrong."""
    payload, *counts = make_payload(plan.schema, 3, 4)
    header = Header(Kind.UNROLL, plan.run, 0, 0, 0, 0, 0, 0, 3, *counts)
    good = [encode_header(header, payload), payload]

    def forged(**fields) -> list[bytes]:
        return [encode_header(header._replace(**fields), payload), payload]

    def with_content(name: str, value: int) -> list[bytes]:
        changed = bytearray(payload)
        array = getattr(Unroll.view(plan.schema, changed, 3, *counts), name)
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
        "a reply": [encode_reply(Reply(Answer.WELCOME, plan.run, 0))],
        "another run": forged(run=bytes(16)),
        "another actor": forged(actor=1),
        "no such actor": forged(actor=2**32 - 1),
        "no such kind": forged(kind=77),
        "from the future": forged(sequence=0, unroll_index=9, weights_version=8),
        "another share": forged(num_envs=2**32 - 1),
        "many finals": forged(num_finals=2**32 - 1),
        "many episodes": forged(num_episodes=2**31),
        "out of order": forged(sequence=1, unroll_index=1),
        "action": with_content("action", 2),
        "negative action": with_content("action", 2**32 - 1),
        "flag": with_content("terminated", 2),
        "other flag": with_content("truncated", 255),
        "final_t": with_content("final_t", plan.schema.unroll_length),
        "final_env": with_content("final_env", 3),
        "negative final_env": with_content("final_env", 2**32 - 1),
        "episode_t": with_content("episode_t", 2**31),
        "episode_env": with_content("episode_env", 1000),
    }


def test_hostile_messages_are_counted_and_change_nothing(fleet, make_payload, send):
    plan = fleet.plan
    fleet.receiver.publish(0, b"weights!")
    socket = fleet.stranger(routing_id(0, 0))
    socket.send_multipart(hello(plan, 0))
    assert reply_of(socket) == (Answer.WELCOME, 0)
    hostile = hostile_messages(plan, make_payload)
    for message in hostile.values():
        socket.send_multipart(message)
    # A hello is always answered: when its answer is there, all before it has been judged.
    socket.send_multipart(hello(plan, 0))
    while (answer := reply_of(socket))[0] != Answer.WELCOME:
        assert answer[0] == Answer.REFUSED
    statistics = fleet.receiver.statistics()
    assert statistics.unrolls_put == [0, 0]
    refused = sum(n for name, n in statistics.verdicts.items() if name not in ("accepted",))
    assert refused == len(hostile) + 1  # the second hello is a duplicate
    # The run goes on, as if nothing had been.
    payload, *counts = make_payload(plan.schema, 3, 4)
    header = Header(Kind.UNROLL, plan.run, 0, 0, 0, 0, 0, 0, 3, *counts)
    socket.send_multipart([encode_header(header, payload), payload])
    assert reply_of(socket) == (Answer.ACKNOWLEDGED, 0)
    send(fleet.outbox(1), 0)
    event = fleet.event()
    assert isinstance(event, FullBatch)
    np.testing.assert_array_equal(
        event.batch.action[:, :3], Unroll.view(plan.schema, payload, 3, *counts).action
    )


def test_strangers_without_an_actors_name_get_nowhere(fleet, make_payload, send):
    fleet.receiver.publish(0, b"weights!")
    for name in (None, b"x", b"A" * 200, routing_id(0, 1)):
        stranger = fleet.stranger(name)
        for message in hostile_messages(fleet.plan, make_payload).values():
            stranger.send_multipart(message)
        stranger.send_multipart(hello(fleet.plan, 0))
        while reply_of(stranger)[1] != 4:  # MALFORMED; the last of several replies
            pass
    for actor in (0, 1):
        send(fleet.outbox(actor), 0)
    assert isinstance(fleet.event(), FullBatch)


def test_message_longer_than_any_unroll_is_cut_off_by_the_socket(fleet, send):
    longest = fleet.plan.schema.max_size_bytes(3)
    stranger = fleet.stranger(routing_id(0, 0))
    stranger.send_multipart(hello(fleet.plan, 0))
    assert reply_of(stranger)[0] == Answer.WELCOME
    monitor = stranger.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    stranger.send_multipart([b"x" * 88, b"x" * (longest + 1)])
    assert monitor.poll(TIMEOUT_MS), "the connection was not closed"
    stranger.disable_monitor()
    monitor.close()
    assert "malformed" not in fleet.receiver.statistics().verdicts
    fleet.outbox(1)  # others are served


def test_flood_of_refused_messages_does_not_grow_the_learner(fleet, make_payload):
    fleet.receiver.publish(0, b"weights!")
    plan = fleet.plan
    socket = fleet.stranger(routing_id(0, 0))
    socket.send_multipart(hello(plan, 0))
    assert reply_of(socket) == (Answer.WELCOME, 0)
    payload, *counts = make_payload(plan.schema, 3)
    header = Header(Kind.UNROLL, plan.run, 0, 0, 5, 5, 4, 0, 3, *counts)
    message = [encode_header(header, payload), payload]

    def flood(count: int) -> None:
        for _ in range(count):
            socket.send_multipart(message)
            assert reply_of(socket)[0] == Answer.REFUSED

    flood(200)
    before = resident_bytes()
    flood(3000)
    assert resident_bytes() - before < 2e6, "3,000 refused messages of 700 bytes were kept"
    assert fleet.receiver.statistics().verdicts["malformed"] == 3200


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def test_reply_to_an_actor_that_is_gone_harms_nobody(fleet, make_payload, send):
    fleet.receiver.publish(0, b"weights!")
    for _ in range(20):
        stranger = fleet.stranger(routing_id(0, 0))
        for message in hostile_messages(fleet.plan, make_payload).values():
            stranger.send_multipart(message)
        stranger.close()
    for actor in (0, 1):
        send(fleet.outbox(actor, incarnation=1), 0)
    assert isinstance(fleet.event(), FullBatch)


def test_what_is_refused_is_logged_once_per_kind(fleet, make_payload, caplog):
    fleet.receiver.publish(0, b"weights!")
    socket = fleet.stranger(routing_id(0, 0))
    agent = fleet.agent(says_hello=False)
    with caplog.at_level(logging.WARNING, "rollout.receiver"):
        for _ in range(5):
            for message in hostile_messages(fleet.plan, make_payload).values():
                socket.send_multipart(message)
            agent.socket.send(b"\xc1 no message")
            agent.say(control.Hello(bytes(16)))
        socket.send_multipart(hello(fleet.plan, 0))
        while reply_of(socket)[0] != Answer.WELCOME:
            pass
        agent.say(control.Hello(fleet.plan.run))
        assert isinstance(agent.hear()[0], control.Announce)
    lines = [record.getMessage() for record in caplog.records]
    assert sum("control message" in line for line in lines) == 2
    assert sum("MALFORMED" in line for line in lines) == 1
    assert sum("FOREIGN_RUN" in line for line in lines) == 1
    assert len(lines) == len(set(lines)) <= 7


# Weights and agents


def test_agent_is_told_of_every_version_and_gets_what_it_pulls(fleet):
    agent = fleet.agent()
    fleet.receiver.publish(0, b"first weights...")
    fleet.receiver.publish(1, b"second")
    for version, weights in enumerate((b"first weights...", b"second")):
        announced, _ = agent.hear()
        assert announced == control.Announce(
            version, len(weights), hashlib.sha256(weights).digest()
        )
    for version, weights in ((1, b"second"), (0, b"first weights...")):
        agent.say(control.Pull(version))
        assert agent.hear() == (control.Weights(version), [weights])


def test_agent_that_comes_late_is_told_of_the_versions_that_are_kept(fleet):
    for version in range(10):
        fleet.receiver.publish(version, bytes([version]))
    agent = fleet.agent()
    announced = [agent.hear()[0].version for _ in range(4)]
    assert announced == [6, 7, 8, 9]


def test_impossible_control_messages_are_counted_and_change_nothing(fleet):
    fleet.receiver.publish(0, b"weights!")
    stranger = fleet.agent(says_hello=False)
    agent = fleet.agent()
    assert isinstance(agent.hear()[0], control.Announce)
    impossible = [b"", b"\xc1", b"x" * 1000, control.encode({"type": "Nobody"})]
    impossible += [
        control.encode(message)
        for message in (
            control.Hello(b""),
            control.Pull(1),
            control.Pull(-1),
            control.Stopped([1]),
            control.Stopped([1, 2, 3]),
            control.Stopped([1, -2]),
            control.ActorStarted(2, 1),
            control.ActorStarted(-1, 1),
            control.ActorExited(2, 1, 0),
            control.ActorError(-1, "error"),
        )
    ]
    for message in impossible:
        agent.socket.send(message)
    agent.socket.send_multipart([b"", b"", b""])
    # Whoever has not said hello is not listened to.
    strangers = [
        control.Hello(bytes(16)),
        control.Failed("everything"),
        control.ActorExited(0, 1, 0),
        control.Stopped([0, 0]),
        control.Pull(0),
    ]
    for message in strangers:
        stranger.say(message)
    stranger.say(control.Hello(fleet.plan.run))
    assert isinstance(stranger.hear()[0], control.Announce)  # so all before it has been judged
    agent.say(control.Pull(0))
    assert agent.hear() == (control.Weights(0), [b"weights!"])
    statistics = fleet.receiver.statistics()
    assert statistics.control_refused == len(impossible) + 1 + len(strangers)
    assert statistics.num_actors_alive == 0
    with pytest.raises(queue.Empty):
        fleet.receiver.events.get(block=False)


def test_actors_are_counted_and_the_death_of_one_is_told_with_its_reason(fleet):
    agent = fleet.agent()
    for actor in (0, 1):
        agent.say(control.ActorStarted(actor, pid=100 + actor))
    agent.say(control.ActorError(1, "ValueError: no such pole"))
    agent.say(control.ActorExited(1, pid=101, status=1))
    failed = fleet.event()
    assert isinstance(failed, FleetFailed)
    assert str(failed.error) == (
        "actor 1 (process 101) ended with status 1: ValueError: no such pole"
    )
    assert fleet.receiver.statistics().num_actors_alive == 1
    agent.say(control.ActorExited(0, pid=100, status=-9))
    assert str(fleet.event().error) == (
        "actor 0 (process 100) was killed by SIGKILL; run.log may say more"
    )


def test_end_of_the_agent_is_told(fleet):
    os.kill(fleet.cluster._agent.pid, 9)
    event = fleet.event()
    assert isinstance(event, FleetFailed) and "host agent" in str(event.error)


def test_stopping_asks_the_agents_and_brings_their_counts(fleet):
    agent = fleet.agent()
    agent.say(control.Ready(0.5))
    assert fleet.event() == PhaseChanged("compiled in 0.5 s; forking actors")
    fleet.receiver.stop_fleet()
    assert agent.hear()[0] == control.Stop()
    agent.say(control.ActorExited(0, pid=100, status=-9))  # no failure: it was asked for
    agent.say(control.Stopped([3, 4]))
    assert fleet.event() == FleetStopped([3, 4])


def test_stopping_without_an_agent_ends_at_once(fleet):
    fleet.receiver.stop_fleet()
    assert fleet.event() == FleetStopped([0, 0])


def test_agent_that_dies_while_stopping_keeps_nobody_waiting(fleet):
    agent = fleet.agent()
    agent.say(control.Ready(0.5))
    fleet.event()
    fleet.receiver.stop_fleet()
    assert agent.hear()[0] == control.Stop()
    os.kill(fleet.cluster._agent.pid, 9)
    assert fleet.event() == FleetStopped([])


def test_receiver_says_how_it_is_on_one_line(fleet, send):
    fleet.receiver.publish(0, b"weights!")
    outbox = fleet.outbox(0)
    send(outbox, 0)
    assert fleet.wait_judged(outbox) == [Answer.ACKNOWLEDGED]
    assert repr(fleet.receiver) == "Receiver(1 unrolls, 0 actors alive)"
