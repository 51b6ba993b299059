"""The processes of a run: what they are, what they cost, and that none outlives its run."""

import contextlib
import os
import queue
import resource
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rollout import api
from rollout.assembler import FullBatch, LockstepAssembler
from rollout.cluster import LONGEST_IPC_PATH, Cluster, make_plan
from rollout.env_states import EnvStates
from rollout.errors import OperatorError
from rollout.events import FleetFailed, FleetStopped
from rollout.inbox import Inbox
from rollout.learners.initialization import initial_parameters
from rollout.learners.unroll import Batch
from rollout.ledger import Account
from rollout.receiver import Receiver
from rollout.run_directory import RunDirectory
from rollout.shares import Shares
from tests.rollout.conftest import FILE, Command, wait_until

COMMAND = [sys.executable, "-P", "-m", "rollout", "train", "x.toml", "--run-dir", "run"]
WITHIN_S = 2.0  # DESIGN: all is gone, at the latest after so many seconds


@pytest.fixture
def train(places, tmp_path, view):
    """train("seed=3", …): a run in this process that goes on until something stops it."""

    def train(*overrides: str) -> api.Result:
        tables = {
            "name": "endless",
            "env": {"id": "CartPole-v1", "num_envs": 8},
            "fleet": {"num_actors": 3, "unroll_length": 16},
            "network": {"hidden_sizes": [8]},
            "algorithm": {"kind": "ppo"},
            "stop": {"env_steps": 10**9},
        }
        return api.train(tables, overrides, run_dir=tmp_path / "run", view=view)

    return train


def assert_can_be_evaluated(run: Path) -> None:
    from rollout.policy import load_policy

    assert load_policy(run).act(np.zeros(4, np.float32)) in (0, 1)


# A fleet without training


@pytest.fixture
def make_fleet(places, tmp_path, make_experiment):
    """make_fleet("fleet.num_actors=50", …): a real fleet and its receiver; nobody trains."""
    closings = contextlib.ExitStack()

    def make(*overrides: str) -> SimpleNamespace:
        plan = make_plan(make_experiment("CartPole-v1", "network.hidden_sizes=[8]", *overrides))
        cluster = Cluster(plan, tmp_path / "run.log")
        inbox = Inbox(
            plan.run,
            plan.schema,
            plan.network.head.choices,
            plan.policy_lag,
            Shares(plan.num_envs, 0, is_lockstep=True),
            EnvStates(plan.num_envs, plan.schema.state_bytes, plan.seed),
            Account(plan.window),
        )
        batches = [Batch(plan.schema, plan.num_envs) for _ in range(plan.policy_lag + 1)]
        assembler = LockstepAssembler(batches)
        receiver = Receiver(cluster, inbox, assembler, queue.SimpleQueue(), tmp_path / "failures")
        closings.callback(cluster.close)
        closings.callback(receiver.close)
        return SimpleNamespace(plan=plan, inbox=inbox, receiver=receiver, close=closings.close)

    with closings:
        yield make


def wait_event(receiver: Receiver, kind: type) -> Any:
    while True:
        event = receiver.events.get(timeout=60)
        assert not isinstance(event, FleetFailed), event.error
        if isinstance(event, kind):
            return event


def cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def pss_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return 1024 * int(line.split()[1])
    raise AssertionError("no Pss")


def stream(fleet: SimpleNamespace, num_batches: int) -> None:
    """Be the learner of so many batches, without learning."""
    weights = initial_parameters(fleet.plan.network, 0).tobytes()
    for version in range(num_batches):
        fleet.receiver.publish(version, weights)
        batch = wait_event(fleet.receiver, FullBatch).batch
        assert batch.env.tolist() == list(range(fleet.plan.num_envs))
        assert set(batch.weights_version) == {max(0, version - fleet.plan.policy_lag)}
        fleet.receiver.trained(batch)


def test_processes_have_their_names_and_actors_are_without_torch(make_fleet, places):
    fleet = make_fleet("fleet.num_actors=3")
    stream(fleet, 3)
    assert len(places.pids("rollout-host")) == len(places.pids("rollout-templ")) == 1
    (template,), actors = places.pids("rollout-templ"), places.pids("rollout-actor")
    assert len(actors) == 3
    assert os.listdir(f"/proc/{template}/task") == [str(template)], "only one thread may fork"
    for pid in (template, *places.pids("rollout-host"), *actors):
        libraries = Path(f"/proc/{pid}/maps").read_text()
        assert "torch" not in libraries and "pydantic" not in libraries
        assert fleet.plan.name in Path(f"/proc/{pid}/cmdline").read_text()


@pytest.mark.slow
def test_waiting_actors_cost_nothing(make_fleet, places):
    fleet = make_fleet("fleet.num_actors=50", "env.num_envs=50", "fleet.unroll_length=4")
    stream(fleet, 2)
    # Versions 0 and 1 are out: unrolls 2 (acted with 1) fill the last batch, then all must wait.
    wait_event(fleet.receiver, FullBatch)
    actors = places.wait_pids("rollout-actor", 50)
    others = places.pids("rollout-templ") + places.pids("rollout-host")
    wait_until(lambda: all(is_asleep(pid) for pid in actors), 60, "sleep of all actors")
    before = {pid: cpu_ticks(pid) for pid in (*actors, *others)}
    started = time.monotonic()
    time.sleep(2.0)  # this is what is measured: that nothing happens
    spent = sum(cpu_ticks(pid) - ticks for pid, ticks in before.items())
    share = spent / os.sysconf("SC_CLK_TCK") / (time.monotonic() - started)
    assert share <= 0.05, f"50 waiting actors take {share:.1%} of a core"


def is_asleep(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


def test_directories_are_the_users_own_and_go_with_the_run(make_fleet, places):
    fleet = make_fleet()
    for directory in (fleet.plan.socket_directory, fleet.plan.memory_directory):
        assert stat.S_IMODE(os.stat(directory).st_mode) == 0o700
        assert fleet.plan.name in directory
    fleet.close()
    places.assert_gone(within_s=0.5)


def test_old_weights_are_removed_from_memory(make_fleet):
    fleet = make_fleet()
    stream(fleet, 10)
    files = {path.name for path in Path(fleet.plan.memory_directory).glob("weights-*")}
    assert files <= {f"weights-{version}" for version in (7, 8, 9)}, files


def end(fleet: SimpleNamespace) -> list[int]:
    """Stop a fleet; what each of its actors has produced."""
    fleet.receiver.stop_fleet()
    wait_event(fleet.receiver, FleetStopped)
    ledger = fleet.receiver.end_account()
    assert ledger.is_balanced, ledger.as_dict()
    return [actor.produced for actor in ledger.actors]


def test_stopping_tells_what_every_actor_has_produced(make_fleet):
    fleet = make_fleet("fleet.num_actors=3")
    stream(fleet, 4)
    produced = end(fleet)
    assert len(produced) == 3 and all(4 <= count <= 5 for count in produced)


@pytest.mark.slow
def test_two_hundred_actors_stream_in_little_memory_and_stop(make_fleet, places):
    fleet = make_fleet("fleet.num_actors=200", "env.num_envs=16_000", "fleet.unroll_length=32")
    stream(fleet, 5)
    actors = places.pids("rollout-actor")
    assert len(actors) == 200
    pss = np.array([pss_bytes(pid) for pid in actors])
    assert pss.mean() <= 8e6, f"{pss.mean() / 1e6:.1f} MB per actor"
    assert all(5 <= count <= 6 for count in end(fleet))
    fleet.close()
    places.assert_gone()


# Killed processes; what becomes of the numbers is in test_recovery.py


@pytest.mark.parametrize(
    ("victim", "told"),
    [
        ("rollout-host", "the host agent process ended; another is started"),
        ("rollout-templ", "the template process ended by signal SIGKILL"),
        ("rollout-actor", ") was killed by SIGKILL"),
    ],
)
def test_killed_process_is_told_of_and_another_takes_its_place(train, view, places, victim, told):
    count = 3 if victim == "rollout-actor" else 1

    def kill() -> None:
        killed = places.pids(victim)[0]
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: len({*places.pids(victim)} - {killed}) == count, 30, "successor")
        view.at(view.update + 20, lambda: os.kill(os.getpid(), signal.SIGINT))

    view.at(3, kill)
    result = train()
    assert result.summary.updates >= 23
    assert result.summary.ledger.is_balanced
    assert any(told in notice for notice in view.notices), view.notices
    places.assert_gone(WITHIN_S)


@pytest.mark.parametrize(
    "whole_group", [pytest.param(False, marks=pytest.mark.slow), pytest.param(True)]
)
def test_nothing_is_left_of_a_run_whose_learner_was_killed(start, places, whole_group):
    command = start()
    command.wait_update()
    assert places.pids("rollout-learner") == [command.process.pid]
    assert len(places.pids("rollout-actor")) == 3
    (os.killpg if whole_group else os.kill)(command.process.pid, signal.SIGKILL)
    command.wait()
    places.assert_gone(WITHIN_S)


@pytest.mark.slow
@pytest.mark.parametrize("seen", ["rollout-host", "rollout-templ", "rollout-actor"])
@pytest.mark.parametrize("victim", ["rollout-host", "rollout-templ", "rollout-actor", "learner"])
def test_whoever_is_killed_while_the_run_starts_it_goes_on_or_leaves_nothing(
    start, places, seen, victim
):
    command = start("stop.env_steps=20_000")
    places.wait_pids(seen)
    pid = command.process.pid if victim == "learner" else places.wait_pids(victim)[0]
    os.kill(pid, signal.SIGKILL)
    status = command.wait()
    places.assert_gone(WITHIN_S)
    if victim != "learner":
        assert status == 0, command.said()
        assert "Traceback" not in command.said()
        assert command.updates()[-1] == 157
        assert_balanced(command)


def assert_balanced(command: Command) -> None:
    summary = RunDirectory.open(command.run).read_summary()
    assert summary is not None
    ledger = summary["ledger"]
    assert ledger["balance"] == ledger["steps"]["balance"] == 0
    assert all(actor["balance"] == 0 for actor in ledger["actors"])


# Signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_training_is_saved_and_returns(train, view, places, tmp_path, number):
    before = signal.getsignal(number)
    view.at(3, lambda: os.kill(os.getpid(), number))
    result = train()
    assert result.interrupted_by == number
    assert 3 <= result.summary.updates <= 6
    assert result.summary.ledger.balance == 0
    assert signal.getsignal(number) is before
    assert_can_be_evaluated(tmp_path / "run")
    places.assert_gone(WITHIN_S)


MOMENTS = {
    "the run directory": lambda command, places: (command.run / "config.toml").exists(),
    "the host agent": lambda command, places: bool(places.pids("rollout-host")),
    "the template": lambda command, places: bool(places.pids("rollout-templ")),
    "torch": lambda command, places: "libtorch" in maps_of(command.process.pid),
    "the actors": lambda command, places: bool(places.pids("rollout-actor")),
    "the first update": lambda command, places: bool(command.updates()),
}


def maps_of(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/maps").read_text()
    return ""


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
def test_ctrl_c_drains_saves_and_says_what_to_do(start, places, moment):
    command = start()
    wait_until(lambda: MOMENTS[moment](command, places), 90, moment)
    os.kill(command.process.pid, signal.SIGINT)
    assert command.wait() == 130
    places.assert_gone(WITHIN_S)
    said = command.said()
    assert "Traceback" not in said
    assert "`rollout train --resume run` goes on" in said
    assert_can_be_evaluated(command.run)
    assert (command.run / "summary.json").exists()


@pytest.mark.slow
def test_sigterm_of_the_command_drains_too(start, places):
    command = start()
    command.wait_update()
    os.kill(command.process.pid, signal.SIGTERM)
    assert command.wait() == 128 + signal.SIGTERM
    places.assert_gone(WITHIN_S)
    assert_can_be_evaluated(command.run)


@pytest.mark.slow
def test_learner_that_was_stopped_for_long_goes_on(start, places):
    """Ctrl-Z and fg, or a virtual machine that slept; a heartbeat would cut its connections."""
    command = start("stop.wall_s=60")
    command.wait_update()
    os.kill(command.process.pid, signal.SIGSTOP)
    time.sleep(25)
    metrics = command.run / "metrics.jsonl"
    size = metrics.stat().st_size
    os.kill(command.process.pid, signal.SIGCONT)
    wait_until(lambda: metrics.stat().st_size > size + 10_000, 20, "further update")
    os.kill(command.process.pid, signal.SIGINT)
    assert command.wait() == 130
    places.assert_gone(WITHIN_S)


@pytest.mark.slow
@pytest.mark.parametrize("delay_s", [0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8])
def test_ctrl_c_soon_after_the_start_leaves_nothing(start, places, delay_s):
    command = start()
    time.sleep(delay_s)
    os.kill(command.process.pid, signal.SIGINT)
    status = command.wait()
    places.assert_gone(WITHIN_S)
    assert status != 0
    if (command.run / "config.toml").exists():
        assert_can_be_evaluated(command.run)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["the template", "torch", "the first update"])
def test_second_ctrl_c_ends_at_once(start, places, moment):
    command = start()
    wait_until(lambda: MOMENTS[moment](command, places), 90, moment)
    for _ in range(2):
        os.kill(command.process.pid, signal.SIGINT)
        time.sleep(0.01)  # or the kernel makes one of them
    assert command.wait() in (130, -signal.SIGINT)
    places.assert_gone(WITHIN_S)
    assert "Traceback" not in command.said()


@pytest.mark.slow
def test_ctrl_c_at_the_terminal_reaches_only_who_decides(start, places):
    """The terminal signals the whole process group; actors must not die of it."""
    command = start()
    command.wait_update()
    os.killpg(command.process.pid, signal.SIGINT)
    assert command.wait() == 130
    places.assert_gone(WITHIN_S)
    assert_can_be_evaluated(command.run)


# Machines that cannot


def run_limited(tmp_path: Path, limit: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "x.toml").write_text(FILE)
    return subprocess.run(
        ["bash", "-c", f'{limit}; exec "$@"', "bash", *COMMAND, *overrides],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )


def in_own_mounts(command: str) -> list[str]:
    """Beginning of a command that first runs a shell command, whose mounts only it sees."""
    return ["unshare", "-m", "bash", "-c", f'{command} && exec "$@"', "bash"]


def assert_refused(done: subprocess.CompletedProcess[str], places, tmp_path: Path) -> None:
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    places.assert_gone(WITHIN_S)
    assert not (tmp_path / "run").exists(), "the next try would find the directory taken"


def test_too_few_file_descriptors_are_refused_with_what_to_change(places, tmp_path):
    done = run_limited(
        tmp_path, "ulimit -n 150", "fleet.num_actors=200", "env.num_envs=200", "seed=1"
    )
    assert_refused(done, places, tmp_path)
    assert "fleet.num_actors=200 needs 264 open files, this process may have 150" in done.stderr
    assert "set fleet.num_actors=86" in done.stderr


def test_soft_limit_of_file_descriptors_is_raised_as_far_as_allowed(make_fleet, monkeypatch):
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] < 300:
        pytest.skip("the hard limit is too low")
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, before[1]))
    try:
        make_fleet("fleet.num_actors=200", "env.num_envs=200")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_full_tmpfs_is_refused_before_anything_starts(places, tmp_path):
    mount = f"mount -t tmpfs -o size=16k tmpfs {places.memory}"
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("this user may not mount")
    (tmp_path / "x.toml").write_text(FILE)
    done = subprocess.run(
        [*in_own_mounts(mount), *COMMAND],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert_refused(done, places, tmp_path)
    assert f"{places.memory} has 16384 bytes free" in done.stderr
    assert "ROLLOUT_SHM_DIR" in done.stderr


@pytest.mark.parametrize("problem", ["a file", "missing"])
def test_unusable_shared_memory_directory_is_refused(places, tmp_path, monkeypatch, problem):
    place = tmp_path / "place"
    if problem == "a file":
        place.write_text("")
    monkeypatch.setenv("ROLLOUT_SHM_DIR", str(place))
    done = run_limited(tmp_path, "true")
    assert_refused(done, places, tmp_path)
    assert str(place) in done.stderr and "ROLLOUT_SHM_DIR" in done.stderr


def test_socket_path_that_is_too_long_is_refused(places, make_experiment, tmp_path, monkeypatch):
    long = tmp_path / ("x" * LONGEST_IPC_PATH)
    long.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    with pytest.raises(OperatorError, match="longer than 107 bytes"):
        make_plan(make_experiment())
    assert list(long.iterdir()) == list(places.memory.iterdir()) == []


def test_run_directory_in_use_is_refused(places, tmp_path, make_experiment):
    with RunDirectory.create(make_experiment(), tmp_path / "run"):
        done = run_limited(tmp_path, "true")
    assert done.returncode == 2
    assert f"in use by process {os.getpid()}" in done.stderr
    places.assert_gone(WITHIN_S)


@pytest.mark.slow
def test_tmpfs_that_fills_up_in_the_middle_ends_the_run_with_a_message(places, tmp_path):
    """Room for the check at the start, then somebody else takes it."""
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("this user may not mount")
    program = f"""
import os, sys
from pathlib import Path
from rollout import api, errors
class View(api.Callback):
    def write(self, progress):
        if progress.update == 3:
            try:
                with open(Path({str(places.memory)!r}) / "others", "wb", buffering=0) as file:
                    while True:
                        file.write(bytes(512))
            except OSError:
                pass
try:
    api.train("x.toml", ["network.hidden_sizes=[64,64]"], run_dir="run", view=View())
except errors.RunFailed as error:
    print(error)
    os.unlink(Path({str(places.memory)!r}) / "others")
    sys.exit(error.exit_status)
"""
    (tmp_path / "x.toml").write_text(FILE)
    mount = f"mount -t tmpfs -o size=256k tmpfs {places.memory}"
    done = subprocess.run(
        [*in_own_mounts(mount), sys.executable, "-P", "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 1, done.stderr
    assert "cannot write weights version" in done.stdout and "ROLLOUT_SHM_DIR" in done.stdout
    assert "No space left on device" in done.stdout
    places.assert_gone(WITHIN_S)
    assert_can_be_evaluated(tmp_path / "run")
