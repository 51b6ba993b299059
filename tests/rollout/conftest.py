"""Experiments, runs, fleets and records that several tests need."""

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rollout.checkpoint import named_parameters, save_checkpoint
from rollout.env_source import EnvSource
from rollout.envs import find_env
from rollout.envs.batch import state_bytes
from rollout.envs.classic.cartpole import CartPole
from rollout.experiment import Experiment
from rollout.learners.initialization import initial_parameters
from rollout.learners.network import CategoricalHead, make_mlp
from rollout.learners.unroll import Unroll, UnrollSchema
from rollout.ledger import Ledger, Totals
from rollout.plan import HostPlan
from rollout.progress import Progress
from rollout.run_directory import RunDirectory
from rollout.run_places import shared_memory_directory
from rollout.shapes import make_network
from rollout.summary import PolicyLag, Summary


@pytest.fixture
def make_experiment():
    """make_experiment("CartPole-v1", "seed=3", …): a small experiment, with overrides."""

    def make(env_id: str = "CartPole-v1", *overrides: str) -> Experiment:
        tables = {
            "name": "small",
            "env": {"id": env_id, "num_envs": 8},
            "fleet": {"num_actors": 2},
            "stop": {"episode_return": 475, "env_steps": 1000},
        }
        return Experiment.from_dict(tables, overrides)

    return make


@pytest.fixture
def make_run(make_experiment, tmp_path):
    """make_run("CartPole-v1", "seed=3", …): the directory of a run with one checkpoint.

    Its policy is the initial one.
    """

    def make(env_id: str = "CartPole-v1", *overrides: str, where: str = "run") -> RunDirectory:
        experiment = make_experiment(env_id, *overrides)
        spec = make_network(experiment.network, find_env(env_id))
        with RunDirectory.create(experiment, tmp_path / where) as run:
            save_checkpoint(
                run.checkpoints,
                update=5,
                arrays=named_parameters(spec, initial_parameters(spec, experiment.seed)),
                state={"experiment": experiment.model_dump(mode="json"), "env_steps": 2560},
                keep=3,
            )
        return run

    return make


@pytest.fixture
def make_progress():
    """make_progress(update, returns=[…], stop_reason=…): what a learner tells after an update."""

    def make(update: int, returns: list[float] | None = None, **others) -> Progress:
        episode_returns = np.array(returns or [], np.float64)
        known = {
            "update": update,
            "env_steps": 512 * update,
            "wall_s": 0.5 * update,
            "env_steps_per_s": 1234.5,
            "episode_return_mean": 20.0 + update,
            "episode_length_mean": 21.0 + update,
            "num_episodes": 3 * update,
            "episode_returns": episode_returns,
            "episode_lengths": episode_returns.astype(np.int32),
            "losses": {"losses/policy_loss": -0.25, "charts/learning_rate": 0.001},
            "policy_lag": 1,
            "num_actors_alive": 2,
            "num_actors": 2,
            "time_split": {"learner/update": 0.8, "learner/wait": 0.2, "actor/act": 0.5},
            "stop": {"episode_return": 0.25, "env_steps": 0.5},
        }
        return Progress(**(known | others))

    return make


@pytest.fixture
def make_summary():
    """make_summary(goal_reached_s=…): a run that has ended."""

    def make(**others) -> Summary:
        known = {
            "env_steps": 51200,
            "updates": 100,
            "wall_s": 4.0,
            "env_steps_per_s": 812345.0,
            "episode_return_mean": 480.5,
            "goal_reached": True,
            "goal_reached_s": 3.25,
            "params_digest": "ab" * 32,
            "num_actors": 2,
            "actor_restarts": 0,
            "memory_restarts": 0,
            "host_restarts": 0,
            "envs_set_aside": 0,
            "episodes_lost": {},
            "policy_lag": PolicyLag(mean=0.99, max=1, counts={0: 8, 1: 792}),
            "ledger": Ledger(
                unrolls=Totals(204, 200, 1, {"run_ended": 3}),
                steps=Totals(52224, 51200, 256, {"run_ended": 768}),
                actors=[
                    Totals(102, 100, 1, {"run_ended": 1}),
                    Totals(102, 100, 0, {"run_ended": 2}),
                ],
            ),
            "seed": 0,
            "config_digest": "cd" * 32,
            "versions": {"python": "3.11.7"},
        }
        return Summary(**(known | others))

    return make


class Acting:
    """A view that does something at updates: `at(5, action)`. It remembers what it was told."""

    def __init__(self) -> None:
        self.phases: list[str] = []
        self.notices: list[str] = []
        self.checkpoints: list[Path] = []
        self.update = 0
        self.is_finished = False
        self._actions: dict[int, Callable[[], object]] = {}

    def at(self, update: int, action: Callable[[], object]) -> "Acting":
        self._actions[update] = action
        return self

    def phase(self, text: str) -> None:
        self.phases.append(text)

    def notice(self, text: str) -> None:
        self.notices.append(text)

    def write(self, progress: Progress) -> None:
        self.update = progress.update
        action = self._actions.pop(progress.update, None)
        if action is not None:
            action()

    def saved(self, checkpoint: Path) -> None:
        self.checkpoints.append(checkpoint)

    def finish(self, summary: Summary, run: RunDirectory) -> None:
        self.is_finished = True


@pytest.fixture
def view() -> Acting:
    """A view that does something: view.at(update, action)."""
    return Acting()


SMALL = """
[env]
id = "CartPole-v1"
num_envs = 8
[fleet]
num_actors = 3
unroll_length = 16
[network]
hidden_sizes = [8]
"""
FILE = f"{SMALL}[stop]\nenv_steps = 1_000_000_000\nwall_s = 80\n"


class Command:
    """`rollout train` as a process of its own, in a session of its own, started in `folder`.

    Its run is in folder/run, what it says in folder/said.
    """

    def __init__(self, folder: Path, *arguments: str, inside: Sequence[str] = ()) -> None:
        """inside: a command that runs it."""
        self.folder = folder
        program = [sys.executable, "-P", "-m", "rollout", "train"]
        with open(folder / "said", "w") as said:
            self.process = subprocess.Popen(
                [*inside, *program, *arguments],
                cwd=folder,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def wait(self, timeout_s: float = 90.0) -> int:
        return self.process.wait(timeout_s)

    def said(self) -> str:
        return (self.folder / "said").read_text()

    def kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def updates(self) -> list[int]:
        """By the lines of metrics.jsonl."""
        return [line["update"] for line in read_lines(self.run / "metrics.jsonl")]

    def last_update(self) -> int:
        """The newest of them, 0 before there is one; however many there are."""
        with contextlib.suppress(FileNotFoundError), open(self.run / "metrics.jsonl", "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 16_000))
            lines = file.read().split(b"\n")[:-1]
            return json.loads(lines[-1])["update"] if lines else 0
        return 0

    def wait_update(self, update: int = 1, timeout_s: float = 90.0) -> None:
        """Until metrics.jsonl tells of this update; fails if the command ends before."""

        def is_there() -> bool:
            assert self.process.poll() is None, self.said()
            return self.last_update() >= update

        wait_until(is_there, timeout_s, f"update {update}")

    def num_checkpoints(self) -> int:
        return sum(1 for _ in self.run.glob("checkpoints/update-*/manifest.json"))


def read_lines(path: Path) -> list[Any]:
    """The lines of a JSON Lines file that may not be there yet, but for a torn one."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


class Starter:
    """start("seed=3", …) trains in small, in the folder of the test; start.again(…) resumes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.commands: list[Command] = []

    def __call__(self, *overrides: str, inside: Sequence[str] = (), file: str = FILE) -> Command:
        (self.folder / "x.toml").write_text(file)
        return self._start("x.toml", *overrides, "--run-dir", "run", inside=inside)

    def again(self, *overrides: str, inside: Sequence[str] = ()) -> Command:
        return self._start("--resume", "run", *overrides, inside=inside)

    def _start(self, *arguments: str, inside: Sequence[str]) -> Command:
        self.commands.append(Command(self.folder, *arguments, inside=inside))
        return self.commands[-1]


@pytest.fixture
def start(places, tmp_path) -> Iterator[Starter]:
    """`rollout train` as a process; what the test leaves of it is killed."""
    starter = Starter(tmp_path)
    yield starter
    for command in starter.commands:
        command.kill_group()
        command.process.wait()


@pytest.fixture
def make_plan():
    """make_plan(num_envs=37, …): a small plan, with directories that are there until the end."""
    with contextlib.ExitStack() as directories:

        def make(**others) -> HostPlan:
            sockets = tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True)
            memory = tempfile.TemporaryDirectory(
                dir=shared_memory_directory(), prefix="r", ignore_cleanup_errors=True
            )
            known = {
                "run": secrets.token_bytes(16),
                "socket_directory": directories.enter_context(sockets),
                "memory_directory": directories.enter_context(memory),
                "seed": 0,
                "num_envs": 6,
                "num_actors": 2,
                "mode": "lockstep",
                "policy_lag": 1,
                "window": 2,
                "hang_s": None,
                "max_actor_memory": None,
                "network": make_mlp((4,), CategoricalHead((2,)), (8, 8), "tanh", "shared"),
                "schema": UnrollSchema(5, (4,), "<f4", (), "<i4", True, state_bytes(CartPole)),
            }
            source = {"id": "CartPole-v1", "params": {}, "folder": os.getcwd()}
            source |= {name: others.pop(name) for name in source.keys() & others.keys()}
            return HostPlan(env_source=EnvSource(**source), **(known | others))

        yield make


@pytest.fixture
def make_payload():
    """make_payload(schema, num_envs, seed): bytes of an unroll and (num_finals, num_episodes)."""

    def make(schema: UnrollSchema, num_envs: int, seed: int = 0) -> tuple[bytes, int, int]:
        random = np.random.default_rng(seed)
        ends = random.random((schema.unroll_length, num_envs))
        terminated, truncated = ends < 0.2, ends > 0.8
        finals, episodes = truncated.nonzero(), (terminated | truncated).nonzero()
        counts = len(finals[0]), len(episodes[0])
        payload = bytearray(schema.size_bytes(num_envs, *counts))
        unroll = Unroll.view(schema, payload, num_envs, *counts)
        for field in (unroll.observation, unroll.reward, unroll.final_observation, unroll.value):
            field[:] = random.standard_normal(field.shape)
        unroll.action[:] = random.integers(0, 2, unroll.action.shape)
        unroll.terminated[:], unroll.truncated[:] = terminated, truncated
        unroll.final_t[:], unroll.final_env[:] = finals
        unroll.episode_t[:], unroll.episode_env[:] = episodes
        unroll.episode_return[:] = random.integers(1, 500, counts[1])
        unroll.episode_length[:] = unroll.episode_return
        return bytes(payload), *counts

    return make


class Places:
    """Where the fleets of one test have their sockets and shared files; finds what they left.

    A process belongs to the test if its environment names the directory of sockets. Zombies are
    over; whoever is their parent may take its time to say so.
    """

    def __init__(self, sockets: Path, memory: Path) -> None:
        self.sockets = sockets
        self.memory = memory
        self.environment = {"XDG_RUNTIME_DIR": str(sockets), "ROLLOUT_SHM_DIR": str(memory)}

    def pids(self, name: str | None = None) -> list[int]:
        """Processes that were started with `environment`, by /proc/PID/comm if wanted."""
        marker = f"XDG_RUNTIME_DIR={self.sockets}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            with contextlib.suppress(OSError):  # it has ended meanwhile
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                comm = (entry / "comm").read_text().strip()
                is_ours = marker in (entry / "environ").read_bytes().split(b"\0")
                if is_ours and state != "Z" and name in (None, comm):
                    found.append(int(entry.name))
        return found

    def wait_pids(self, name: str, count: int = 1, timeout_s: float = 90.0) -> list[int]:
        """Pids of processes of this name, once there are `count`."""
        return wait_until(
            lambda: found if len(found := self.pids(name)) >= count else None,
            timeout_s,
            f"{count} processes {name}",
        )

    def leftovers(self) -> list[str]:
        """All that is still there."""
        processes = [
            f"{pid} {Path(f'/proc/{pid}/comm').read_text().strip()}"
            for pid in self.pids()
            if Path(f"/proc/{pid}/comm").exists()
        ]
        files = [*self.sockets.iterdir(), *self.memory.iterdir()]
        return processes + [str(file) for file in files]

    def assert_gone(self, within_s: float = 2.0) -> None:
        """Nothing is left, at the latest after so many seconds."""
        try:
            wait_until(lambda: not self.leftovers(), within_s, "the end")
        except AssertionError:
            raise AssertionError(f"left after {within_s} s: {self.leftovers()}") from None


def wait_until(condition, timeout_s: float, what: str):
    """What `condition` returns once that is true; fails after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"no {what} within {timeout_s} s"
        time.sleep(0.005)  # for the processor's sake: what happens elsewhere gives us no signal
    return answer


@pytest.fixture
def places(monkeypatch) -> Iterator[Places]:
    """Directories for the fleets of this test, set in its environment; kills what it leaves."""
    with (
        tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True) as sockets,
        tempfile.TemporaryDirectory(
            dir=shared_memory_directory(), prefix="r", ignore_cleanup_errors=True
        ) as memory,
    ):
        places = Places(Path(sockets), Path(memory))
        for name, value in places.environment.items():
            monkeypatch.setenv(name, value)
        try:
            yield places
        finally:
            for pid in places.pids():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
