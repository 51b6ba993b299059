"""An actor's end of the stream, against a ROUTER that answers what the test says."""

from collections.abc import Iterator

import pytest
import zmq

from rollout.inbox import Verdict
from rollout.outbox import Outbox, Refused, Stopwatch
from rollout.wire import (
    ActorTimes,
    Answer,
    Header,
    Kind,
    Reply,
    decode_header,
    encode_reply,
    routing_id,
)


class Learner:
    """The other end: hears messages, answers by hand."""

    def __init__(self, plan) -> None:
        self.plan = plan
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.ROUTER)
        self.socket.set(zmq.LINGER, 0)
        self.socket.set(zmq.RCVTIMEO, 20_000)
        self.socket.bind(plan.unroll_endpoint)

    def hear(self) -> tuple[bytes, Header, bytes]:
        sender, header, payload = self.socket.recv_multipart()
        return sender, decode_header(header, payload), payload

    def has_mail(self, timeout_ms: int = 50) -> bool:
        return bool(self.socket.poll(timeout_ms))

    def answer(self, outbox: Outbox, answer: int, number: int, run: bytes | None = None) -> None:
        reply = encode_reply(Reply(answer, self.plan.run if run is None else run, number))
        name = routing_id(outbox._actor, outbox._incarnation)
        self.socket.send_multipart([name, reply])


@pytest.fixture
def learner(make_plan) -> Iterator[Learner]:
    learner = Learner(make_plan(num_envs=7, num_actors=2, window=2))
    yield learner
    learner.context.destroy(linger=0)


@pytest.fixture
def outbox(learner) -> Iterator[Outbox]:
    """Actor 1 in its third life, welcomed at unroll 5."""
    outbox = Outbox(learner.plan, actor=1, incarnation=2)
    outbox._socket.set(zmq.RCVTIMEO, 20_000)
    outbox._send(Kind.HELLO, learner.plan.schema.digest)
    learner.hear()
    yield outbox
    outbox.close()


def test_hello_carries_the_schema_and_its_answer_the_unroll_to_begin_with(learner):
    outbox = Outbox(learner.plan, actor=1, incarnation=2)
    outbox._socket.set(zmq.RCVTIMEO, 20_000)
    outbox._send(Kind.HELLO, learner.plan.schema.digest)
    sender, header, payload = learner.hear()
    assert sender == routing_id(1, 2)
    assert (header.kind, header.actor, header.incarnation) == (Kind.HELLO, 1, 2)
    assert payload == learner.plan.schema.digest
    learner.answer(outbox, Answer.WELCOME, 5)
    assert outbox.wait_welcome() == 5
    outbox.close()


def test_unrolls_carry_their_numbers(learner, outbox):
    times = ActorTimes(1, 2, 3)
    for sequence, unroll_index in enumerate((5, 6)):
        outbox.send(memoryview(b"payload"), unroll_index, 3, 4, times)
        _, header, payload = learner.hear()
        assert payload == b"payload"
        assert (header.kind, header.run) == (Kind.UNROLL, learner.plan.run)
        assert (header.sequence, header.unroll_index) == (sequence, unroll_index)
        assert header.weights_version == unroll_index - 1
        assert (header.first_env, header.num_envs) == (4, 3)
        assert (header.num_finals, header.num_episodes) == (3, 4)
        assert header.times == times


def test_payload_may_be_overwritten_once_it_is_sent(learner, outbox):
    buffer = bytearray(100_000)
    outbox.send(memoryview(buffer), 0, 0, 0, ActorTimes(0, 0, 0))
    buffer[:] = b"x" * len(buffer)
    assert learner.hear()[2] == bytes(100_000)


def test_window_bounds_what_is_unacknowledged(learner, outbox):
    for sequence in range(2):
        outbox.wait_credit()
        outbox.send(memoryview(b""), sequence, 0, 0, ActorTimes(0, 0, 0))
    outbox._socket.set(zmq.RCVTIMEO, 50)
    with pytest.raises(zmq.Again):  # it would wait for good
        outbox.wait_credit()
    outbox._socket.set(zmq.RCVTIMEO, 20_000)
    for _ in range(2):
        learner.hear()
    learner.answer(outbox, Answer.ACKNOWLEDGED, 0)
    outbox.wait_credit()
    assert "2 sent, 1 unacknowledged" in repr(outbox)


@pytest.mark.parametrize("verdict", [Verdict.STALE_INCARNATION, Verdict.WRONG_SCHEMA])
def test_refusal_names_the_verdict(learner, outbox, verdict):
    learner.answer(outbox, Answer.REFUSED, verdict)
    with pytest.raises(Refused, match=verdict.name.lower().replace("_", " ")):
        outbox.wait_welcome()


def test_answer_from_another_run_is_not_taken(learner, outbox):
    learner.answer(outbox, Answer.WELCOME, 0, run=bytes(16))
    with pytest.raises(Refused, match="another run"):
        outbox.wait_welcome()


def test_damaged_answer_is_not_taken(learner, outbox):
    reply = bytearray(encode_reply(Reply(Answer.WELCOME, learner.plan.run, 0)))
    reply[30] ^= 1
    learner.socket.send_multipart([routing_id(1, 2), bytes(reply)])
    with pytest.raises(Refused, match="not a reply"):
        outbox.wait_welcome()


def test_hello_before_there_is_a_learner_arrives_when_there_is_one(make_plan):
    plan = make_plan()
    outbox = Outbox(plan, 0, 0)
    learner = Learner(plan)
    outbox._socket.set(zmq.SNDTIMEO, 20_000)
    outbox._send(Kind.HELLO, plan.schema.digest)
    assert learner.hear()[1].kind == Kind.HELLO
    outbox.close()
    learner.context.destroy(linger=0)


def test_stopwatch_tells_laps_that_fit_the_header():
    stopwatch = Stopwatch()
    stopwatch._since -= 3_000_000
    assert 3000 <= stopwatch.lap_us() < 1_000_000
    stopwatch._since -= 10**16
    assert stopwatch.lap_us() == 2**32 - 1
