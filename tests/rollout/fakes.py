"""What tests talk to the learner with: messages made by hand, fake actors and host agents."""

import contextlib
import queue
import secrets
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zmq

from rollout import control
from rollout.assembler import AsyncAssembler, LockstepAssembler
from rollout.cluster import Cluster
from rollout.env_states import EnvStates
from rollout.envs.philox import CLOCK
from rollout.host_memory import HostPage
from rollout.inbox import Inbox
from rollout.learners.unroll import Batch, Unroll, UnrollSchema
from rollout.ledger import Account, Ledger
from rollout.outbox import Assignment, Outbox
from rollout.plan import HostPlan
from rollout.receiver import Receiver
from rollout.run_places import shared_memory_directory
from rollout.shares import Shares
from rollout.wire import ActorTimes, Greeting, Header, Kind, encode_greeting, encode_header

TIMEOUT_MS = 20_000
WEIGHTS = b"weights!"


def follow(before: np.ndarray, unroll: Unroll) -> None:
    """Write the states that follow the unroll, if it began in `before` [N, state_bytes]."""
    unroll.env_state[:] = before
    clocks = np.ndarray(len(before), CLOCK, unroll.env_state, strides=(before.shape[1],))
    for t in range(len(unroll.reward)):
        for i in range(len(before)):
            clocks["t"][i] += 1
            if unroll.terminated[t, i] or unroll.truncated[t, i]:
                clocks["episode"][i] += 1
                clocks["t"][i] = 0


def continued(
    schema: UnrollSchema, made: tuple[bytes, int, int], before: np.ndarray
) -> tuple[bytes, int, int]:
    """A payload of conftest's `make_payload`, its states made to follow `before`."""
    payload, num_finals, num_episodes = bytearray(made[0]), made[1], made[2]
    follow(before, Unroll.view(schema, payload, len(before), num_finals, num_episodes))
    return bytes(payload), num_finals, num_episodes


def everything(thing: Any) -> Any:
    """All that an object holds, to be compared with `==`; of an inbox all but its counts."""
    if isinstance(thing, np.ndarray):
        return thing.shape, thing.tobytes()
    if isinstance(thing, dict):
        return {key: everything(value) for key, value in thing.items()}
    if isinstance(thing, list | tuple):
        return [everything(each) for each in thing]
    if is_dataclass(thing):
        return {f.name: everything(getattr(thing, f.name)) for f in fields(thing)}
    if isinstance(thing, Inbox | Shares | EnvStates | Account):
        content = vars(thing).items()
        return {name: everything(value) for name, value in content if name != "_verdicts"}
    return set(thing) if isinstance(thing, set) else thing


def hello_message(plan: HostPlan, greeting: Greeting | None = None, **numbers) -> list[bytes]:
    """A HELLO as actor 0 sends it, with other numbers in its header."""
    known = {"kind": Kind.HELLO, "run": plan.run, **dict.fromkeys(Header._fields[2:11], 0)}
    payload = encode_greeting(greeting or Greeting(plan.schema.digest, 0, 0))
    return [encode_header(Header(**(known | numbers)), payload), payload]


class ClusterWithoutAgent(Cluster):
    """Real sockets; in the agent's place a process that ends when its standard input is closed."""

    def _start_agent(self, plan: HostPlan) -> subprocess.Popen[bytes]:
        return start_process()


def start_process() -> subprocess.Popen[bytes]:
    return subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)


class Fleet:
    """A receiver, and fakes to talk to it."""

    def __init__(self, plan: HostPlan, folder: Path, sets_aside: bool = False) -> None:
        self.plan = plan
        self.failures = folder / "failures"
        self.cluster = ClusterWithoutAgent(plan, folder / "run.log")
        self.context = zmq.Context()
        lag = plan.policy_lag if plan.is_lockstep else None
        self.inbox = Inbox(
            plan.run,
            plan.schema,
            plan.network.head.choices,
            lag,
            Shares(plan.num_envs, 0, plan.is_lockstep),
            EnvStates(plan.num_envs, plan.schema.state_bytes, plan.seed),
            Account(plan.window),
        )
        self.batches = [Batch(plan.schema, plan.num_envs) for _ in range(plan.policy_lag + 1)]
        kind = LockstepAssembler if plan.is_lockstep else AsyncAssembler
        self.receiver = Receiver(
            self.cluster,
            self.inbox,
            kind(self.batches),
            queue.SimpleQueue(),
            self.failures,
            sets_aside,
        )
        self._closings = contextlib.ExitStack()
        self._sockets: list[zmq.Socket] = []

    def close(self) -> None:
        self._closings.close()
        self.context.destroy(linger=0)
        self.receiver.close()
        self.cluster.close()

    def event(self, kind: type | None = None) -> Any:
        """The next event, or the next one of this kind."""
        while True:
            event = self.receiver.events.get(timeout=TIMEOUT_MS / 1000)
            if kind is None or isinstance(event, kind):
                return event

    def events(self) -> list[Any]:
        """All that are there."""
        found = []
        while not self.receiver.events.empty():
            found.append(self.receiver.events.get())
        return found

    def refused(self) -> int:
        """Unrolls and greetings that were not accepted, duplicates included."""
        verdicts = self.receiver.statistics().verdicts
        return sum(verdicts.values()) - verdicts.get("accepted", 0)

    def everything(self) -> Any:
        """What no refused message may change; asked of the receiver's own thread."""
        return self.receiver._ask(lambda: everything(self.inbox))

    def ledger(self) -> Ledger:
        """The account as it stands, by actor; asked of the receiver's own thread."""
        return self.receiver._ask(lambda: self.receiver._ledger(with_actors=True))

    def dealer(self, endpoint: str, name: bytes | None = None) -> zmq.Socket:
        socket = self.context.socket(zmq.DEALER)
        socket.set(zmq.LINGER, 0)
        socket.set(zmq.RCVTIMEO, TIMEOUT_MS)
        socket.set(zmq.SNDTIMEO, TIMEOUT_MS)
        if name is not None:
            socket.set(zmq.ROUTING_ID, name)
        socket.connect(endpoint)
        self._sockets.append(socket)
        return socket

    def stranger(self, name: bytes | None = None) -> zmq.Socket:
        """A socket that sends whatever it likes to where unrolls go."""
        return self.dealer(self.plan.unroll_endpoint, name)

    def agent(self, says_hello: bool = True) -> "Agent":
        """The fake host agent of this machine, taken in; once per life of the process."""
        plan = self.cluster.plan
        agent = Agent(self, self.cluster.agent_pid, Path(plan.memory_directory), plan.num_actors)
        if says_hello:
            agent.join()
        return agent

    def joining_agent(self, num_actors: int = 2) -> "Agent":
        """One that comes from elsewhere; it says nothing yet."""
        process = start_process()
        self._closings.callback(end_process, process)
        name = f"rollout-{self.plan.name}-{secrets.token_hex(4)}"
        memory = shared_memory_directory() / name
        memory.mkdir(0o700)
        self._closings.callback(shutil.rmtree, memory, ignore_errors=True)
        return Agent(self, process.pid, memory, num_actors, process)

    def actor(self, number: int, incarnation: int = 0, produced: tuple[int, int] = (0, 0)):
        """A fake actor that has not said hello."""
        actor = Actor(self, number, incarnation, produced)
        self._closings.callback(actor.close)
        return actor


def end_process(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    process.wait()


class Agent:
    """A fake host agent with a real page."""

    def __init__(
        self,
        fleet: Fleet,
        pid: int,
        memory: Path,
        num_actors: int,
        process: subprocess.Popen[bytes] | None = None,
    ) -> None:
        self.hello = control.Hello(fleet.plan.run, pid, num_actors, str(memory))
        self.process = process
        self.socket = fleet.dealer(fleet.plan.control_endpoint)
        self.page = HostPage(memory / "page", num_actors, create=True)
        self.take: control.Take | None = None

    def join(self) -> control.Take:
        self.say(self.hello)
        message = self.hear()[0]
        assert isinstance(message, control.Take)
        self.take = message
        return message

    def say(self, message: control.ToLearner) -> None:
        self.socket.send(control.encode(message))

    def hear(self, kind: type | None = None) -> tuple[control.ToAgent, list[bytes]]:
        """The next message, or the next one of this kind."""
        while True:
            message, *frames = self.socket.recv_multipart()
            decoded = control.decode_to_agent(message)
            if kind is None or isinstance(decoded, kind):
                return decoded, frames

    def start(self, actor: int, incarnation: int = 0) -> None:
        self.say(control.ActorStarted(actor, incarnation, 1000 + actor))

    def end(self, actor: int, status: int = 1, **others) -> None:
        """Tell that an actor's life is over."""
        known = {
            "incarnation": 0,
            "pid": 1000 + actor,
            "error": "",
            "hung_s": 0.0,
            "place": -1,
            "t": -1,
            "weights_version": 0,
        }
        self.say(control.ActorEnded(actor=actor, status=status, **(known | others)))


class Actor:
    """A fake actor with a real outbox; its environments end their episodes as they like."""

    def __init__(
        self, fleet: Fleet, number: int, incarnation: int, produced: tuple[int, int]
    ) -> None:
        self.plan = fleet.plan
        self.number = number
        self.outbox = Outbox(fleet.plan, number, incarnation)
        self.outbox._socket.set(zmq.RCVTIMEO, TIMEOUT_MS)
        self.outbox._socket.set(zmq.SNDTIMEO, TIMEOUT_MS)
        self.produced = produced
        self.assignment = Assignment(0, 0, 0, 0, b"")
        self.unroll = 0

    def join(self) -> Assignment:
        """Say hello, and wait for a share."""
        self.assignment = self.outbox.wait_assignment(self.produced)
        self.unroll = self.assignment.first_unroll
        shape = (self.assignment.num_envs, self.plan.schema.state_bytes)
        self.states = np.frombuffer(self.assignment.states, np.uint8).reshape(shape)
        return self.assignment

    def send(self, make_payload: Callable, seed: int = 0, version: int | None = None):
        """The next unroll; returns its payload and counts."""
        schema = self.plan.schema
        num_envs = self.assignment.num_envs
        made = make_payload(schema, num_envs, seed)
        payload, *counts = continued(schema, made, self.states)
        self.states = Unroll.view(schema, payload, num_envs, *counts).env_state
        if version is None:
            version = max(0, self.unroll - self.plan.policy_lag)
        times = ActorTimes(1, 2, 3)
        self.outbox.send(memoryview(payload), self.unroll, version, *counts, times)
        self.unroll += 1
        steps = schema.unroll_length * num_envs
        self.produced = self.produced[0] + 1, self.produced[1] + steps
        return payload, counts

    def close(self) -> None:
        self.outbox.close()
