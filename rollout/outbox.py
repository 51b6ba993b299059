"""An actor's end of the stream: asks for a share, waits for credit, sends unrolls."""

import time
from dataclasses import dataclass

import zmq

from rollout.plan import HostPlan
from rollout.wire import (
    REFUSED,
    REPLY_BYTES,
    ActorTimes,
    Answer,
    Greeting,
    Header,
    Kind,
    Malformed,
    Reply,
    Verdict,
    decode_reply,
    encode_greeting,
    encode_header,
    routing_id,
)


class Refused(Exception):
    """The learner will not have this actor's messages."""


@dataclass(frozen=True)
class Assignment:
    """What an actor is to act. states: of its environments, as `Envs.restore` takes them."""

    cut: int
    first_env: int
    num_envs: int
    first_unroll: int
    states: bytes


class Outbox:
    """One DEALER socket to the learner; at most `window` unrolls are unacknowledged."""

    def __init__(self, plan: HostPlan, actor: int, incarnation: int) -> None:
        self._plan = plan
        self._actor = actor
        self._incarnation = incarnation
        self._sequence = 0
        self._acknowledged = 0  # unrolls before this sequence number
        self._assignment = Assignment(0, 0, 0, 0, b"")
        self._context = zmq.Context(io_threads=1)
        self._socket = self._context.socket(zmq.DEALER)
        options = {
            zmq.ROUTING_ID: routing_id(actor, incarnation),
            zmq.LINGER: 0,
            zmq.IMMEDIATE: 1,
            zmq.SNDHWM: plan.window + 1,
            zmq.MAXMSGSIZE: REPLY_BYTES + plan.num_envs * plan.schema.state_bytes,
            # No heartbeats on one machine: the kernel tells of every death, and a process that is
            # only stopped (Ctrl-Z, a debugger) must find its connections when it goes on.
        }
        for option, value in options.items():
            self._socket.set(option, value)
        self._socket.connect(plan.unroll_endpoint)

    def __repr__(self) -> str:
        return (
            f"Outbox(actor {self._actor}.{self._incarnation}, {self._sequence} sent, "
            f"{self._unacknowledged} unacknowledged)"
        )

    def wait_assignment(self, produced: tuple[int, int]) -> Assignment:
        """Ask for a share of the environments; blocks until there is one. Raises Refused.

        produced: unrolls and steps that this actor's lives have sealed so far.
        """
        self._send(Kind.HELLO, encode_greeting(Greeting(self._plan.schema.digest, *produced)))
        while True:
            reply, states = self._receive()
            if reply.answer == Answer.WELCOME:
                break
        share = Assignment(reply.cut, reply.first_env, reply.num_envs, reply.number, states)
        size = share.num_envs * self._plan.schema.state_bytes
        is_inside = 0 < share.num_envs <= self._plan.num_envs - share.first_env
        if not is_inside or len(states) not in (0, size):
            raise Refused(
                f"the learner's answer is a share of {share.num_envs} environments from "
                f"{share.first_env} on, of {self._plan.num_envs}, and {len(states)} bytes of states"
            )
        self._assignment = share
        return share

    def wait_credit(self) -> None:
        """Return when another unroll may be sent; blocks in the kernel until then."""
        while self._unacknowledged >= self._plan.window or self._has_answers():
            self._receive()

    def wait_acknowledged(self) -> None:
        """Return when all that was sent is in a batch; blocks in the kernel until then."""
        while self._unacknowledged:
            self._receive()

    @property
    def _unacknowledged(self) -> int:
        return self._sequence - self._acknowledged

    def send(
        self,
        payload: memoryview,
        unroll_index: int,
        weights_version: int,
        num_finals: int,
        num_episodes: int,
        times: ActorTimes,
    ) -> None:
        """Hand an unroll to ZeroMQ, which copies it."""
        self._send(
            Kind.UNROLL,
            payload,
            unroll_index=unroll_index,
            weights_version=weights_version,
            first_env=self._assignment.first_env,
            num_envs=self._assignment.num_envs,
            num_finals=num_finals,
            num_episodes=num_episodes,
            **times._asdict(),
        )
        self._sequence += 1

    def close(self, linger_s: float = 0.0) -> None:
        """Let go of the socket; what is not sent by then is dropped."""
        self._context.destroy(linger=int(1000 * linger_s))

    def _send(self, kind: Kind, payload: bytes | memoryview, **numbers: int) -> None:
        header = _EMPTY._replace(
            kind=kind,
            run=self._plan.run,
            actor=self._actor,
            incarnation=self._incarnation,
            sequence=self._sequence,
            **numbers,
        )
        self._socket.send(encode_header(header, payload), zmq.SNDMORE)
        self._socket.send(payload)

    def _has_answers(self) -> bool:
        return bool(int(self._socket.get(zmq.EVENTS)) & zmq.POLLIN)

    def _receive(self) -> tuple[Reply, bytes]:
        """The next reply and its payload; acknowledgements are counted here."""
        frames = self._socket.recv_multipart()
        try:
            if len(frames) > 2:
                raise Malformed(f"{len(frames)} frames, wanted 2")
            reply = decode_reply(*frames)
            if reply.answer == Answer.ACKNOWLEDGED and reply.number >= self._sequence:
                raise Malformed(f"thanks for unroll {reply.number}, {self._sequence} were sent")
            if reply.answer not in list(Answer):
                raise Malformed(f"of kind {reply.answer}")
            if reply.answer == Answer.REFUSED and reply.number not in list(Verdict):
                raise Malformed(f"verdict {reply.number}")
        except Malformed as error:
            raise Refused(f"the learner's answer is malformed: {error}") from error
        if reply.run != self._plan.run:
            raise Refused("the answer came from another run's learner")
        if reply.answer == Answer.REFUSED:
            verdict = Verdict(reply.number).name.lower().replace("_", " ")
            hint = ""
            # Our own code sends neither, whole memory given.
            if reply.number in (Verdict.MALFORMED, Verdict.DISCONTINUOUS):
                hint = "; does its environment write outside its arrays? `rollout check-env` shows"
            raise Refused(f"{REFUSED}: {verdict}{hint}")
        if reply.answer == Answer.ACKNOWLEDGED:  # of this unroll, and of all before it
            self._acknowledged = max(self._acknowledged, reply.number + 1)
        return reply, frames[1] if len(frames) > 1 else b""


_EMPTY = Header(0, b"", *[0] * (len(Header._fields) - 2))


class Stopwatch:
    """Tells how long it is since it was last asked."""

    def __init__(self) -> None:
        self._since = time.perf_counter_ns()

    def lap_us(self) -> int:
        """Microseconds since the last lap, at most 2³² - 1."""
        now = time.perf_counter_ns()
        lap, self._since = (now - self._since) // 1000, now
        return min(lap, 0xFFFFFFFF)
