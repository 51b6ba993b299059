"""Builds a run: from an experiment to the sockets, directories and processes it consists of.

                  ┌─ rollout-learner: this process ─┐
actors ─ unrolls ─┤ ROUTER unrolls                  │
agent ── control ─┤ ROUTER control ── pipe ─────────┼─ rollout-host ─ rollout-templ
                  └─────────────────────────────────┘                 └─ rollout-actor …
"""

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import zmq

from rollout import processes, run_places
from rollout.envs.errors import EnvError
from rollout.envs.foreign.foreign_env import ForeignEnv
from rollout.envs.foreign.trying_out import try_out
from rollout.errors import OperatorError
from rollout.experiment import Experiment
from rollout.experiment_tables import FleetSettings
from rollout.host_memory import host_page_bytes
from rollout.plan import HostPlan, HostStart, run_name, write_record
from rollout.run_places import make_directory, shared_memory_directory, socket_directory
from rollout.shapes import make_network, make_schema
from rollout.wire import HEADER_BYTES

LONGEST_IPC_PATH = 107  # bytes; the kernel's sockaddr_un has no room for more
SPARE_FILES = 64  # descriptors a learner needs besides one per actor
LONGEST_CONTROL_MESSAGE = 1 << 20  # bytes; the list of counts of 100,000 actors fits
ROOM_FOR_ANSWERS = 16  # times the window: an actor waits for its answers; who does not, loses some
END_S = 15.0  # for the agent to end everything, be it thousands; after which the kernel does


def make_plan(experiment: Experiment) -> HostPlan:
    """What the experiment means for a host; makes the run's directories (0700)."""
    env = experiment.env.find()
    if isinstance(env, ForeignEnv):
        if experiment.env.num_envs % env.group:
            raise EnvError(
                f"env.num_envs={experiment.env.num_envs} is no multiple of {env.group}, the agents "
                f"of {experiment.env.id}; each is an environment"
            )
        try_out(env, experiment.seed)
    network = make_network(experiment.network, env, experiment.seed)
    fleet = experiment.fleet
    run = secrets.token_bytes(16)
    _check_open_files(fleet.num_actors)
    _check_shared_memory(4 * network.num_parameters, fleet)
    needs_value = experiment.algorithm.needs_value
    schema = make_schema(env, fleet.unroll_length, needs_value, network)
    _check_memory(schema.size_bytes(experiment.env.num_envs, 0, 0), fleet)
    for parent in {socket_directory(), shared_memory_directory()}:
        run_places.sweep(parent)
    sockets, memory = _make_directories(run)
    return HostPlan(
        run=run,
        socket_directory=str(sockets),
        memory_directory=str(memory),
        env_source=experiment.env.source,
        seed=experiment.seed,
        num_envs=experiment.env.num_envs,
        num_actors=fleet.num_actors,
        mode=fleet.mode,
        policy_lag=fleet.policy_lag,
        window=fleet.window,
        hang_s=fleet.hang_s,
        max_actor_memory=fleet.max_actor_memory,
        network=network,
        schema=schema,
    )


class Cluster:
    """A run's sockets and the host agent of this machine, from its start until `close`."""

    def __init__(self, plan: HostPlan, log: Path, env: bytes = b"", network: bytes = b"") -> None:
        """log: where agent, template and actors write what goes wrong. Others: see HostStart."""
        self.plan = plan
        self._given = env, network
        self._log = log
        self._context = zmq.Context()
        self._hold = run_places.hold(Path(plan.socket_directory))
        longest = max(plan.schema.max_size_bytes(plan.num_envs), HEADER_BYTES)
        try:
            self.unrolls = self._bind(plan.unroll_endpoint, longest, ROOM_FOR_ANSWERS * plan.window)
            self.control = self._bind(plan.control_endpoint, LONGEST_CONTROL_MESSAGE, 0)
            self._agent = self._start_agent(plan)
        except BaseException:
            self._context.destroy(linger=0)
            os.close(self._hold)
            remove_run(plan)
            raise
        self.agent_end = os.pidfd_open(self._agent.pid)

    def __repr__(self) -> str:
        return f"Cluster({self.plan.num_actors} actors, agent {self._agent.pid})"

    @property
    def agent_pid(self) -> int:
        """Of this machine's host agent."""
        return self._agent.pid

    def restart_agent(self) -> None:
        """Start another host agent in place of the one that has died.

        It gets a directory of its own: who reads the old one must not find new numbers in it.
        """
        self._end_agent()
        name = f"{Path(self.plan.socket_directory).name}-{secrets.token_hex(4)}"
        memory = make_directory(shared_memory_directory(), name)
        shutil.rmtree(self.plan.memory_directory, ignore_errors=True)
        self.plan = msgspec.structs.replace(self.plan, memory_directory=str(memory))
        self._agent = self._start_agent(self.plan)
        self.agent_end = os.pidfd_open(self._agent.pid)

    def close(self) -> None:
        """End every process of the run and remove its files; returns when that is done."""
        self._end_agent()
        self._context.destroy(linger=0)
        remove_run(self.plan)  # the agent does, unless it was killed
        os.close(self._hold)

    def _end_agent(self) -> None:
        """Have the agent end, if it has not; nothing of its host is left then."""
        assert self._agent.stdin is not None
        with contextlib.suppress(OSError):
            self._agent.stdin.close()
        try:
            self._agent.wait(END_S)
        except subprocess.TimeoutExpired:
            self._agent.kill()
            self._agent.wait()
        if self.agent_end >= 0:
            os.close(self.agent_end)
            self.agent_end = -1
        run_places.wait_unheld(Path(self.plan.memory_directory), END_S)

    def _bind(self, endpoint: str, longest: int, most_unread: int) -> zmq.Socket:
        """most_unread: messages that wait for a peer to read them; 0: any number."""
        socket = self._context.socket(zmq.ROUTER)
        options = {
            zmq.LINGER: 0,
            zmq.ROUTER_MANDATORY: 1,
            zmq.MAXMSGSIZE: longest,
            zmq.BACKLOG: 4096,
            zmq.RCVHWM: self.plan.window + 1,
            zmq.SNDHWM: most_unread,
        }
        for option, value in options.items():
            socket.set(option, value)
        socket.bind(endpoint)
        return socket

    def _start_agent(self, plan: HostPlan) -> subprocess.Popen[bytes]:
        with open(self._log, "ab") as file:
            agent = subprocess.Popen(
                [sys.executable, "-P", "-m", "rollout.host", plan.name],
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=file,
                # A session of its own: Ctrl-C, or a kill of the whole process group, reaches only
                # the learner, and the agent lives to tidy up.
                start_new_session=True,
            )
        assert agent.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended already, which is noticed
            write_record(agent.stdin.fileno(), HostStart(plan, *self._given))
        return agent


def remove_run(plan: HostPlan) -> None:
    """Remove a run's sockets and shared files; nothing happens if they are gone."""
    for directory in (plan.socket_directory, plan.memory_directory):
        shutil.rmtree(directory, ignore_errors=True)


def _make_directories(run: bytes) -> tuple[Path, Path]:
    """For sockets and for shared memory: both, or none."""
    name = f"rollout-{run_name(run)}"
    sockets = make_directory(socket_directory(), name)
    try:
        if len(os.fsencode(sockets / "unrolls")) > LONGEST_IPC_PATH:
            raise OperatorError(
                f"socket path {sockets}/unrolls is longer than {LONGEST_IPC_PATH} bytes; "
                "set TMPDIR or XDG_RUNTIME_DIR to a shorter one"
            )
        return sockets, make_directory(shared_memory_directory(), name)
    except BaseException:
        sockets.rmdir()
        raise


def _check_open_files(num_actors: int) -> None:
    limit = processes.raise_open_files_limit()
    needed = num_actors + SPARE_FILES
    if limit < needed:
        fewer = f" or set fleet.num_actors={limit - SPARE_FILES}" if limit > SPARE_FILES else ""
        raise OperatorError(
            f"fleet.num_actors={num_actors} needs {needed} open files, this process may have "
            f"{limit}; raise the hard limit (ulimit -Hn){fewer}"
        )


def _check_memory(batch_bytes: int, fleet: FleetSettings) -> None:
    batches = fleet.policy_lag + 1 if fleet.mode == "lockstep" else 2
    on_the_way = 1 if fleet.mode == "lockstep" else fleet.window
    needed = (batches + on_the_way) * batch_bytes
    available = processes.available_memory_bytes()
    if needed > available:
        raise OperatorError(
            f"batches of env.num_envs × fleet.unroll_length steps need {needed / 1e9:.1f} GB, "
            f"{available / 1e9:.1f} GB are available; make one of the two smaller"
        )


def _check_shared_memory(weights_bytes: int, fleet: FleetSettings) -> None:
    directory = shared_memory_directory()
    versions = fleet.policy_lag + 2  # in use, and one being written
    needed = versions * (weights_bytes + 4096) + host_page_bytes(fleet.num_actors) + 4096
    try:
        status = os.statvfs(directory)
    except OSError as error:
        raise OperatorError(
            f"{directory}: {error.strerror}; set ROLLOUT_SHM_DIR to a tmpfs"
        ) from error
    free = status.f_bavail * status.f_frsize
    if free < needed:
        raise OperatorError(
            f"{directory} has {free} bytes free, the weights need {needed}; "
            "free some space there or set ROLLOUT_SHM_DIR to another tmpfs"
        )
