"""Whatever arrives: decoders say what it is or refuse it, and a receiver is none the worse for it.

Most of what is sent is made of real messages, so that it gets as far in as it can.
"""

import logging
import random
import resource
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from rollout import control
from rollout.assembler import FullBatch
from rollout.learners.unroll import Unroll
from rollout.wire import (
    Answer,
    Greeting,
    Header,
    Kind,
    Malformed,
    Reply,
    Verdict,
    decode_greeting,
    decode_header,
    decode_reply,
    encode_greeting,
    encode_header,
    encode_reply,
    routing_id,
)
from tests.rollout.conftest import wait_until
from tests.rollout.fakes import WEIGHTS, Agent, Fleet, continued

RUN = bytes(range(16))
HEADER = Header(Kind.UNROLL, RUN, 3, 1, 7, 9, 8, 12, 4, 2, 5, 100, 200, 300)
REPLY = Reply(Answer.WELCOME, RUN, 5, 1, 4, 3)

# Decoders


def variants(message: bytes) -> st.SearchStrategy[bytes]:
    """The message; with bits flipped; cut off; with something before, behind or inside."""
    bits = st.lists(st.integers(0, 8 * len(message) - 1), min_size=1, max_size=4, unique=True)
    place = st.integers(0, len(message))
    piece = st.one_of(st.binary(max_size=40), st.just(message))
    return st.one_of(
        st.just(message),
        bits.map(lambda bits: flipped(message, bits)),
        st.tuples(place, place).map(lambda ends: message[ends[0] : ends[1]]),
        st.tuples(place, piece).map(lambda at: message[: at[0]] + at[1] + message[at[0] :]),
        st.tuples(place, st.binary(max_size=40)).map(lambda at: message[: at[0]] + at[1]),
        st.binary(max_size=2 * len(message) + 20),
    )


def flipped(message: bytes, bits: list[int]) -> bytes:
    changed = bytearray(message)
    for bit in bits:
        changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


PAYLOAD = b"a payload of some bytes"


@given(frame=variants(encode_header(HEADER, PAYLOAD)), payload=variants(PAYLOAD))
def test_header_is_the_one_that_was_sent_or_malformed(frame, payload):
    try:
        header = decode_header(frame, memoryview(payload))
    except Malformed:
        assert (frame, payload) != (encode_header(HEADER, PAYLOAD), PAYLOAD)
    else:
        assert (header, payload) == (HEADER, PAYLOAD)


@given(frame=variants(encode_reply(REPLY, PAYLOAD)), payload=variants(PAYLOAD))
def test_reply_is_the_one_that_was_sent_or_malformed(frame, payload):
    try:
        reply = decode_reply(frame, payload)
    except Malformed:
        assert (frame, payload) != (encode_reply(REPLY, PAYLOAD), PAYLOAD)
    else:
        assert (reply, payload) == (REPLY, PAYLOAD)


@given(payload=variants(encode_greeting(Greeting(bytes(32), 3, 45))))
def test_greeting_says_what_its_bytes_say_or_is_malformed(payload):
    """It has no checksum of its own: the header's covers it."""
    try:
        greeting = decode_greeting(memoryview(payload))
    except Malformed:
        assert len(payload) != 48
    else:
        assert encode_greeting(greeting) == payload


TO_LEARNER: list[control.ToLearner] = [
    control.Hello(RUN, 4711, 3, "/dev/shm/rollout-000102030405-aabbccdd"),
    control.Pull(3),
    control.Leave(),
    control.Failed("no memory"),
    control.Stopped([3, 4], [45, 60]),
    control.Ready(1.5),
    control.Unprepared("no such field", True),
    control.ActorStarted(1, 65536, 99),
    control.ActorEnded(1, 65536, 99, -11, "é", 0.0, 2, 3, 4),
    control.TemplateEnded("was killed"),
    control.GaveUp(1, "first"),
]
TO_AGENT: list[control.ToAgent] = [
    control.Take(4, 65536),
    control.Cut(3, 17),
    control.Announce(3, 1000, bytes(32)),
    control.Weights(3),
    control.Stop(),
]


@pytest.mark.parametrize(
    ("message", "decode"),
    [(message, control.decode_to_learner) for message in TO_LEARNER]
    + [(message, control.decode_to_agent) for message in TO_AGENT],
    ids=lambda each: type(each).__name__,
)
@given(data=st.data())
def test_control_message_is_one_that_there_is_or_an_error_of_decoding(data, message, decode):
    frame = data.draw(variants(control.encode(message)))
    try:
        decoded = decode(frame)
    except msgspec.DecodeError:
        assert frame != control.encode(message)
    else:
        assert type(decoded) in {type(each) for each in (*TO_LEARNER, *TO_AGENT)}
        assert decode(control.encode(decoded)) == decoded or decoded != decoded  # NaN


def deep(name: str, of: str) -> bytes:
    """A message with brackets within brackets, in a field that it has or has not."""
    encode = control.encode
    return b"\x82" + encode("type") + encode(of) + encode(name) + 900_000 * b"\x91" + b"\xc0"


def claiming(kind: bytes, size: int) -> bytes:
    """A Stopped whose list, text, bytes or map claims to be that long, and is not there."""
    encode = control.encode
    head = b"\x82" + encode("type") + encode("Stopped") + encode("produced")
    return head + kind + size.to_bytes(4, "big")


UNREADABLE = {
    "no text": b"\x82\xa4type\xadTemplateEnded\xa3how\xa2\xff\xff",
    "no text for a kind": b"\x81\xa4type\xa2\xff\xff",
    "deep": deep("how", "TemplateEnded"),
    "deep in a field that there is not": deep("x", "Leave"),
    "deep in a list": deep("produced", "Stopped"),
    **{
        f"{name} of {size}": claiming(kind, size)
        for name, kind in (
            ("list", b"\xdd"),
            ("map", b"\xdf"),
            ("text", b"\xdb"),
            ("bytes", b"\xc6"),
            ("extension", b"\xc9"),
        )
        for size in (10**5, 10**8, 2**32 - 1)
    },
}


@pytest.mark.parametrize("frame", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_number_in_a_control_message_costs_no_memory(frame):
    limits = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (64 << 20), limits[1]))
    try:
        with pytest.raises(msgspec.DecodeError):  # and no MemoryError
            control.decode_to_learner(frame)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


# A receiver


@pytest.fixture
def fleet(make_plan, tmp_path) -> Iterator[Fleet]:
    fleet = Fleet(make_plan(), tmp_path)
    yield fleet
    fleet.close()


class Fuzzer:
    """Sends what nobody sends who is part of the run, and keeps count of what it will come to.

    Unrolls and greetings: `sent` of them reach the inbox; controls: `sent_control` the hosts.
    Messages are from strangers under names of their own choice, and from the sockets of a former
    life of actor 0, which knows all there is to know.
    """

    def __init__(
        self,
        fleet: Fleet,
        former_life: zmq.Socket,
        real: list[list[bytes]],
        seed: int,
        tmp_path: Path,
    ) -> None:
        """real: messages of actor 0's former life, that were accepted."""
        self.fleet = fleet
        self.former_life = former_life
        self.random = random.Random(seed)
        self.real = real
        self.tmp_path = tmp_path
        self.sent = self.sent_control = 0
        self.opened = 0
        self._kinds: list[tuple[int, Callable[[], None]]] = [
            (20, self.send_noise),
            (20, self.send_damaged),
            (15, self.send_replayed),
            (25, self.send_forged),
            (5, self.send_frames),
            (15, self.send_noise_to_control),
            (15, self.send_damaged_control),
            (15, self.send_forged_control),
        ]
        self.renew()

    def renew(self) -> None:
        """Other connections, under other names; all that was sent before must have been judged."""
        for socket in getattr(self, "sockets", []):
            socket.close()
        self.opened += 1
        # A name that was in use a moment ago may still be, and messages under it be lost.
        names = [None, b"name %d" % self.opened, b"%d" % self.opened + b"x" * 250]
        names += [routing_id(self.random.getrandbits(32), 2 + self.opened)]
        strangers = [self.fleet.stranger(name) for name in names]
        self.unrolls = [self.former_life, *strangers]
        endpoint = self.fleet.plan.control_endpoint
        self.controls = [self.fleet.dealer(endpoint, name) for name in names]
        self.sockets = strangers + self.controls

    def send(self) -> None:
        """One message."""
        weights = [weight for weight, _ in self._kinds]
        self.random.choices(self._kinds, weights)[0][1]()
        for socket in self.unrolls:  # nobody reads them, but they are not to fill up
            while int(socket.get(zmq.EVENTS)) & zmq.POLLIN:
                socket.recv_multipart()

    def wait_judged(self) -> None:
        """Until all has been judged; not one of them may have been accepted."""
        hosts = self.fleet.receiver._hosts
        what = f"{self.sent} and {self.sent_control} refused messages"
        wait_until(
            lambda: self.fleet.refused() >= self.sent and hosts.refused >= self.sent_control,
            60,
            what,
        )
        assert (self.fleet.refused(), hosts.refused) == (self.sent, self.sent_control)

    # To where unrolls go

    def _to_unrolls(self, frames: list[bytes], socket: zmq.Socket | None = None) -> None:
        (socket or self.random.choice(self.unrolls)).send_multipart(frames)
        self.sent += 1

    def send_noise(self) -> None:
        sizes = [self.random.choice((0, 1, 87, 88, 89, 500)) for _ in range(2)]
        self._to_unrolls([self.random.randbytes(size) for size in sizes])

    def send_damaged(self) -> None:
        frames = [bytearray(frame) for frame in self.random.choice(self.real)]
        frame = self.random.choice(frames)
        how = self.random.randrange(3)
        if how == 0:
            frame[self.random.randrange(len(frame))] ^= 1 << self.random.randrange(8)
        elif how == 1:
            del frame[self.random.randrange(len(frame)) :]
        else:
            frame += self.random.randbytes(self.random.randint(1, 20))
        self._to_unrolls([bytes(frame) for frame in frames])

    def send_replayed(self) -> None:
        """What was true once, from whoever."""
        self._to_unrolls(self.random.choice(self.real))

    def send_forged(self) -> None:
        """Another header or greeting, with a crc that is right."""
        frame, payload = self.random.choice(self.real)
        header = decode_header(frame, payload)
        limits = {"kind": 16, **dict.fromkeys(("sequence", "unroll_index", "weights_version"), 64)}
        if header.kind == Kind.HELLO:
            names = ["kind", "run", "actor", "incarnation"]  # of the others there is no need
        else:
            names = [name for name in Header._fields if not name.endswith("_us")]
        for name in self.random.sample(names, self.random.randint(1, 3)):
            bits = limits.get(name, 32)
            value = self.random.choice((0, 1, 2, 2**bits - 1, self.random.getrandbits(bits)))
            header = header._replace(
                **{name: self.random.randbytes(16) if name == "run" else value}
            )
        if header.kind == Kind.HELLO and self.random.random() < 0.5:
            digest = self.random.choice((self.fleet.plan.schema.digest, bytes(32)))
            counts = [self.random.getrandbits(self.random.randint(1, 64)) for _ in range(2)]
            payload = encode_greeting(Greeting(digest, *counts))
        self._to_unrolls([encode_header(header, payload), payload])

    def send_frames(self) -> None:
        count = self.random.choice((1, 3, 4, 10, 300))
        frames = self.random.choice(self.real)
        self._to_unrolls([self.random.choice(frames) for _ in range(count)])

    def send_oversized(self) -> None:
        """Longer than the socket takes: the connection is closed, and nothing has arrived."""
        fleet = self.fleet
        longest = fleet.plan.schema.max_size_bytes(fleet.plan.num_envs)
        for endpoint, size in (
            (fleet.plan.unroll_endpoint, longest + 1),
            (fleet.plan.control_endpoint, (1 << 20) + 1),
        ):
            socket = fleet.dealer(endpoint, self.random.randbytes(9).replace(b"\0", b"."))
            with socket.get_monitor_socket(zmq.EVENT_DISCONNECTED) as monitor:
                socket.send_multipart([bytes(88), bytes(size)])
                assert monitor.poll(20_000), "the connection was not closed"
                socket.disable_monitor()
            socket.close()

    # To where host agents talk

    def _to_control(self, frames: list[bytes]) -> None:
        self.random.choice(self.controls).send_multipart(frames)
        self.sent_control += 1

    def send_noise_to_control(self) -> None:
        if self.random.random() < 0.02:
            self._to_control([self.random.choice(list(UNREADABLE.values()))])
        else:
            count = self.random.choice((1, 1, 1, 2, 50))
            noise = [self.random.randbytes(self.random.randrange(60)) for _ in range(count)]
            self._to_control(noise)

    def send_damaged_control(self) -> None:
        frame = bytearray(control.encode(self._any_control()))
        frame[self.random.randrange(len(frame))] ^= 1 << self.random.randrange(8)
        self._to_control([bytes(frame[: self.random.randint(0, len(frame))])])

    def send_forged_control(self) -> None:
        self._to_control([control.encode(self._any_control())])

    def _any_control(self) -> control.ToLearner:
        """What an agent would say, from someone who is none; hellos with something wrong."""
        number = self.random.choice((0, 1, 2, -1, 2**31, 2**63 - 1, 2**64 - 1))
        memory = self.fleet.cluster.plan.memory_directory
        places = ("", ".", "/", "/dev/zero", memory, f"{memory}/page", f"{memory}/../..", "a\0b")
        paths = (*places, str(self.tmp_path), "x" * 5000, "/x" * 5000)
        numbers = [number] * self.random.choice((0, 2, 5000))
        run = self.random.choice((self.fleet.plan.run, bytes(16), b""))
        return self.random.choice(
            (
                control.Hello(run, number, number, self.random.choice(paths)),
                control.Hello(run, self.fleet.cluster.agent_pid, 2, self.random.choice(paths)),
                control.Stopped(numbers, numbers),
                msgspec.structs.replace(
                    TO_LEARNER[8],
                    **dict.fromkeys(("actor", "incarnation", "pid", "status", "place"), number),
                    error="x" * 999,
                    hung_s=float("nan"),
                ),
                *TO_LEARNER[1:],
            )
        )


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def begin_conversation(fleet: Fleet, make_payload) -> tuple[Agent, zmq.Socket, list[list[bytes]]]:
    """Actor 0 lives, and has an heir; returns its agent, its socket and what it said."""
    agent = fleet.agent()
    fleet.receiver.publish(0, WEIGHTS)
    socket = fleet.stranger(routing_id(0, 0))
    plan, schema = fleet.plan, fleet.plan.schema
    said = []

    nothing = HEADER._replace(kind=Kind.HELLO, run=plan.run)
    nothing = nothing._replace(**dict.fromkeys(Header._fields[2:], 0))

    def say(payload: bytes, **numbers: int) -> None:
        header = nothing._replace(**numbers)
        said.append([encode_header(header, payload), payload])
        socket.send_multipart(said[-1])
        answer = decode_reply(*socket.recv_multipart()).answer
        assert answer in (Answer.WELCOME, Answer.ACKNOWLEDGED)

    say(encode_greeting(Greeting(schema.digest, 0, 0)))
    states = fleet.inbox.states.newest[:3].copy()
    for unroll in range(2):
        payload, finals, episodes = continued(schema, make_payload(schema, 3, unroll), states)
        states = Unroll.view(schema, payload, 3, finals, episodes).env_state
        say(
            payload,
            kind=Kind.UNROLL,
            sequence=unroll,
            unroll_index=unroll,
            num_envs=3,
            num_finals=finals,
            num_episodes=episodes,
        )
    heir = fleet.actor(0, incarnation=1, produced=(2, 30))
    heir.join()
    heir.close()
    return agent, socket, said


def fuzz(fleet: Fleet, make_payload, tmp_path: Path, caplog, count: int, seed: int) -> float:
    """Send so many messages; returns by how many bytes the second half had this process grow."""
    (tmp_path / "page").write_bytes(bytes(4096))
    agent, former_life, said = begin_conversation(fleet, make_payload)
    fleet.events()
    before = fleet.everything()
    accepted = fleet.receiver.statistics().verdicts["accepted"]
    assert (accepted, fleet.refused()) == (4, 0)
    fuzzer = Fuzzer(fleet, former_life, said, seed, tmp_path)
    halfway = 0
    with caplog.at_level(logging.WARNING, "rollout"):
        for number in range(count):
            fuzzer.send()
            if number % 500 == 499:
                fuzzer.wait_judged()
                fuzzer.send_oversized()
                fuzzer.renew()
            if number == count // 2:
                halfway = resident_bytes()
        fuzzer.wait_judged()
    growth = resident_bytes() - halfway
    lines = [r.getMessage() for r in caplog.records if r.name.startswith("rollout")]
    kinds = {"unreadable", *(verdict.name for verdict in Verdict)}
    controls = {type(message).__name__ for message in TO_LEARNER} | {"unreadable"}
    assert len(lines) <= len(kinds) + len(controls), lines
    assert max(map(len, lines)) < 2000
    assert fleet.everything() == before
    assert fleet.receiver.statistics().verdicts["accepted"] == accepted
    assert fleet.events() == []
    wanted = {"MALFORMED", "FOREIGN_RUN", "STALE_INCARNATION"}
    assert {name.lower() for name in wanted} <= set(fleet.receiver.statistics().verdicts)
    assert (tmp_path / "page").exists()
    # And the run goes on: the next life of actor 0, its colleague and their agent are served.
    agent.say(control.Pull(0))
    assert agent.hear(control.Weights)[1] == [WEIGHTS]
    actors = [fleet.actor(0, incarnation=2, produced=(2, 30)), fleet.actor(1)]
    assert [actor.join().first_unroll for actor in actors] == [2, 0]
    for _ in range(2):
        actors[1].send(make_payload)
    for _ in range(2):
        fleet.receiver.trained(fleet.event(FullBatch).batch)
    fleet.receiver.publish(1, WEIGHTS)
    fleet.ledger()
    for actor in actors:
        actor.send(make_payload)
    fleet.event(FullBatch)
    return growth


@pytest.mark.parametrize("is_control", [False, True], ids=["unrolls", "control"])
def test_flood_does_not_keep_others_from_being_served(fleet, make_payload, is_control):
    """One that does not end, and comes faster than it can be judged."""
    fleet.agent()
    fleet.receiver.publish(0, WEIGHTS)
    plan = fleet.plan
    endpoint = plan.control_endpoint if is_control else plan.unroll_endpoint
    sockets = [fleet.dealer(endpoint) for _ in range(4)]
    is_over = threading.Event()

    def flood() -> None:
        while not is_over.is_set():
            for socket in sockets:
                socket.send(b"blah")

    flooder = threading.Thread(target=flood)
    flooder.start()
    try:
        count = 2000
        hosts = fleet.receiver._hosts
        wait_until(lambda: hosts.refused + fleet.refused() > count, 20, f"{count} messages")
        actors = [fleet.actor(number) for number in (0, 1)]
        for actor in actors:
            actor.join()
            actor.send(make_payload)
        fleet.receiver.trained(fleet.event(FullBatch).batch)
        assert fleet.ledger().unrolls.trained == 2
    finally:
        is_over.set()
        flooder.join()


MOST_GROWTH_BYTES = 4e6


def test_thousands_of_fuzzed_messages_are_refused(fleet, make_payload, tmp_path, caplog):
    assert fuzz(fleet, make_payload, tmp_path, caplog, 3000, seed=1) < MOST_GROWTH_BYTES


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_hundred_thousand_fuzzed_messages_are_refused(fleet, make_payload, tmp_path, caplog):
    assert fuzz(fleet, make_payload, tmp_path, caplog, 100_000, seed=2) < MOST_GROWTH_BYTES
