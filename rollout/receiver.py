"""The learner's end of the stream: a thread that receives while the learner trains.

It owns both sockets. Unrolls go by the inbox's verdict to the assembler; full batches go to the
learner; weights go from the learner to the host agents, which announce and pull decouple.
What happened is told to the learner as events, in one queue.
"""

import hashlib
import logging
import os
import queue
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import zmq

from rollout import control
from rollout.assembler import BatchAssembler, FullBatch
from rollout.cluster import Cluster
from rollout.envs.errors import EnvError
from rollout.errors import RunFailed
from rollout.inbox import Inbox, Verdict
from rollout.learners.unroll import Batch, Unroll
from rollout.wire import (
    Answer,
    Header,
    Kind,
    Malformed,
    Reply,
    decode_header,
    encode_reply,
)

log = logging.getLogger(__name__)
LAST_WORDS_MS = 100  # for what an agent sent before it ended to come in
CRASHED = {
    int(signal.SIGSEGV): "; its environment probably wrote outside an array: "
    "run it in plain Python with Envs(…, jit=False)"
}
MOST_AT_ONCE = 64  # unrolls received before the other sockets get a look


@dataclass(frozen=True)
class PhaseChanged:
    """The fleet is a step further on its way to the first unroll."""

    text: str


@dataclass(frozen=True)
class FleetFailed:
    """The run cannot go on."""

    error: RunFailed | EnvError


@dataclass(frozen=True)
class FleetStopped:
    """All actors have ended. produced: unrolls by actor; empty if nobody could say."""

    produced: list[int]


@dataclass(frozen=True)
class Interrupted:
    """Ctrl-C or SIGTERM."""

    signal_number: int


Event = FullBatch | PhaseChanged | FleetFailed | FleetStopped | Interrupted


@dataclass(frozen=True)
class ReceiverStatistics:
    """Counts since the start.

    unrolls_put: accepted and in a batch, by actor.
    control_refused: messages that no host agent of this run can have sent.
    """

    unrolls_put: list[int]
    verdicts: dict[str, int]
    control_refused: int
    num_actors_alive: int


class Receiver:
    """Receives for one run. `events` is for the learner to read; the methods are its to call.

    batches: policy_lag + 1 of them (see assembler.py).
    """

    def __init__(
        self,
        cluster: Cluster,
        inbox: Inbox,
        batches: Sequence[Batch],
        events: "queue.SimpleQueue[Event]",
    ) -> None:
        self.events = events
        self._cluster = cluster
        self._plan = cluster.plan
        self._inbox = inbox
        self._assembler = BatchAssembler(batches)
        self._versions: dict[int, bytes] = {}
        self._agents: set[bytes] = set()
        self._alive: set[int] = set()
        self._errors: dict[int, str] = {}
        self._is_stopping = self._has_stopped = self._agent_has_ended = False
        self._unrolls_put = [0] * cluster.plan.num_actors
        self._control_refused = 0
        self._logged: set[str] = set()
        self._requests: queue.SimpleQueue = queue.SimpleQueue()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name="receiver", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"Receiver({sum(self._unrolls_put)} unrolls, {len(self._alive)} actors alive)"

    def statistics(self) -> ReceiverStatistics:
        return ReceiverStatistics(
            unrolls_put=list(self._unrolls_put),
            verdicts=self._inbox.statistics().verdicts,
            control_refused=self._control_refused,
            num_actors_alive=len(self._alive),
        )

    # What the learner asks for

    def publish(self, version: int, weights: bytes) -> None:
        """Let the fleet have these weights (float32, flat)."""
        self._request(self._announce, version, weights)

    def recycle(self, batch: Batch) -> None:
        """Give a batch back to be filled again."""
        self._request(self._assembler.recycle, batch)

    def stop_fleet(self) -> None:
        """End the actors; FleetStopped (or FleetFailed) follows."""
        self._request(self._stop)

    def close(self) -> None:
        """End the thread."""
        self._request(None)
        self._thread.join()
        os.close(self._wake)

    def _request(self, action, *arguments) -> None:
        self._requests.put((action, arguments))
        os.eventfd_write(self._wake, 1)

    # The thread

    def _run(self) -> None:
        try:
            self._serve()
        except Exception as error:
            log.exception("the receiver failed")
            self.events.put(FleetFailed(RunFailed(f"the receiver failed: {error!r}; see run.log")))

    def _serve(self) -> None:
        unrolls, messages = self._cluster.unrolls, self._cluster.control
        poller = zmq.Poller()
        for source in (unrolls, messages, self._wake, self._cluster.agent_end):
            poller.register(source, zmq.POLLIN)
        while True:
            ready = dict(poller.poll())
            if self._wake in ready:
                os.eventfd_read(self._wake)
                while not self._requests.empty():
                    action, arguments = self._requests.get()
                    if action is None:
                        return
                    action(*arguments)
            if messages in ready:
                sender, *frames = messages.recv_multipart()
                self._on_message(sender, frames)
            if unrolls in ready:
                self._receive_unrolls()
            if self._cluster.agent_end in ready:
                poller.unregister(self._cluster.agent_end)
                self._on_agent_end()

    def _fail(self, reason: str) -> None:
        if not self._is_stopping:
            self.events.put(FleetFailed(RunFailed(reason)))

    def _on_agent_end(self) -> None:
        self._agent_has_ended = True
        while not self._has_stopped and self._cluster.control.poll(LAST_WORDS_MS):
            sender, *frames = self._cluster.control.recv_multipart()
            self._on_message(sender, frames)
        self._fail("the host agent process ended, and its actors with it; see run.log")
        if self._is_stopping and not self._has_stopped:
            self.events.put(FleetStopped([]))

    def _log_once(self, kind: str, text: str) -> None:
        if kind not in self._logged:
            self._logged.add(kind)
            log.warning("%s; others like it are only counted", text)

    # Unrolls

    def _receive_unrolls(self) -> None:
        for _ in range(MOST_AT_ONCE):
            try:
                sender, *parts = self._cluster.unrolls.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            self._on_unroll(sender.bytes, parts)

    def _on_unroll(self, sender: bytes, parts: list[zmq.Frame]) -> None:
        try:
            if len(parts) != 2:
                raise Malformed(f"{len(parts)} frames, wanted 2")
            payload = parts[1].buffer
            header = decode_header(parts[0].buffer, payload)
        except Malformed as error:
            self._inbox.count(Verdict.MALFORMED)
            self._log_once("unreadable", f"refused a message from {sender!r}: {error}")
            return
        verdict, unroll = self._inbox.judge(header, sender, payload)
        if unroll is not None:
            self._put(sender, header, unroll)
        elif header.kind == Kind.HELLO and verdict in (Verdict.ACCEPTED, Verdict.DUPLICATE):
            self._reply(sender, Answer.WELCOME, self._inbox.actors[header.actor].first_unroll)
        elif verdict == Verdict.DUPLICATE:
            self._reply(sender, Answer.ACKNOWLEDGED, header.sequence)
        else:
            self._reply(sender, Answer.REFUSED, verdict)
            self._log_once(verdict.name, f"refused a message as {verdict.name}: {header}")

    def _put(self, sender: bytes, header: Header, unroll: Unroll) -> None:
        full = self._assembler.put(header, unroll)
        self._unrolls_put[header.actor] += 1
        self._reply(sender, Answer.ACKNOWLEDGED, header.sequence)
        for batch in full:
            self.events.put(batch)

    def _reply(self, receiver: bytes, answer: Answer, number: int) -> None:
        reply = encode_reply(Reply(answer, self._plan.run, number))
        try:
            self._cluster.unrolls.send_multipart((receiver, reply))
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:  # it is gone; its end is told by its host
                raise

    # Weights and the host agents

    def _announce(self, version: int, weights: bytes) -> None:
        self._versions[version] = weights
        self._inbox.newest_version = version
        # One machine: its agent has pulled every version but the newest when an unroll of
        # version - policy_lag is in a batch; two more are kept than can be asked for.
        self._versions.pop(version - self._plan.policy_lag - 3, None)
        for agent in self._agents:
            self._tell_version(agent, version)

    def _tell_version(self, agent: bytes, version: int) -> None:
        weights = self._versions[version]
        digest = hashlib.sha256(weights).digest()
        self._tell(agent, control.Announce(version, len(weights), digest))

    def _tell(self, agent: bytes, message: control.ToAgent, *frames: bytes) -> None:
        try:
            self._cluster.control.send_multipart((agent, control.encode(message), *frames))
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise

    def _on_message(self, agent: bytes, frames: list[bytes]) -> None:
        try:
            message = control.decode_to_learner(frames[0])
        except (IndexError, msgspec.DecodeError) as error:
            self._refuse_message("unreadable control message", f"{agent!r}: {error}")
            return
        if not self._is_possible(agent, message):
            self._refuse_message(type(message).__name__, f"{agent!r}: {message}"[:1000])
            return
        match message:
            case control.Hello():
                self._agents.add(agent)
                for version in sorted(self._versions):
                    self._tell_version(agent, version)
            case control.Pull():
                self._tell(agent, control.Weights(message.version), self._versions[message.version])
            case control.Ready():
                self.events.put(
                    PhaseChanged(f"compiled in {message.compile_s:.1f} s; forking actors")
                )
            case control.ActorStarted():
                self._alive.add(message.actor)
            case control.ActorError():
                self._errors.setdefault(message.actor, message.error)
            case control.Unprepared():
                if message.is_authors:
                    self.events.put(FleetFailed(EnvError(message.error)))
                else:
                    self._fail(f"the environment could not be prepared: {message.error}")
            case control.ActorExited():
                self._on_actor_exit(message)
            case control.Failed():
                self._fail(message.reason)
            case control.Stopped():
                self._has_stopped = True
                self.events.put(FleetStopped(message.produced))

    def _is_possible(self, agent: bytes, message: control.ToLearner) -> bool:
        """Whether an agent of this run can have said that."""
        num_actors = self._plan.num_actors
        match message:
            case control.Hello():
                return message.run == self._plan.run
            case control.Pull():
                is_possible = message.version in self._versions
            case control.ActorStarted() | control.ActorExited() | control.ActorError():
                is_possible = 0 <= message.actor < num_actors
            case control.Stopped():
                is_possible = len(message.produced) == num_actors and min(message.produced) >= 0
            case _:
                is_possible = True
        return is_possible and agent in self._agents

    def _refuse_message(self, kind: str, text: str) -> None:
        self._control_refused += 1
        self._log_once(kind, f"refused a control message of {text}")

    def _on_actor_exit(self, message: control.ActorExited) -> None:
        self._alive.discard(message.actor)
        how = (
            f"was killed by {signal.Signals(-message.status).name}"
            if message.status < 0
            else f"ended with status {message.status}"
        )
        why = self._errors.get(message.actor)
        self._fail(
            f"actor {message.actor} (process {message.pid}) {how}"
            + (f": {why}" if why else CRASHED.get(-message.status, "; run.log may say more"))
        )

    def _stop(self) -> None:
        self._is_stopping = True
        for agent in self._agents:
            self._tell(agent, control.Stop())
        if self._agent_has_ended:
            self.events.put(FleetStopped([]))
        elif not self._agents:
            self.events.put(FleetStopped([0] * self._plan.num_actors))
