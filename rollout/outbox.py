"""An actor's end of the stream: says hello, waits for credit, sends unrolls."""

import time

import zmq

from rollout.inbox import Verdict
from rollout.plan import HostPlan
from rollout.wire import (
    ActorTimes,
    Answer,
    Header,
    Kind,
    Malformed,
    decode_reply,
    encode_header,
    routing_id,
)


class Refused(Exception):
    """The learner will not have this actor's messages."""


class Outbox:
    """One DEALER socket to the learner; at most `window` unrolls are unacknowledged."""

    def __init__(self, plan: HostPlan, actor: int, incarnation: int) -> None:
        self._plan = plan
        self._actor = actor
        self._incarnation = incarnation
        self._sequence = 0
        self._acknowledged = 0  # unrolls before this sequence number
        self.first_env, self.num_envs = plan.share_of(actor)
        self._context = zmq.Context(io_threads=1)
        self._socket = self._context.socket(zmq.DEALER)
        options = {
            zmq.ROUTING_ID: routing_id(actor, incarnation),
            zmq.LINGER: 0,
            zmq.IMMEDIATE: 1,
            zmq.SNDHWM: plan.window + 1,
            zmq.MAXMSGSIZE: 1024,  # replies are small
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

    def wait_welcome(self) -> int:
        """Say hello; returns the unroll to begin with. Raises Refused."""
        self._send(Kind.HELLO, self._plan.schema.digest)
        answer, number = self._receive()
        if answer != Answer.WELCOME:
            raise Refused(f"the learner answered {Answer(answer).name}")
        return number

    def wait_credit(self) -> None:
        """Return when another unroll may be sent; blocks in the kernel until then."""
        while self._unacknowledged >= self._plan.window or self._has_answers():
            answer, number = self._receive()
            if answer == Answer.ACKNOWLEDGED:  # of this unroll, and of all before it
                self._acknowledged = max(self._acknowledged, number + 1)

    @property
    def _unacknowledged(self) -> int:
        return self._sequence - self._acknowledged

    def send(
        self,
        payload: memoryview,
        unroll_index: int,
        num_finals: int,
        num_episodes: int,
        times: ActorTimes,
    ) -> None:
        """Hand an unroll to ZeroMQ, which copies it."""
        self._send(
            Kind.UNROLL,
            payload,
            unroll_index=unroll_index,
            weights_version=self._plan.weights_version_for(unroll_index),
            num_finals=num_finals,
            num_episodes=num_episodes,
            **times._asdict(),
        )
        self._sequence += 1

    def close(self) -> None:
        """Drop what is not sent and let go of the socket."""
        self._context.destroy(linger=0)

    def _send(self, kind: Kind, payload: bytes | memoryview, **numbers: int) -> None:
        fields = dict.fromkeys(("unroll_index", "weights_version", "num_finals", "num_episodes"), 0)
        header = Header(
            kind=kind,
            run=self._plan.run,
            actor=self._actor,
            incarnation=self._incarnation,
            sequence=self._sequence,
            first_env=self.first_env,
            num_envs=self.num_envs,
            **(fields | numbers),
        )
        self._socket.send(encode_header(header, payload), zmq.SNDMORE)
        self._socket.send(payload)

    def _has_answers(self) -> bool:
        return bool(int(self._socket.get(zmq.EVENTS)) & zmq.POLLIN)

    def _receive(self) -> tuple[int, int]:
        frames = self._socket.recv_multipart()
        try:
            reply = decode_reply(frames[-1])
        except Malformed as error:
            raise Refused(f"the learner's answer is {error}") from error
        if reply.run != self._plan.run:
            raise Refused("the answer came from another run's learner")
        if reply.answer == Answer.REFUSED:
            verdict = Verdict(reply.number).name.lower().replace("_", " ")
            raise Refused(f"the learner refused this actor's message: {verdict}")
        return reply.answer, reply.number


class Stopwatch:
    """Tells how long it is since it was last asked."""

    def __init__(self) -> None:
        self._since = time.perf_counter_ns()

    def lap_us(self) -> int:
        """Microseconds since the last lap, at most 2³² - 1."""
        now = time.perf_counter_ns()
        lap, self._since = (now - self._since) // 1000, now
        return min(lap, 0xFFFFFFFF)
