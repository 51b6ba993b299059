"""A host agent with a real template and real actors, and a learner that only keeps the books."""

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

from rollout import control, run_places, wire
from rollout.control import ActorEnded, ActorStarted, GaveUp
from rollout.env_states import EnvStates
from rollout.envs.batch import state_bytes
from rollout.host_memory import HostPage
from rollout.learners.initialization import initial_parameters
from rollout.learners.unroll import Unroll
from rollout.plan import HostPlan, HostStart, write_record
from rollout.template import error_text
from tests.rollout import dying_envs
from tests.rollout.conftest import wait_until

SOON_S = 25.0  # for what must happen at all; a cold cache compiles first
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
        self.states = EnvStates(plan.num_envs, plan.schema.state_bytes, plan.seed)
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
        write_record(self.agent.stdin.fileno(), HostStart(plan))

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
            states = self.states.give(envs, cut=1)
            reply = wire.Reply(wire.Answer.WELCOME, run, number, 1, int(envs[0]), len(envs))
            self.unrolls.send_multipart((sender, wire.encode_reply(reply, states), states))
            return
        if header.incarnation < max(life for actor, life in self.hellos if actor == header.actor):
            return  # a former life's: its pipe may be read after the hello of the next
        sizes = header.num_envs, header.num_finals, header.num_episodes
        unroll = Unroll.view(self.plan.schema, payload, *sizes)
        assert self.states.continues(envs, unroll), "an unroll that continues nothing"
        self.states.accept(envs, unroll)
        self.accepted[header.actor] += 1
        if self.acknowledges:
            reply = wire.Reply(wire.Answer.ACKNOWLEDGED, run, header.sequence)
            self.unrolls.send_multipart((sender, wire.encode_reply(reply), b""))

    def pid(self, actor: int) -> int:
        """Of the actor's newest life that has said hello."""
        life = max(each for each in self.hellos if each[0] == actor)
        found = self.serve_until(
            lambda: [m for m in self.of(ActorStarted) if (m.actor, m.incarnation) == life]
        )
        return found[0].pid

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
            known = {"mode": "async", "folder": FOLDER}
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
            "id": "tests.rollout.dying_envs:Dies",
            "params": {"how": how},
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


def end_of_dying_actor(start_dying, how: int, **plan: Any) -> tuple[FakeLearner, ActorEnded]:
    """Environment 3 of 6 dies at its step 7; actor 1 of 2 has it as its first."""
    learner = start_dying(how, **plan)
    return learner, learner.serve_until(lambda: learner.of(ActorEnded))[0]


def test_error_raised_by_an_environment_is_told_with_its_place_and_step(start_dying):
    learner, ended = end_of_dying_actor(start_dying, dying_envs.RAISE)
    assert (ended.actor, ended.status) == (1, 1)
    assert ended.error == "ValueError: the pole is broken"
    # Unrolls have 5 steps: step 7 is the third of the second one.
    assert (ended.place, ended.t, ended.weights_version) == (0, 2, 0)
    assert learner.accepted[1] == 1, "an unroll that was sealed did not get out"
    assert "Traceback" in learner.log.read_text()


def test_place_counts_within_the_actors_share(start_dying):
    params = {"how": dying_envs.RAISE, "env": 5, "at": 4}
    _, ended = end_of_dying_actor(start_dying, dying_envs.RAISE, params=params)
    assert (ended.actor, ended.place, ended.t) == (1, 2, 4)


def test_crash_in_compiled_code_is_told_with_its_place_and_step(start_dying):
    _, ended = end_of_dying_actor(start_dying, dying_envs.SEGFAULT)
    assert (ended.actor, ended.status, ended.error) == (1, -signal.SIGSEGV, "")
    assert (ended.place, ended.t) == (0, 2)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (SystemExit(7), "sys.exit(7) was called"),
        (SystemExit(), "sys.exit() was called"),
        (ValueError("no such move"), "ValueError: no such move"),
        (KeyError(), "KeyError"),
        (ValueError("ä" * 5000), "ValueError: " + "ä" * 1494),
    ],
)
def test_error_says_what_it_is_and_fits_into_one_piece_of_a_pipe(error, text):
    assert error_text(error) == text


def test_actor_that_dies_between_unrolls_was_nowhere(start):
    learner = start()
    learner.serve_until_acting(0, 1)
    learner.acknowledges = False  # it will wait for credit
    page = HostPage(Path(learner.plan.memory_directory) / "page", 2)
    learner.serve_until(lambda: is_quiet(learner, page))
    os.kill(learner.pid(0), signal.SIGKILL)
    ended = learner.serve_until(lambda: learner.of(ActorEnded))[0]
    assert (ended.place, ended.t) == (-1, -1)


def test_hanging_actor_leaves_its_stack_and_is_killed_within_its_limit(start_dying):
    learner, ended = end_of_dying_actor(start_dying, dying_envs.HANG, hang_s=0.75)
    assert (ended.actor, ended.status) == (1, -signal.SIGKILL)
    assert (ended.place, ended.t) == (0, 2)
    assert 0.75 < ended.hung_s < 1.75
    log = learner.log.read_text()
    assert "actor 1 (process" in log and "most recent call first" in log and "in act" in log
    learner.serve_until(lambda: (1, 1) in learner.hellos)
    learner.serve_until_acting(0)


def test_stopped_actor_is_killed_like_one_that_hangs(start_dying):
    """It cannot answer when it is asked for its stack, and is not waited for."""
    learner = start_dying(dying_envs.HANG, hang_s=1.0)
    learner.serve_until(lambda: learner.accepted[1] == 1)  # it hangs in the next one
    pid = learner.pid(1)
    os.kill(pid, signal.SIGSTOP)
    ended = learner.serve_until(lambda: learner.of(ActorEnded))[0]
    assert (ended.pid, ended.status) == (pid, -signal.SIGKILL)
    assert 1.0 < ended.hung_s < 2.0
    assert "most recent call first" not in learner.log.read_text()
    learner.serve_until(lambda: (1, 1) in learner.hellos)


def test_actor_that_is_stopped_while_it_waits_is_killed_as_well(start):
    learner = start(hang_s=1.0)
    learner.serve_until_acting(0, 1)
    learner.acknowledges = False
    page = HostPage(Path(learner.plan.memory_directory) / "page", 2)
    learner.serve_until(lambda: is_quiet(learner, page))
    pid = learner.pid(1)
    os.kill(pid, signal.SIGSTOP)
    ended = learner.serve_until(lambda: learner.of(ActorEnded))[0]
    assert (ended.pid, ended.status, ended.place, ended.t) == (pid, -signal.SIGKILL, -1, -1)
    assert 1.0 < ended.hung_s < 2.0


def test_actor_that_is_stopped_and_goes_on_lives(start):
    learner = start(hang_s=1.0)
    learner.acknowledges = False
    learner.serve_until(lambda: len(learner.hellos) == 2)
    page = HostPage(Path(learner.plan.memory_directory) / "page", 2)
    learner.serve_until(lambda: is_quiet(learner, page))
    for number in (signal.SIGSTOP, signal.SIGCONT):
        os.kill(learner.pid(0), number)
    end = time.monotonic() + 2.0  # what is seen is that nothing happens
    learner.serve_until(lambda: time.monotonic() > end)
    assert not learner.of(ActorEnded)


def is_quiet(learner: FakeLearner, page: HostPage) -> bool:
    """Whether all actors wait for credit, and all they have sent is here."""
    sent = page.produced().sum()
    lives = len(learner.hellos)
    return (
        not page.slots["began_ns"].any()
        and sent == sum(learner.accepted.values())
        and (sent >= lives * learner.plan.window)
    )


def test_stopped_template_is_replaced(start):
    learner = start()
    learner.serve_until_acting(0, 1)
    os.kill(template_of(learner), signal.SIGSTOP)
    os.kill(learner.pid(0), signal.SIGKILL)  # which nobody hears of for now
    learner.serve_until(lambda: learner.of(control.TemplateEnded))
    learner.serve_until(lambda: {(0, 1), (1, 1)} <= {*learner.hellos})
    learner.serve_until_acting(0, 1)


def test_waiting_actor_does_not_hang_however_long_it_waits(start):
    learner = start(hang_s=0.2)
    learner.acknowledges = False
    learner.serve_until(lambda: len(learner.hellos) == 2)
    end = time.monotonic() + 1.5  # what is seen is that nothing happens
    learner.serve_until(lambda: time.monotonic() > end)
    assert not learner.of(ActorEnded)


def test_actor_that_never_gets_anywhere_is_given_up_with_its_first_error(start_dying):
    params = {"how": dying_envs.RAISE, "env": 3, "at": 0}
    learner = start_dying(dying_envs.RAISE, params=params)
    gave_up = learner.serve_until(lambda: learner.of(GaveUp))[0]
    assert gave_up.actor == 1
    said = "ended with status 1: ValueError: the pole is broken"
    # The folder may be another: compiled code is kept by its text, wherever that lay then.
    assert gave_up.first_error.startswith(f"{said} (")
    assert gave_up.first_error.endswith(f"/{Path(dying_envs.__file__).name}:27)")
    lives = [ended.incarnation for ended in learner.of(ActorEnded)]
    assert lives == [0, 1, 2, 3, 4, 5]
    assert [m.incarnation for m in learner.of(ActorStarted) if m.actor == 1] == lives
    learner.serve_until_acting(0)


def test_actor_that_gets_on_between_its_deaths_is_never_given_up(start):
    learner = start()
    for life in range(8):
        learner.serve_until_acting(0)
        os.kill(learner.pid(0), signal.SIGKILL)
        learner.serve_until(lambda life=life: (0, life + 1) in learner.hellos)
    assert not learner.of(GaveUp)


def test_unrolls_are_counted_over_all_lives(start):
    learner = start(num_actors=3)
    learner.serve_until_acting(0, 1, 2)
    for actor in (0, 2):
        os.kill(learner.pid(actor), signal.SIGKILL)
    learner.serve_until(lambda: {(0, 1), (2, 1)} <= {*learner.hellos})
    learner.serve_until_acting(0, 1, 2)
    learner.tell(control.Stop())
    stopped = learner.serve_until(lambda: learner.of(control.Stopped))[0]
    window, steps = learner.plan.window, 5 * 2
    for actor in range(3):
        produced = stopped.produced[actor]
        lives = sum(hello[0] == actor for hello in learner.hellos)
        assert 0 <= produced - learner.accepted[actor] <= window * lives
        assert stopped.produced_steps[actor] == steps * produced


def test_stop_ends_every_process_of_the_host(start, places):
    learner = start(num_actors=3)
    learner.serve_until_acting(0, 1, 2)
    learner.tell(control.Stop())
    learner.serve_until(lambda: learner.of(control.Stopped))
    assert learner.agent.wait(GONE_S) == 0
    assert Path(learner.plan.socket_directory).exists(), "the learner's, which is alive"
    assert not Path(learner.plan.memory_directory).exists()
    places.assert_gone()


def test_nothing_is_left_when_the_learners_pipe_closes(start, places):
    learner = start(num_actors=3)
    learner.serve_until_acting(0, 1, 2)
    assert learner.agent.stdin is not None
    learner.agent.stdin.close()
    places.assert_gone(GONE_S)
    assert learner.agent.wait(GONE_S) == 0
    assert not Path(learner.plan.socket_directory).exists()
    assert not Path(learner.plan.memory_directory).exists()


def test_nothing_of_a_killed_agent_lives_on(start, places):
    learner = start(num_actors=3)
    learner.serve_until_acting(0, 1, 2)
    learner.agent.kill()
    assert run_places.wait_unheld(Path(learner.plan.memory_directory), GONE_S)
    assert places.pids() == []


def test_stopped_actors_and_template_end_with_the_rest(start, places):
    learner = start(num_actors=3)
    learner.serve_until_acting(0, 1, 2)
    for pid in (learner.pid(1), template_of(learner)):
        os.kill(pid, signal.SIGSTOP)
    assert learner.agent.stdin is not None
    learner.agent.stdin.close()
    places.assert_gone(GONE_S)


def test_directory_is_held_until_the_last_actor_is_dead(start):
    learner = start()
    directory = Path(learner.plan.memory_directory)
    learner.serve_until_acting(0, 1)
    assert not run_places.wait_unheld(directory, 0)
    template = template_of(learner)
    os.kill(template, signal.SIGSTOP)  # it lives on, and holds
    try:
        learner.agent.kill()
        assert run_places.wait_unheld(directory, GONE_S), "the kernel ends a stopped one, too"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(template, signal.SIGKILL)


def test_template_that_dies_again_and_again_ends_the_run_with_the_first_reason(start):
    learner = start()
    learner.weights.clear()  # nobody gets to act
    reasons = []
    for life in range(6):
        learner.serve_until(lambda life=life: {(0, life), (1, life)} <= {*learner.hellos})
        number = signal.SIGSEGV if life == 0 else signal.SIGKILL
        os.kill(template_of(learner), number)
        reasons = learner.serve_until(
            lambda life=life: len(ends := learner.of(control.TemplateEnded)) == life + 1 and ends
        )
    failed = learner.serve_until(lambda: learner.of(control.Failed))[0]
    assert "SIGSEGV" in reasons[0].how and "SIGSEGV" in failed.reason


def test_lockstep_pulls_every_version_in_order_and_keeps_those_in_use(start):
    learner = start(mode="lockstep", policy_lag=1)
    for version in range(1, 30):
        learner.serve_until(lambda v=version: all(learner.accepted[a] >= v for a in (0, 1)))
        learner.announce(version)
    learner.serve_until(lambda: all(learner.accepted[a] == 31 for a in (0, 1)))
    assert [pull.version for pull in learner.of(control.Pull)] == list(range(30))
    # Actors are woken before the version that nobody needs any more is removed.
    memory = Path(learner.plan.memory_directory)
    kept = {"weights-28", "weights-29"}
    wait_until(lambda: {file.name for file in memory.glob("weights-*")} == kept, 10, "two files")


def test_async_pulls_only_what_is_newest(start):
    learner = start()
    learner.serve_until_acting(0, 1)
    for version in range(1, 30):  # all of them before it can have asked for the second
        learner.announce(version)
    pulls = learner.serve_until(
        lambda: (pulls := [pull.version for pull in learner.of(control.Pull)])[-1] == 29 and pulls
    )
    assert pulls == sorted(set(pulls)) and len(pulls) <= 10
    learner.serve_until_acting(0, 1)
    memory = Path(learner.plan.memory_directory)
    learner.serve_until(lambda: HostPage(memory / "page", 2).version == 29)
    wait_until(lambda: len(list(memory.glob("weights-*"))) == 2, 10, "two files")


def test_weights_are_written_once_there_is_room_again(start):
    learner = start()
    learner.serve_until_acting(0, 1)
    memory = Path(learner.plan.memory_directory)
    (memory / "weights-1.partial").mkdir()  # in the way, as a full tmpfs would be
    learner.announce(1)
    learner.serve_until(lambda: control.Pull(1) in learner.told)
    learner.serve_until_acting(0, 1)
    (memory / "weights-1.partial").rmdir()
    learner.serve_until(lambda: HostPage(memory / "page", 2).version == 1)
    assert not learner.of(control.Failed)


def test_weights_that_cannot_be_written_for_long_end_the_run(start):
    learner = start()
    learner.serve_until_acting(0, 1)
    (Path(learner.plan.memory_directory) / "weights-1.partial").mkdir()
    learner.announce(1)
    failed = learner.serve_until(lambda: learner.of(control.Failed))[0]
    assert "weights version 1" in failed.reason and "ROLLOUT_SHM_DIR" in failed.reason


def test_damaged_weights_are_not_acted_with(start):
    learner = start()
    learner.serve_until_acting(0, 1)
    learner.weights[1] = b"x" * 4 * learner.plan.network.num_parameters
    learner.tell(control.Announce(1, len(learner.weights[1]), bytes(32)))
    failed = learner.serve_until(lambda: learner.of(control.Failed))[0]
    assert failed.reason == "weights version 1 arrived damaged"
    page = HostPage(Path(learner.plan.memory_directory) / "page", 2)
    assert page.version == 0


def test_cut_reaches_the_page(start):
    learner = start()
    learner.serve_until_acting(0, 1)
    learner.tell(control.Cut(2, 17))
    page = HostPage(Path(learner.plan.memory_directory) / "page", 2)
    learner.serve_until(lambda: page.cut == (2, 17))


def test_agent_leaves_to_the_learner_the_signals_that_are_the_learners(start):
    learner = start()
    learner.serve_until_acting(0, 1)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(learner.agent.pid, number)
    learner.serve_until_acting(0, 1)
    assert not learner.of(ActorEnded)


def test_environment_that_does_not_prepare_is_told_of_and_not_tried_again(start, tmp_path):
    (tmp_path / "broken.py").write_text("raise ValueError('no licence')")
    learner = start(id="broken:Env", folder=str(tmp_path))
    learner.serve_until(lambda: learner.of(control.TemplateEnded))
    (unprepared,) = learner.of(control.Unprepared)
    assert unprepared.is_authors and "no licence" in unprepared.error
    end = time.monotonic() + 0.5  # what is seen is that nothing happens
    learner.serve_until(lambda: time.monotonic() > end)
    assert len(learner.of(control.TemplateEnded)) == 1


SHORT = """
import os
from rollout.envs.classic.cartpole import CartPole
class Short(CartPole): ...
fork, calls = os.fork, []
def fork_or_fail():
    calls.append(None)
    if len(calls) in {refused}:
        raise BlockingIOError(11, "Resource temporarily unavailable")
    return fork()
os.fork = fork_or_fail
"""


@pytest.mark.parametrize(("refused", "is_given_up"), [("(1, 3)", False), ("range(2, 99)", True)])
def test_actor_that_cannot_be_forked_is_tried_again_and_others_live_on(
    start, tmp_path, refused, is_given_up
):
    (tmp_path / "short.py").write_text(SHORT.replace("{refused}", refused))
    learner = start(id="short:Short", folder=str(tmp_path))
    if is_given_up:
        gave_up = learner.serve_until(lambda: learner.of(GaveUp))[0]
        assert gave_up.first_error.startswith("could not be forked: BlockingIOError")
        learner.serve_until_acting(0)
    else:
        learner.serve_until_acting(0, 1)
        assert max(incarnation for _, incarnation in learner.hellos) == 2
    assert not learner.of(control.TemplateEnded)


HELPED = """
import subprocess
from rollout.envs.classic.cartpole import CartPole
helper = subprocess.Popen(["sleep", "1000"])
class Helped(CartPole): ...
"""


def test_process_that_an_environments_module_has_started_dies_with_the_template(
    start, places, tmp_path
):
    (tmp_path / "helped.py").write_text(HELPED)
    learner = start(id="helped:Helped", folder=str(tmp_path))
    learner.serve_until_acting(0, 1)
    (helper,) = places.pids("sleep")
    os.kill(template_of(learner), signal.SIGKILL)
    learner.serve_until(lambda: learner.of(control.TemplateEnded))
    assert not is_alive(helper)
    learner.serve_until_acting(0, 1)
    assert len(places.pids("sleep")) == 1
    learner.tell(control.Stop())
    learner.serve_until(lambda: learner.of(control.Stopped))
    assert learner.agent.wait(GONE_S) == 0
    places.assert_gone(0.5)
