"""A host agent with a real template and real actors, against a learner that only keeps the books."""

import contextlib
import dataclasses
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from rollout import control, wire
from rollout.control import ActorEnded, ActorStarted
from rollout.env_states import EnvStates
from rollout.envs import find_env
from rollout.envs.batch import state_bytes
from rollout.learners.network import initial_parameters
from rollout.learners.unroll import Unroll
from rollout.plan import HostPlan, write_record
from tests.rollout import dying_envs

SOON_S = 60.0  # for what must happen at all; a cold cache compiles first
GONE_S = 2.0  # DESIGN: all is gone, at the latest after so many seconds
FOLDER = str(Path(__file__).parents[2])


class FakeLearner:
    """Binds a run's sockets, starts its agent, welcomes actors and acknowledges what they send."""

    def __init__(self, plan: HostPlan, log: Path, first_actor: int = 0, incarnation: int = 0):
        self.plan = plan
        self.log = log
        self.take = control.Take(first_actor, incarnation)
        self.told: list[Any] = []  # by the agent, in order
        self.hellos: list[tuple[int, int]] = []  # actor, incarnation
        self.accepted: dict[int, int] = defaultdict(int)  # unrolls by actor
        self.acknowledges = True
        env = find_env(plan.env_id, plan.import_path)
        self.states = EnvStates(plan.num_envs, state_bytes(env), plan.seed)
        self.weights = {0: initial_parameters(plan.network, 0).tobytes()}
        self._context = zmq.Context()
        self.unrolls, self.control = (self._bind(n) for n in ("unrolls", "control"))
        self._agent_id = b""
        self._poller = zmq.Poller()
        self._poller.register(self.unrolls, zmq.POLLIN)
        self._poller.register(self.control, zmq.POLLIN)
        with open(log, "ab") as file:
            self.agent = subprocess.Popen(
                [sys.executable, "-P", "-m", "rollout.host", plan.name],
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        assert self.agent.stdin is not None
        write_record(self.agent.stdin.fileno(), plan)

    def _bind(self, name: str) -> zmq.Socket:
        socket = self._context.socket(zmq.ROUTER)
        socket.set(zmq.LINGER, 0)
        socket.bind(f"ipc://{self.plan.socket_directory}/{name}")
        return socket

    def tell(self, message: control.ToAgent, *frames: bytes) -> None:
        self.control.send_multipart((self._agent_id, control.encode(message), *frames))

    def announce(self, version: int, weights: bytes | None = None) -> None:
        self.weights[version] = (
            weights
            or np.full(self.plan.network.num_parameters, 0.01 * version, np.float32).tobytes()
        )
        digest = hashlib.sha256(self.weights[version]).digest()
        self.tell(control.Announce(version, len(self.weights[version]), digest))

    def of(self, kind: type) -> list[Any]:
        """What the agent has told of one kind."""
        return [message for message in self.told if type(message) is kind]

    def serve_until(self, condition: Callable[[], Any], timeout_s: float = SOON_S) -> Any:
        """What `condition` returns once that is true."""
        deadline = time.monotonic() + timeout_s
        while not (answer := condition()):
            assert time.monotonic() < deadline, f"{self.told[-20:]}\n{self.log.read_text()}"
            assert self.agent.poll() is None, self.log.read_text()
            ready = dict(self._poller.poll(5))
            if self.control in ready:
                self._on_control(self.control.recv_multipart())
            if self.unrolls in ready:
                self._on_unrolls(*self.unrolls.recv_multipart())
        return answer

    def _on_control(self, frames: list[bytes]) -> None:
        self._agent_id = frames[0]
        message = control.decode_to_learner(frames[1])
        self.told.append(message)
        if isinstance(message, control.Hello):
            self.tell(self.take)
            for version in self.weights:
                self.announce(version, self.weights[version])
        if isinstance(message, control.Pull):
            self.tell(control.Weights(message.version), self.weights[message.version])

    def share(self, actor: int) -> np.ndarray:
        """Environments of an actor: fixed, and as even as it gets."""
        envs = np.arange(self.plan.num_envs)
        return np.array_split(envs, self.plan.num_actors)[actor - self.take.first_actor]

    def _on_unrolls(self, sender: bytes, head: bytes, payload: bytes) -> None:
        header = wire.decode_header(head, payload)
        run, envs = self.plan.run, self.share(header.actor)
        if header.kind == wire.Kind.HELLO:
            self.hellos.append((header.actor, header.incarnation))
            number = int(self.states.num_unrolls[envs[0]])
            states = self.states.give(envs)
            reply = wire.Reply(wire.Answer.WELCOME, run, number, 1, int(envs[0]), len(envs))
            self.unrolls.send_multipart((sender, wire.encode_reply(reply, states), states))
            return
        sizes = header.num_envs, header.num_finals, header.num_episodes
        unroll = Unroll.view(self.plan.schema, payload, *sizes)
        assert self.states.continues(envs, unroll), "an unroll that continues nothing"
        self.states.accept(envs, unroll)
        self.accepted[header.actor] += 1
        if self.acknowledges:
            reply = wire.Reply(wire.Answer.ACKNOWLEDGED, run, header.sequence)
            self.unrolls.send_multipart((sender, wire.encode_reply(reply), b""))

    def pid(self, actor: int) -> int:
        """Of the actor's newest life."""
        return next(m.pid for m in reversed(self.of(ActorStarted)) if m.actor == actor)

    def serve_until_acting(self, *actors: int) -> None:
        """Until each of these has sent two more unrolls."""
        before = dict(self.accepted)
        self.serve_until(lambda: all(self.accepted[a] >= before.get(a, 0) + 2 for a in actors))

    def close(self) -> None:
        assert self.agent.stdin is not None
        self.agent.stdin.close()
        try:
            self.agent.wait(10)
        finally:
            self.agent.kill()
            self.agent.wait()
            self._context.destroy(linger=0)


@pytest.fixture
def start(make_plan, places, tmp_path) -> Iterator[Callable[..., FakeLearner]]:
    """start(num_actors=3, …): a learner with its agent on its way; ends them."""
    with contextlib.ExitStack() as learners:

        def start(first_actor: int = 0, incarnation: int = 0, **plan: Any) -> FakeLearner:
            known = {"mode": "async", "import_path": FOLDER}
            made = make_plan(**(known | plan))
            learner = FakeLearner(made, tmp_path / "log", first_actor, incarnation)
            learners.callback(learner.close)
            return learner

        yield start


@pytest.fixture
def start_dying(start, make_plan) -> Callable[..., FakeLearner]:
    """start_dying(how, num_actors=3, …): like start, with an environment that dies."""

    def start_dying(how: int, **plan: Any) -> FakeLearner:
        schema = make_plan().schema
        bytes_each = state_bytes(dying_envs.Dies)
        known = {
            "env_id": "tests.rollout.dying_envs:Dies",
            "env_params": {"how": how},
            "schema": dataclasses.replace(schema, state_bytes=bytes_each),
        }
        return start(**(known | plan))

    return start_dying


def is_alive(pid: int) -> bool:
    """Whether there is such a process, and it is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def template_of(learner: FakeLearner) -> int:
    pid = learner.pid(learner.take.first_actor)
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_killed_actor_is_told_of_and_its_next_life_goes_on_from_its_states(start):
    learner = start()
    learner.serve_until_acting(0, 1)
    pid = learner.pid(1)
    os.kill(pid, signal.SIGKILL)
    ended = learner.serve_until(lambda: learner.of(ActorEnded))[0]
    assert (ended.actor, ended.incarnation, ended.pid, ended.status) == (1, 0, pid, -9)
    assert (ended.error, ended.hung_s) == ("", 0.0)
    learner.serve_until(lambda: (1, 1) in learner.hellos)
    learner.serve_until_acting(0, 1)
    assert learner.hellos.count((0, 0)) == 1, "the other one was disturbed"


def test_actors_have_the_numbers_and_incarnations_that_the_learner_gives(start):
    learner = start(first_actor=40, incarnation=3 << 16)
    learner.serve_until_acting(40, 41)
    assert sorted(learner.hellos) == [(40, 3 << 16), (41, 3 << 16)]
    os.kill(learner.pid(41), signal.SIGKILL)
    learner.serve_until(lambda: (41, (3 << 16) + 1) in learner.hellos)


def test_killed_template_takes_its_actors_with_it_and_all_come_back(start):
    learner = start(num_actors=3)
    learner.serve_until_acting(0, 1, 2)
    os.kill(learner.pid(2), signal.SIGKILL)
    learner.serve_until(lambda: (2, 1) in learner.hellos)
    learner.serve_until_acting(2)
    template, old = template_of(learner), [learner.pid(actor) for actor in range(3)]
    learner.told.clear()
    os.kill(template, signal.SIGKILL)
    learner.serve_until(lambda: learner.of(control.TemplateEnded))
    assert not any(map(is_alive, [template, *old])), "another was started before they were gone"
    kinds = [type(message) for message in learner.told]
    assert kinds[:4] == [ActorEnded] * 3 + [control.TemplateEnded]
    assert sorted((m.actor, m.incarnation, m.pid) for m in learner.of(ActorEnded)) == [
        (0, 0, old[0]),
        (1, 0, old[1]),
        (2, 1, old[2]),
    ]
    learner.serve_until(lambda: {(0, 1), (1, 1), (2, 2)} <= {*learner.hellos})
    learner.serve_until_acting(0, 1, 2)
