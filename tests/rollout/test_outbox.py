"""An actor's end of the stream, against a ROUTER that answers what the test says."""

from collections.abc import Iterator

import pytest
import zmq

from rollout.outbox import Assignment, Outbox, Refused, Stopwatch
from rollout.wire import (
    ActorTimes,
    Answer,
    Greeting,
    Header,
    Kind,
    Reply,
    Verdict,
    decode_greeting,
    decode_header,
    encode_reply,
    routing_id,
)

NO_TIMES = ActorTimes(0, 0, 0)


class Learner:
    """The other end: hears messages, answers by hand."""

    def __init__(self, plan) -> None:
        self.plan = plan
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.ROUTER)
        self.socket.set(zmq.LINGER, 0)
        self.socket.set(zmq.RCVTIMEO, 20_000)
        self.socket.set(zmq.ROUTER_MANDATORY, 1)
        self.socket.bind(plan.unroll_endpoint)

    def hear(self) -> tuple[bytes, Header, bytes]:
        sender, header, payload = self.socket.recv_multipart()
        return sender, decode_header(header, payload), payload

    def answer(
        self, outbox: Outbox, answer: int, *numbers: int, payload: bytes = b"", **others
    ) -> None:
        reply = Reply(answer, self.plan.run, *numbers)._replace(**others)
        self.say(outbox, encode_reply(reply, payload), payload)

    def say(self, outbox: Outbox, *frames: bytes) -> None:
        name = routing_id(outbox._actor, outbox._incarnation)
        self.socket.send_multipart([name, *frames])

    def states(self, num_envs: int, byte: int = 7) -> bytes:
        return bytes([byte]) * (num_envs * self.plan.schema.state_bytes)


@pytest.fixture
def learner(make_plan) -> Iterator[Learner]:
    learner = Learner(make_plan(num_envs=7, num_actors=2, window=2))
    yield learner
    learner.context.destroy(linger=0)


@pytest.fixture
def outbox(learner) -> Iterator[Outbox]:
    """Actor 1 in its third life: the learner knows it, and has not answered."""
    outbox = Outbox(learner.plan, actor=1, incarnation=2)
    outbox._socket.set(zmq.RCVTIMEO, 20_000)
    outbox._send(Kind.HELLO, b"")
    learner.hear()
    yield outbox
    outbox.close()


@pytest.fixture
def welcomed(learner, outbox) -> Outbox:
    """The same, with environments 4, 5 and 6 from unroll 5 on."""
    learner.answer(outbox, Answer.WELCOME, 5, 1, 4, 3)
    outbox.wait_assignment((0, 0))
    learner.hear()
    return outbox


def send(outbox: Outbox, payload: bytes = b"payload", unroll_index: int = 5) -> None:
    outbox.send(memoryview(payload), unroll_index, 4, 1, 2, NO_TIMES)


def would_wait(outbox: Outbox) -> bool:
    """Whether it has no credit, once all answers that are there have been read."""
    outbox._socket.set(zmq.RCVTIMEO, 50)
    try:
        outbox.wait_credit()
    except zmq.Again:
        return True
    finally:
        outbox._socket.set(zmq.RCVTIMEO, 20_000)
    return False


# Shares


def test_hello_carries_the_schema_and_what_was_produced(learner, outbox):
    learner.answer(outbox, Answer.WELCOME, 5, 1, 4, 3)
    outbox.wait_assignment((17, 255))
    sender, header, payload = learner.hear()
    assert sender == routing_id(1, 2)
    assert (header.kind, header.run) == (Kind.HELLO, learner.plan.run)
    assert (header.actor, header.incarnation) == (1, 2)
    assert decode_greeting(payload) == Greeting(learner.plan.schema.digest, 17, 255)


@pytest.mark.parametrize("num_states", [0, 3])
def test_welcome_brings_a_share_and_its_states(learner, outbox, num_states):
    states = learner.states(num_states)
    learner.answer(outbox, Answer.WELCOME, 5, 9, 4, 3, payload=states)
    assert outbox.wait_assignment((0, 0)) == Assignment(9, 4, 3, 5, states)


def test_answers_to_earlier_unrolls_are_no_share(learner, welcomed):
    send(welcomed)
    learner.answer(welcomed, Answer.ACKNOWLEDGED, 0)
    learner.answer(welcomed, Answer.WELCOME, 6, 2, 0, 2)
    assert welcomed.wait_assignment((1, 15)).cut == 2
    assert "1 sent, 0 unacknowledged" in repr(welcomed)


@pytest.mark.parametrize(
    ("first_env", "num_envs", "num_bytes"),
    [
        (0, 0, 0),
        (0, 8, 0),
        (5, 3, 0),
        (7, 1, 0),
        (2**32 - 1, 1, 0),
        (0, 2**32 - 1, 0),
        (2**32 - 1, 2**32 - 1, 0),
        (4, 3, 1),
        (4, 3, -1),
    ],
)
def test_share_that_cannot_be_is_not_taken(learner, outbox, first_env, num_envs, num_bytes):
    """Compiled code would write wherever it says. num_bytes: more or less than the states have."""
    states = learner.states(3) + b"x" if num_bytes > 0 else learner.states(3)[:num_bytes]
    learner.answer(outbox, Answer.WELCOME, 5, 1, first_env, num_envs, payload=states)
    with pytest.raises(Refused, match=f"a share of {num_envs} environments from {first_env} on"):
        outbox.wait_assignment((0, 0))


def test_unrolls_are_of_the_newest_share(learner, welcomed):
    send(welcomed)
    assert learner.hear()[1][7:9] == (4, 3)
    learner.answer(welcomed, Answer.WELCOME, 6, 2, 0, 2)
    welcomed.wait_assignment((1, 15))
    learner.hear()
    send(welcomed, unroll_index=6)
    header = learner.hear()[1]
    assert (header.first_env, header.num_envs) == (0, 2)
    assert (header.sequence, header.unroll_index) == (1, 6)


# Unrolls


def test_unrolls_carry_their_numbers(learner, welcomed):
    times = ActorTimes(1, 2, 3)
    for sequence, unroll_index in enumerate((5, 6)):
        welcomed.send(memoryview(b"payload"), unroll_index, 4, 3, 8, times)
        _, header, payload = learner.hear()
        assert payload == b"payload"
        assert (header.kind, header.run) == (Kind.UNROLL, learner.plan.run)
        assert (header.sequence, header.unroll_index) == (sequence, unroll_index)
        assert header.weights_version == 4
        assert (header.first_env, header.num_envs) == (4, 3)
        assert (header.num_finals, header.num_episodes) == (3, 8)
        assert header.times == times


def test_payload_may_be_overwritten_once_it_is_sent(learner, welcomed):
    buffer = bytearray(100_000)
    welcomed.send(memoryview(buffer), 5, 4, 0, 0, NO_TIMES)
    buffer[:] = b"x" * len(buffer)
    assert learner.hear()[2] == bytes(100_000)


# Credit


def test_window_bounds_what_is_unacknowledged(learner, welcomed):
    for _ in range(2):
        welcomed.wait_credit()
        send(welcomed)
    assert would_wait(welcomed)
    learner.answer(welcomed, Answer.ACKNOWLEDGED, 0)
    welcomed.wait_credit()
    assert "2 sent, 1 unacknowledged" in repr(welcomed)


def test_acknowledgement_is_of_all_unrolls_before_it_and_counts_once(learner, welcomed):
    for _ in range(2):
        send(welcomed)
    for _ in range(3):
        learner.answer(welcomed, Answer.ACKNOWLEDGED, 1)
    learner.answer(welcomed, Answer.ACKNOWLEDGED, 0)  # an old one changes nothing
    for _ in range(2):
        welcomed.wait_credit()
        send(welcomed)
    assert would_wait(welcomed)


def test_credit_goes_on_from_share_to_share(learner, welcomed):
    """What was sent of an old share still fills the window, and is acknowledged as before."""
    for _ in range(2):
        send(welcomed)
    learner.answer(welcomed, Answer.WELCOME, 7, 2, 0, 2)
    welcomed.wait_assignment((2, 30))
    assert would_wait(welcomed)
    learner.answer(welcomed, Answer.ACKNOWLEDGED, 0)
    welcomed.wait_credit()
    send(welcomed, unroll_index=7)
    assert would_wait(welcomed)
    learner.answer(welcomed, Answer.ACKNOWLEDGED, 2)
    welcomed.wait_credit()
    assert "3 sent, 0 unacknowledged" in repr(welcomed)


def test_welcome_that_nobody_asked_for_changes_no_share(learner, welcomed):
    send(welcomed)
    learner.answer(welcomed, Answer.WELCOME, 9, 9, 0, 1)
    learner.answer(welcomed, Answer.ACKNOWLEDGED, 0)
    while welcomed._unacknowledged or welcomed._has_answers():
        welcomed._receive()
    send(welcomed)
    for _ in range(2):
        header = learner.hear()[1]
        assert (header.first_env, header.num_envs) == (4, 3)


@pytest.mark.parametrize("number", [1, 2, 2**64 - 1])
def test_thanks_for_an_unroll_that_was_never_sent_are_not_taken(learner, welcomed, number):
    """They would be credit for ever."""
    send(welcomed)
    learner.answer(welcomed, Answer.ACKNOWLEDGED, number)
    with pytest.raises(Refused, match=f"thanks for unroll {number}, 1 were sent"):
        welcomed._receive()


# Refused


@pytest.mark.parametrize("verdict", [v for v in Verdict if v != Verdict.ACCEPTED])
def test_refusal_names_the_verdict(learner, outbox, verdict):
    learner.answer(outbox, Answer.REFUSED, verdict)
    with pytest.raises(Refused, match=verdict.name.lower().replace("_", " ")):
        outbox.wait_assignment((0, 0))


def test_refusal_of_an_unroll_is_heard_while_waiting_for_credit(learner, welcomed):
    send(welcomed)
    send(welcomed)
    learner.answer(welcomed, Answer.REFUSED, Verdict.DISCONTINUOUS)
    with pytest.raises(Refused, match="discontinuous"):
        welcomed.wait_credit()


def test_answer_from_another_run_is_not_taken(learner, outbox):
    learner.answer(outbox, Answer.WELCOME, 0, 1, 4, 3, run=bytes(16))
    with pytest.raises(Refused, match="another run"):
        outbox.wait_assignment((0, 0))


def malformed_answers(learner: Learner) -> dict[str, list[bytes]]:
    states = learner.states(3)
    welcome = Reply(Answer.WELCOME, learner.plan.run, 5, 1, 4, 3)
    good = encode_reply(welcome, states)

    def sealed(**numbers) -> list[bytes]:
        return [encode_reply(welcome._replace(**numbers)), b""]

    return {
        "nothing": [b""],
        "short": [good[:-1], states],
        "long": [good + b"\0", states],
        "flipped": [bytes([good[0] ^ 1]) + good[1:], states],
        "flipped behind": [good[:30] + bytes([good[30] ^ 1]) + good[31:], states],
        "states of another": [good, learner.states(3, 8)],
        "states cut off": [good, states[:-1]],
        "no states": [good],
        "three frames": [good, states, b""],
        "no such answer": sealed(answer=0),
        "no such answer either": sealed(answer=65_535),
        "no such verdict": sealed(answer=Answer.REFUSED, number=99),
        "accepted or not": sealed(answer=Answer.REFUSED, number=2**64 - 1),
    }


def test_malformed_answers_are_not_taken(learner, outbox):
    for what, frames in malformed_answers(learner).items():
        learner.say(outbox, *frames)
        with pytest.raises(Refused, match="the learner's answer is malformed"):
            raise AssertionError(f"{what}: taken as {outbox._receive()}")


def test_answer_longer_than_any_is_cut_off_by_the_socket(learner, outbox):
    with outbox._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED) as monitor:
        learner.say(outbox, b"x" * 60, learner.states(7) + b"x" * 60)
        assert monitor.poll(20_000), "the connection was not closed"
        outbox._socket.disable_monitor()
    assert not outbox._has_answers()


def test_hello_before_there_is_a_learner_arrives_when_there_is_one(make_plan):
    plan = make_plan()
    outbox = Outbox(plan, 0, 0)
    learner = Learner(plan)
    outbox._socket.set(zmq.SNDTIMEO, 20_000)
    outbox._send(Kind.HELLO, b"")
    assert learner.hear()[1].kind == Kind.HELLO
    outbox.close()
    learner.context.destroy(linger=0)


def test_stopwatch_tells_laps_that_fit_the_header():
    stopwatch = Stopwatch()
    stopwatch._since -= 3_000_000
    assert 3000 <= stopwatch.lap_us() < 1_000_000
    stopwatch._since -= 10**16
    assert stopwatch.lap_us() == 2**32 - 1
