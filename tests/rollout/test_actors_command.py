"""`rollout actors`: actors that join a run that goes on, and leave it, however that comes about."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rollout.cli import main
from rollout.host_memory import HEAD_BYTES, SLOT, HostPage
from rollout.joining import find_running
from rollout.replay import RunReplay
from rollout.run_directory import RunDirectory
from tests.rollout.conftest import Command, Places, wait_until

SOON_S = 90.0  # for what must happen at all, on a machine with other things to do
WITHIN_S = 2.0  # DESIGN: all is gone, at the latest after so many seconds
RUN = ("env.num_envs=9", "stop.wall_s=300")


class Joined:
    """`rollout actors` as a process of its own."""

    def __init__(self, folder: Path, places: Places, num: int | None) -> None:
        self._places = places
        self._known = set(places.memory.glob("rollout-*-*"))
        self._memory: Path | None = None
        arguments = [] if num is None else ["--num", str(num)]
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "rollout", "actors", "--connect", "run", *arguments],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    @property
    def memory(self) -> Path | None:
        """Its directory, once there is one; who joins next must wait for that."""
        if self._memory is None:
            new = set(self._places.memory.glob("rollout-*-*")) - self._known
            self._memory = new.pop() if new else None
        return self._memory

    def produced(self) -> list[int]:
        """Unrolls of each of its actors."""
        memory = self.memory
        with contextlib.suppress(OSError, ValueError):
            if memory is not None and (size := (memory / "page").stat().st_size) > HEAD_BYTES:
                page = HostPage(memory / "page", (size - HEAD_BYTES) // SLOT.itemsize)
                return page.produced().tolist()
        return []

    def wait_acting(self, count: int) -> None:
        """Until so many of its actors have acted."""

        def is_acting() -> bool:
            assert self.process.poll() is None, self.process.communicate()
            return sum(produced > 0 for produced in self.produced()) >= count

        wait_until(is_acting, SOON_S, f"unroll of {count} more actors")

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self, timeout_s: float = SOON_S) -> tuple[int, str, str]:
        """Exit status, and what it said."""
        out, error = self.process.communicate(timeout=timeout_s)
        return self.process.returncode, out, error


@pytest.fixture
def join(places, tmp_path) -> Iterator[Callable[..., Joined]]:
    """join(3): three more actors for the run that `start` has started."""
    all_joined = []

    def join(num: int | None = None) -> Joined:
        all_joined.append(Joined(tmp_path, places, num))
        return all_joined[-1]

    yield join
    for joined in all_joined:
        joined.process.kill()
        joined.process.communicate()


@pytest.fixture
def run(start) -> Command:
    """A run that has begun to train."""
    run = start(*RUN)
    run.wait_update()
    return run


@pytest.fixture
def joined(run, join) -> Joined:
    """Two actors more for it, which have acted."""
    joined = join(2)
    joined.wait_acting(2)
    return joined


@contextlib.contextmanager
def stopped(run: Command) -> Iterator[None]:
    """Its learner does nothing meanwhile."""
    run.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        run.process.send_signal(signal.SIGCONT)


def finish(run: Command, places: Places) -> dict[str, Any]:
    """End the run as Ctrl-C does: its summary, if all is as it must be."""
    run.process.send_signal(signal.SIGINT)
    assert run.wait() == 130, run.said()
    places.assert_gone(WITHIN_S)
    summary = json.loads((run.run / "summary.json").read_text())
    ledger = summary["ledger"]
    assert all(one["balance"] == 0 for one in (ledger, ledger["steps"], *ledger["actors"]))
    return summary


def is_as_if_acted_by_one(run: Command) -> bool | None:
    """Whether the run has the parameters that a replay in one process has, without any actor."""
    return RunReplay(RunDirectory.open(run.run), None).compare()[-1].is_equal


@pytest.mark.slow
def test_curve_is_the_same_when_actors_come_and_go(start, join, places):
    run = start(*RUN, "fleet.num_actors=2")
    run.wait_update()
    one = join(1)
    one.wait_acting(1)
    four = join(4)
    four.wait_acting(4)
    four.signal(signal.SIGINT)
    status, out, error = four.end()
    assert (status, error) == (0, "")
    assert "4 actors joined run, of process" in out
    assert "leaving" in out
    assert "4 actors left, at" in out
    before = sum(one.produced())
    wait_until(lambda: sum(one.produced()) > before, SOON_S, "unroll of the one that stayed")
    summary = finish(run, places)
    status, out, error = one.end()
    assert (status, error) == (0, "")
    assert "1 actor left when the run ended" in out
    produced = [actor["produced"] for actor in summary["ledger"]["actors"]]
    assert len(produced) == 7 and min(produced) > 0
    assert is_as_if_acted_by_one(run)


@pytest.mark.slow
def test_killed_host_agent_of_those_who_joined_takes_nothing_with_it(start, join, places):
    run = start(*RUN, "fleet.num_actors=2")
    run.wait_update()
    joined = join(3)
    joined.wait_acting(3)
    joined.process.kill()
    joined.end()
    wait_until(lambda: len(places.pids("rollout-actor")) == 2, SOON_S, "end of its actors")
    wait_until(lambda: "3 actors with it" in read(run.run / "run.log"), SOON_S, "notice")
    run.wait_update(run.updates()[-1] + 20)
    assert not list(places.memory.glob("rollout-*-*"))
    finish(run, places)
    assert is_as_if_acted_by_one(run)


def read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


@pytest.mark.slow
def test_killed_actors_of_both_hosts_are_replaced(start, join, places):
    run = start(*RUN, "fleet.num_actors=1")
    run.wait_update()
    joined = join(1)
    joined.wait_acting(1)
    for pid in places.pids("rollout-actor"):
        os.kill(pid, signal.SIGKILL)
    before = joined.produced()[0]
    wait_until(lambda: joined.produced()[0] > before + 2, SOON_S, "unroll of the next life")
    assert read(run.run / "run.log").count("was killed by SIGKILL") == 2
    finish(run, places)
    assert joined.end()[0] == 0
    assert is_as_if_acted_by_one(run)


@pytest.mark.slow
def test_those_who_want_to_leave_a_stopped_learner_wait_for_it(run, joined, places):
    with stopped(run):
        joined.signal(signal.SIGTERM)
        assert joined.process.stdout.readline().startswith("2 actors joined")
        assert joined.process.stdout.readline().startswith("leaving")
        assert joined.process.poll() is None
    assert joined.end()[0] == 0
    finish(run, places)
    assert is_as_if_acted_by_one(run)


def test_second_signal_ends_those_at_once_who_wait_for_a_stopped_learner(run, joined, places):
    with stopped(run):
        joined.signal(signal.SIGINT)
        joined.process.stdout.readline()
        assert joined.process.stdout.readline().startswith("leaving")
        joined.signal(signal.SIGINT)
        status, out, _ = joined.end(20)
        assert status == 130
        assert "2 actors ended at once" in out
        assert not list(places.memory.glob("rollout-*-*"))
    run.wait_update(run.updates()[-1] + 20)
    finish(run, places)
    assert is_as_if_acted_by_one(run)


def test_death_of_the_learner_ends_those_who_joined(run, joined, places):
    run.process.kill()
    status, _, error = joined.end(WITHIN_S + 3)  # and Python's own end
    assert status == 1
    assert f"process {run.process.pid} of run died, and 2 actors ended with it" in error
    assert "rollout train --resume run" in error
    places.assert_gone(WITHIN_S)


@pytest.mark.slow
def test_more_actors_than_environments_wait_and_do_no_harm(start, join, places):
    run = start("env.num_envs=4", "fleet.num_actors=2", "stop.wall_s=300")
    run.wait_update()
    joined = join(5)
    joined.wait_acting(2)
    places.wait_pids("rollout-actor", 7)
    run.wait_update(run.updates()[-1] + 20)
    assert sum(produced > 0 for produced in joined.produced()) == 2
    joined.signal(signal.SIGINT)
    assert joined.end()[0] == 0
    finish(run, places)


def test_those_who_come_while_a_run_starts_are_let_in(start, join, places):
    run = start(*RUN, "fleet.num_actors=1")
    wait_until((run.run / "config.toml").exists, SOON_S, "run directory")
    joined = join(2)
    joined.wait_acting(2)
    finish(run, places)
    assert joined.end()[0] == 0
    assert is_as_if_acted_by_one(run)


@pytest.mark.slow
def test_resumed_run_can_be_joined_though_its_former_life_left_how(start, join, places):
    run = start(*RUN, "checkpoint.every_updates=10")
    wait_until(lambda: run.num_checkpoints() > 0, SOON_S, "checkpoint")
    run.kill_group()
    run.wait()
    assert (run.run / "fleet.msgpack").exists()
    assert run_main("actors", "--connect", str(run.run)) == 2
    run = start.again()
    joined = None
    while joined is None:  # until its learner has begun
        with contextlib.suppress(Exception), find_running(run.run):
            joined = join(2)
        assert run.process.poll() is None, run.said()
    joined.wait_acting(2)
    finish(run, places)
    assert joined.end()[0] == 0


def run_main(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.slow
def test_number_of_actors_is_that_of_the_cores_if_left_out(run, join, places):
    joined = join()
    joined.wait_acting(1)
    cores = len(os.sched_getaffinity(0))
    assert joined.process.stdout.readline().startswith(f"{cores} actor")
    finish(run, places)
    assert joined.end()[0] == 0


# What is no running run


def test_run_that_has_ended_is_not_joined(make_run, capsys):
    run = make_run()
    assert run_main("actors", "--connect", str(run.path)) == 2
    error = capsys.readouterr().err
    assert f"{run.path}: not running on this machine" in error
    assert f"rollout train --resume {run.path}" in error


def test_number_of_a_dead_learner_that_now_is_anothers_is_not_believed(make_run, capsys):
    run = make_run()
    (run.path / "lock").write_text(f"{os.getppid()}\n")
    assert run_main("actors", "--connect", str(run.path)) == 2
    assert "not running" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("place", "what"),
    [
        ("nowhere", "nowhere: no such directory"),
        (".", "not a run"),
        ("tcp://10.0.0.4:5555", "other machines come in a later version"),
    ],
)
def test_what_is_no_run_is_refused_with_the_next_move(tmp_path, monkeypatch, capsys, place, what):
    monkeypatch.chdir(tmp_path)
    assert run_main("actors", "--connect", place) == 2
    error = capsys.readouterr().err
    assert what in error
    assert "directory of a run" in error


def test_file_of_another_version_is_named(make_run, capsys):
    run = make_run()
    run.fleet.write_bytes(b"\x81\xa1x\x01")
    with open(run.path / "lock", "r+") as lock:  # as if this process were the learner
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        assert run_main("actors", "--connect", str(run.path)) == 2
    assert "fleet.msgpack" in capsys.readouterr().err
