"""`rollout train --resume`, as a process: runs that end in any way go on as if they never had."""

import contextlib
import functools
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from rollout import api
from rollout.checkpoint import list_checkpoints
from rollout.replay import RunReplay
from rollout.run_directory import RunDirectory
from rollout.run_places import START_S
from tests.rollout.conftest import Command, read_lines, wait_until
from tests.some_fast import slow_unless

FILE = """
[env]
id = "CartPole-v1"
num_envs = 12
[fleet]
num_actors = 3
unroll_length = 8
[network]
hidden_sizes = [8]
[algorithm]
update_epochs = 1
num_minibatches = 2
[stop]
env_steps = {env_steps}
[checkpoint]
every_updates = 20
"""
STEPS = 12 * 8  # of one update
UPDATES = 400
ACTORS = ("fleet.num_actors=2", "fleet.num_actors=7", "fleet.num_actors=3")


@pytest.fixture
def begin(start):
    """begin("seed=3", …): a run of 400 updates, a checkpoint every 20."""

    def begin(*overrides: str, updates: int = UPDATES, inside=()) -> Command:
        return start(*overrides, inside=inside, file=FILE.format(env_steps=updates * STEPS))

    return begin


@functools.cache
def wanted_digest(updates: int, *overrides: str) -> str:
    """Of a run that is never interrupted."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "x.toml"
        file.write_text(FILE.format(env_steps=updates * STEPS))
        return api.train(file, overrides, run_dir=f"{folder}/run").summary.params_digest


def assert_whole(command: Command, updates: int = UPDATES) -> None:
    """As if it had never been interrupted."""
    summary = RunDirectory.open(command.run).read_summary()
    assert summary is not None
    assert command.updates() == list(range(1, updates + 1)), "each update once, in order"
    steps = [line["global_step"] for line in read_lines(command.run / "metrics.jsonl")]
    assert steps == [STEPS * update for update in command.updates()]
    assert (summary["updates"], summary["env_steps"]) == (updates, updates * STEPS)
    assert summary["ledger"]["steps"]["trained"] == updates * STEPS, "nothing is trained on twice"
    for account in (summary["ledger"], summary["ledger"]["steps"], *summary["ledger"]["actors"]):
        assert account["balance"] == account["in_flight"] == 0


def digest_of(command: Command) -> str:
    return json.loads((command.run / "summary.json").read_text())["params_digest"]


def content(folder: Path) -> dict[str, str]:
    """Digest of every file's bytes, but for the lock: it names who opened the run last."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def interrupt(command: Command, update: int, number: int, delay_s: float = 0.0) -> None:
    """Once it has come so far."""
    command.wait_update(update)
    time.sleep(delay_s)  # any moment of an update will do
    os.kill(command.process.pid, number)
    assert command.wait() != 0, command.said()


# Killed


def test_run_whose_learner_is_killed_goes_on_to_the_same_result(begin, start, places):
    chance = random.Random(1)
    command = begin(ACTORS[0])
    for update, actors in ((30, ACTORS[1]), (150, ACTORS[2]), (290, ACTORS[0])):
        interrupt(command, update, signal.SIGKILL, chance.uniform(0, 0.05))
        places.assert_gone()
        command = start.again(actors)
    assert command.wait() == 0, command.said()
    places.assert_gone()
    assert_whole(command)
    assert digest_of(command) == wanted_digest(UPDATES)
    assert "going on from update-" in command.said()


def test_learner_that_is_killed_before_its_first_update_can_go_on(begin, start, places):
    """There is no checkpoint to go on from, which is said."""
    command = begin()
    places.wait_pids("rollout-templ")  # so the agent knows what it has to tidy up
    os.kill(command.process.pid, signal.SIGKILL)
    command.wait()
    again = start.again()
    assert again.wait() == 2, again.said()
    assert "no checkpoint in it" in again.said() and "Traceback" not in again.said()
    places.assert_gone()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("policy_lag", [0, 1])
def test_two_hundred_kills_of_actors_ten_of_agents_and_five_of_the_learner_change_nothing(
    begin, start, places, policy_lag
):
    """All in one run, which has 2, then 7, then 3 actors."""
    chance = random.Random(policy_lag)
    updates = 5000
    lag = f"fleet.policy_lag={policy_lag}"
    command = begin(ACTORS[0], lag, updates=updates)
    for life in range(5):
        for victim in chance.sample(["rollout-actor"] * 40 + ["rollout-host"] * 2, 42):
            command.wait_update(command.last_update() + chance.randrange(1, 12))
            with contextlib.suppress(ProcessLookupError):  # it has just died of the one before
                os.kill(chance.choice(places.wait_pids(victim)), signal.SIGKILL)
        interrupt(command, command.last_update() + 30, signal.SIGKILL)
        command = start.again(ACTORS[(life + 1) % len(ACTORS)])
    assert command.wait(300) == 0, command.said()
    places.assert_gone()
    assert_whole(command, updates)
    assert digest_of(command) == wanted_digest(updates, lag)


@pytest.mark.slow
def test_async_run_whose_learner_is_killed_goes_on_and_can_be_replayed(begin, start, places):
    command = begin("fleet.mode=async")
    for update in (60, 220):
        interrupt(command, update, signal.SIGKILL)
        command = start.again("fleet.num_actors=4")
    assert command.wait() == 0, command.said()
    places.assert_gone()
    assert_whole(command)
    assert [line["update"] for line in read_lines(command.run / "order.jsonl")] == list(
        range(UPDATES)
    )
    compared = RunReplay(RunDirectory.open(command.run)).compare()
    assert compared[-1].is_equal, compared
    assert compared[-1].digest == digest_of(command)


def test_everything_that_is_killed_at_once_is_swept_by_the_next_start(begin, start, places):
    """Learner, agent, template and actors: nobody is left to tidy up."""
    command = begin()
    command.wait_update(50)
    names = ("rollout-learner", "rollout-host", "rollout-templ", "rollout-actor")
    pids = [pid for name in names for pid in places.pids(name)]
    assert len(pids) == 6
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)  # or who sees the others die would tidy up
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    command.wait()
    wait_until(lambda: not places.pids(), 5, "death of all")
    left = [*places.sockets.iterdir(), *places.memory.iterdir()]
    assert len(left) == 2, "the socket directory and the memory directory"
    no_lock = places.memory / "rollout-0123456789ab"  # of a run that died before it took the lock
    no_lock.mkdir()
    os.utime(no_lock, (0, time.time() - START_S - 1))
    others = places.memory / "rollout-of-somebody-else"
    others.mkdir()
    command = start.again()
    assert command.wait() == 0, command.said()
    others.rmdir()
    places.assert_gone()
    assert_whole(command)
    assert digest_of(command) == wanted_digest(UPDATES)


# Interrupted, and moved on


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_goes_on_where_it_was(begin, start, places, number):
    command = begin()
    command.wait_update(75)
    os.kill(command.process.pid, number)
    assert command.wait() == 128 + number
    reached = command.updates()[-1]
    assert reached >= 75
    newest = list_checkpoints(command.run / "checkpoints")[-1]
    assert newest.name == f"update-{reached:08}", "saved when it was interrupted"
    again = start.again("fleet.num_actors=5")
    assert again.wait() == 0, again.said()
    assert f"going on from {newest.name}" in again.said()
    assert_whole(again)
    assert digest_of(again) == wanted_digest(UPDATES)
    places.assert_gone()


@pytest.mark.slow
def test_finished_run_goes_on_when_its_end_is_moved(begin, start, places):
    assert begin(updates=100).wait() == 0
    again = start.again(f"stop.env_steps={UPDATES * STEPS}")
    assert again.wait() == 0, again.said()
    assert_whole(again)
    assert digest_of(again) == wanted_digest(UPDATES)
    places.assert_gone()


def test_finished_run_says_so_and_nothing_of_it_changes(begin, start, places):
    assert begin(updates=100).wait() == 0
    before = content(start.folder / "run")
    again = start.again()
    assert again.wait() == 0
    assert "run has finished, there was nothing to do" in again.said()
    assert content(start.folder / "run") == before
    places.assert_gone()


@pytest.mark.parametrize("left", slow_unless([b'{"ledger": 3}'], [None, b"", b'{"ledger": 3}']))
def test_run_that_died_when_all_was_done_but_its_summary_gets_one(begin, start, places, left):
    command = begin(updates=100)
    assert command.wait() == 0
    digest = digest_of(command)
    (command.run / "summary.json").unlink()
    if left is not None:
        (command.run / "summary.json").write_bytes(left)
    again = start.again()
    assert again.wait() == 0, again.said()
    assert_whole(again, 100)
    assert digest_of(again) == digest
    dropped = json.loads((again.run / "summary.json").read_bytes())["ledger"]["dropped"]
    assert "learner_died" not in dropped, "it ended, and died of nothing"


# Changed


@pytest.mark.slow
def test_changes_that_nobody_asked_for_are_listed_and_refused(begin, start, places):
    command = begin("stop.env_steps=20_000")
    assert command.wait() == 0
    config = command.run / "config.toml"
    written = config.read_text()
    changed = written.replace("gamma = 0.99", "gamma = 0.5").replace(
        "num_envs = 12", "num_envs = 8"
    )
    assert changed != written
    config.write_text(changed)
    before = content(command.run)
    again = start.again()
    assert again.wait() == 2
    said = again.said()
    assert "algorithm.gamma: 0.99 there, 0.5 now" in said
    assert "env.num_envs: 12 there, 8 now" in said
    assert "--resume run" in said and "Traceback" not in said
    assert content(command.run) == before
    config.write_text(written)
    again = start.again("algorithm.gamma=0.5", "stop.env_steps=30_000")
    assert again.wait() == 0, again.said()
    assert "gamma = 0.5" in config.read_text()
    places.assert_gone()


@pytest.mark.slow
def test_damaged_newest_checkpoint_is_told_of_and_the_one_before_serves(begin, start, places):
    command = begin()
    interrupt(command, 130, signal.SIGKILL)
    newest = list_checkpoints(command.run / "checkpoints")[-1]
    with open(newest / "arrays.safetensors", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    again = start.again()
    assert again.wait() == 0, again.said()
    assert newest.name in again.said(), "the damaged one is named"
    assert_whole(again)
    assert digest_of(again) == wanted_digest(UPDATES)
    places.assert_gone()


# Full disks

FULL_DISK = """
import json, os, time
from rollout import api, results
from rollout.progress import Callback

results.RETRY_S = 0.2
notices, checkpoints = [], {}

class View(Callback):
    def notice(self, text):
        notices.append(text)

    def write(self, progress):
        if progress.update in (30, 200, 300):
            checkpoints[progress.update] = sorted(os.listdir("run/checkpoints"))
        if progress.update == 30:
            with open("run/others", "wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(512))
        elif progress.update == 200:
            os.unlink("run/others")
        elif progress.update == 250:
            time.sleep(results.RETRY_S)

import contextlib
summary = api.train("x.toml", run_dir="run", view=View()).summary
checkpoints["end"] = sorted(os.listdir("run/checkpoints"))
with open("run/metrics.jsonl") as file:
    updates = [json.loads(line)["update"] for line in file]
print(json.dumps([notices, checkpoints, summary.as_dict(), updates]))
"""


@pytest.mark.slow
def test_full_disk_is_shown_and_survived_and_the_next_checkpoint_is_written(places, tmp_path):
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("this user may not mount")
    (tmp_path / "x.toml").write_text(FILE.format(env_steps=UPDATES * STEPS))
    (tmp_path / "run").mkdir()
    mount = f'mount -t tmpfs -o size=1536k tmpfs {tmp_path}/run && exec "$@"'
    done = subprocess.run(
        ["unshare", "-m", "bash", "-c", mount, "bash", sys.executable, "-P", "-c", FULL_DISK],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    notices, checkpoints, summary, updates = json.loads(done.stdout)
    shown = [notice for notice in notices if "cannot write a checkpoint" in notice]
    assert len(shown) == 1, f"once, not with every attempt: {notices}"
    assert "No space left on device" in shown[0] and "training goes on" in shown[0]
    assert checkpoints["30"] == checkpoints["200"] == ["update-00000020"]
    assert checkpoints["300"][-1] > "update-00000240", "at the next attempt"
    assert checkpoints["end"][-1] == f"update-{UPDATES:08}"
    assert updates == list(range(1, UPDATES + 1)), "what waited for the disk is there as well"
    assert summary["params_digest"] == wanted_digest(UPDATES)
    places.assert_gone()


@pytest.mark.slow
def test_environment_whose_state_was_changed_is_refused_in_words(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = """
import numpy as np
from rollout.envs.diagnostic.counting import Counting

class Mine(Counting):
    state = np.dtype([("env", "i4"), ("episode", "i4"), ("t", "i4")])
"""
    Path("changing.py").write_text(source)
    file = FILE.format(env_steps=2 * STEPS).replace("CartPole-v1", "changing:Mine")
    Path("x.toml").write_text(file)

    def train(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "rollout", "train", *arguments, "--quiet"]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    begun = train("x.toml", "--run-dir", "run")
    assert begun.returncode == 0, begun.stderr
    for changed in ('("t", "i4"), ("more", "f8")', '("t", "f4")'):  # larger, and as large
        Path("changing.py").write_text(source.replace('("t", "i4")', changed))
        went_on = train("--resume", "run", f"stop.env_steps={4 * STEPS}")
        assert went_on.returncode == 2
        assert went_on.stderr.startswith("rollout: the state of Mine is [('env', '<i4'), ")
        assert re.search(
            r"in update-\d+ it is \[.*\('t', '<i4'\)\]: it was changed since;", went_on.stderr
        )
