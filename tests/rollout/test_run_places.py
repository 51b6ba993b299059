"""Directories of a run: who uses them is known, and what dead runs have left is removed."""

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout import run_places
from rollout.errors import OperatorError
from rollout.run_places import hold, make_directory, sweep, wait_unheld

NAME = "rollout-0123456789ab"
HOLDER = """
import os, sys
from pathlib import Path
from rollout.run_places import hold
hold(Path(sys.argv[1]))
if os.fork() == 0:
    os.close(1)
    sys.stdin.read()
    os._exit(0)
print("held", flush=True)
sys.stdin.read()
"""


def make_old(directory: Path) -> None:
    an_hour_ago = time.time() - 3600
    os.utime(directory, (an_hour_ago, an_hour_ago), follow_symlinks=False)


@pytest.fixture
def start_holder():
    """start_holder(directory): a process that holds it, and a fork of it that does so too."""
    holders: list[subprocess.Popen[str]] = []

    def start(directory: Path) -> subprocess.Popen[str]:
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        holders.append(holder)
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        return holder

    yield start
    for holder in holders:
        holder.kill()
        holder.wait()
        for pipe in (holder.stdin, holder.stdout):
            assert pipe is not None
            pipe.close()


def let_go(holder: subprocess.Popen[str]) -> None:
    """End the fork, too."""
    assert holder.stdin is not None
    holder.stdin.close()


def dead_run(parent: Path, name: str = NAME) -> Path:
    """What a run leaves that was killed with all its processes."""
    directory = make_directory(parent, name)
    os.close(hold(directory))
    (directory / "page").write_bytes(bytes(64))
    return directory


def test_directory_is_this_users_alone(tmp_path):
    directory = make_directory(tmp_path, NAME)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


@pytest.mark.parametrize("name", ["there", "file/below"])
def test_directory_that_cannot_be_made_is_the_operators_to_mend(tmp_path, name):
    (tmp_path / "there").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(OperatorError, match="ROLLOUT_SHM_DIR") as caught:
        make_directory(tmp_path, name)
    assert str(tmp_path / name) in str(caught.value)


def test_directory_that_is_gone_cannot_be_held(tmp_path):
    with pytest.raises(OperatorError, match="No such file"):
        hold(tmp_path / NAME)


def test_several_may_hold_one_directory(tmp_path):
    first, second = hold(tmp_path), hold(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["lock"]
    for descriptor in (first, second):
        assert not wait_unheld(tmp_path, 0)
        os.close(descriptor)
    assert wait_unheld(tmp_path, 0)


def test_directory_that_is_gone_or_was_never_held_is_unheld(tmp_path):
    assert wait_unheld(tmp_path / NAME, 0)
    assert wait_unheld(tmp_path, 0)
    assert list(tmp_path.iterdir()) == [], "asking changes nothing"


def test_forks_of_a_holder_hold_on_after_its_death(tmp_path, start_holder):
    holder = start_holder(tmp_path)
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert not wait_unheld(tmp_path, 0.05), "its fork is alive"
    let_go(holder)
    assert wait_unheld(tmp_path, 10)


def test_process_started_by_a_holder_does_not_hold(tmp_path):
    descriptor = hold(tmp_path)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False) as stranger:
        os.close(descriptor)
        assert wait_unheld(tmp_path, 10)
        stranger.communicate()


def test_directories_of_dead_runs_are_removed(tmp_path):
    dead = [dead_run(tmp_path), dead_run(tmp_path, f"{NAME}-8badf00d")]
    assert sorted(sweep(tmp_path)) == sorted(dead)
    assert list(tmp_path.iterdir()) == []


def test_directory_in_use_is_not_removed_until_its_last_holder_is_dead(tmp_path, start_holder):
    directory = dead_run(tmp_path)
    holder = start_holder(directory)
    make_old(directory)
    holder.kill()
    holder.wait()
    assert sweep(tmp_path) == []
    let_go(holder)
    assert wait_unheld(directory, 10)
    assert sweep(tmp_path) == [directory]


def test_directory_that_nobody_has_held_yet_is_given_time(tmp_path):
    directory = make_directory(tmp_path, NAME)
    assert sweep(tmp_path) == []
    make_old(directory)
    assert sweep(tmp_path) == [directory]


@pytest.mark.parametrize(
    "name", ["rollout-experiments", "rollout-", NAME[:-1], f"{NAME}c", f"my-{NAME}", NAME.upper()]
)
def test_directories_of_other_names_are_left_alone(tmp_path, name):
    directory = dead_run(tmp_path, name)
    make_old(directory)
    assert sweep(tmp_path) == []
    assert (directory / "page").exists()


def test_directory_with_files_and_no_lock_is_none_of_ours(tmp_path):
    directory = make_directory(tmp_path, NAME)
    (directory / "thesis.tex").write_text("a year's work")
    make_old(directory)
    assert sweep(tmp_path) == []
    assert (directory / "thesis.tex").exists()


def test_file_and_links_of_our_name_are_left_alone(tmp_path):
    parent, elsewhere = tmp_path / "parent", tmp_path / "elsewhere"
    parent.mkdir()
    elsewhere.mkdir()
    target = dead_run(elsewhere)
    (parent / f"{NAME}-1").write_text("")
    (parent / f"{NAME}-2").symlink_to(target)
    (parent / f"{NAME}-3").symlink_to(tmp_path / "nowhere")
    for path in parent.iterdir():
        make_old(path)
    assert sweep(parent) == []
    assert len(list(parent.iterdir())) == 3 and (target / "page").exists()


def test_links_in_a_dead_runs_directory_are_removed_and_not_followed(tmp_path):
    parent, mine = tmp_path / "parent", tmp_path / "mine"
    parent.mkdir()
    mine.mkdir()
    (mine / "precious").write_text("")
    directory = dead_run(parent)
    (directory / "link").symlink_to(mine)
    assert sweep(parent) == [directory]
    assert (mine / "precious").exists()


def test_lock_that_is_a_link_or_no_file_leaves_its_directory_alone(tmp_path):
    for number, make in enumerate([lambda p: p.symlink_to("/dev/null"), Path.mkdir]):
        directory = make_directory(tmp_path, f"{NAME}-{number}")
        make(directory / "lock")
        make_old(directory)
    assert sweep(tmp_path) == []


def test_directory_of_another_user_is_left_alone(tmp_path, monkeypatch):
    directory = dead_run(tmp_path)
    monkeypatch.setattr("rollout.run_places.os.getuid", lambda: directory.stat().st_uid + 1)
    assert sweep(tmp_path) == []


def test_sweeping_what_is_not_there_does_nothing(tmp_path):
    assert sweep(tmp_path / "nowhere") == []


SWEEPER = """
import sys
from pathlib import Path
from rollout.run_places import sweep
print("ready", flush=True)
sys.stdin.readline()
print(len(sweep(Path(sys.argv[1]))))
"""


def test_many_may_sweep_at_once_and_each_directory_is_removed_once(tmp_path):
    for number in range(300):
        dead_run(tmp_path, f"rollout-{number:012x}")
    sweepers = [
        subprocess.Popen(
            [sys.executable, "-c", SWEEPER, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for sweeper in sweepers:
        assert sweeper.stdout is not None and sweeper.stdout.readline() == "ready\n"
    for sweeper in sweepers:
        assert sweeper.stdin is not None
        print(file=sweeper.stdin, flush=True)
    removed = [int(sweeper.communicate(timeout=60)[0]) for sweeper in sweepers]
    assert list(tmp_path.iterdir()) == []
    assert sum(removed) == 300


STARTER = """
import sys
from pathlib import Path
from rollout.run_places import hold, make_directory
for number in range(500):
    directory = make_directory(Path(sys.argv[1]), f"rollout-{number:012x}")
    hold(directory)
    (directory / "page").write_bytes(bytes(64))
assert len(list(Path(sys.argv[1]).iterdir())) == 500
"""


def test_run_that_is_being_started_is_never_swept(tmp_path):
    """Not even between the making of its lock and its taking."""
    starter = subprocess.Popen([sys.executable, "-c", STARTER, str(tmp_path)])
    while starter.poll() is None:
        sweep(tmp_path)
    assert starter.returncode == 0, "it missed a directory"


@given(st.text("0123456789abcdefrolut-.", max_size=30))
def test_only_names_of_runs_are_ours(name):
    is_ours = len(name) >= 20 and name.startswith("rollout-") and name[20:21] in ("", "-")
    is_ours = is_ours and all(digit in "0123456789abcdef" for digit in name[8:20])
    assert bool(run_places.NAME.match(name)) == is_ours


def test_operator_chooses_where_directories_go(monkeypatch, tmp_path):
    monkeypatch.delenv("ROLLOUT_SHM_DIR", raising=False)
    assert run_places.shared_memory_directory() == Path("/dev/shm")
    monkeypatch.setenv("ROLLOUT_SHM_DIR", "/run/other")
    assert run_places.shared_memory_directory() == Path("/run/other")
    monkeypatch.setenv("ROLLOUT_SHM_DIR", "")
    assert run_places.shared_memory_directory() == Path("/dev/shm")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert run_places.socket_directory() == tmp_path
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "missing"))
    monkeypatch.setattr("rollout.run_places.tempfile.gettempdir", lambda: "/var/other")
    assert run_places.socket_directory() == Path("/var/other")
