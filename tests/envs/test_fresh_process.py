"""What is done in a fresh process comes back, and nothing of it stays."""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from rollout.envs import CompiledEnv, find_env
from rollout.envs.checks.fresh_process import ProcessFailed, end_with, in_fresh_process


def count(stop: int) -> Iterator[int]:
    yield from range(stop)


def tell_pid_and_wait() -> Iterator[int]:
    yield os.getpid()
    time.sleep(60)


def be_killed() -> Iterator[int]:
    yield 1
    os.kill(os.getpid(), signal.SIGSEGV)


def leave() -> Iterator[int]:
    yield 1
    os._exit(3)


def fail() -> Iterator[int]:
    yield 1
    raise ValueError("no more")


def end_early() -> Iterator[str]:
    yield "first"
    end_with("last")


def print_much() -> Iterator[int]:
    print("printed")
    yield 1


def test_values_come_back_in_order_and_one_by_one():
    assert list(in_fresh_process(count, 5)) == [0, 1, 2, 3, 4]
    assert list(in_fresh_process(count, 0)) == []
    assert list(in_fresh_process(end_early)) == ["first", "last"]
    (pid,) = set(in_fresh_process(_pid))
    assert pid != os.getpid()


def _pid() -> Iterator[int]:
    yield os.getpid()


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (be_killed, "the process was killed by SIGSEGV"),
        (leave, "the process ended with status 3"),
        (fail, "ValueError: no more"),
        (tell_pid_and_wait, "nothing came back for 2 s"),
    ],
)
def test_process_that_is_not_done_is_said_to_be(function, said):
    found = []
    with pytest.raises(ProcessFailed, match=f"^{said}$"):
        found.extend(in_fresh_process(function, silence_s=2.0))


def test_process_ends_when_nobody_listens_any_more():
    values = in_fresh_process(tell_pid_and_wait)
    pid = next(values)
    values.close()
    assert not _is_running(pid)


def test_process_ends_with_the_one_that_asked():
    program = (
        "from tests.envs.test_fresh_process import *\n"
        "for pid in in_fresh_process(tell_pid_and_wait): print(pid, flush=True)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as asking:
        assert asking.stdout
        pid = int(asking.stdout.readline())
        descriptor = os.pidfd_open(pid)
        asking.kill()
    assert select.select([descriptor], [], [], 30)[0], "it goes on"
    os.close(descriptor)


def print_without_end() -> Iterator[int]:
    for n in range(100_000):
        print("step", n)
    yield 1


def test_of_what_it_prints_without_end_the_first_lines_are_shown(capfd):
    assert list(in_fresh_process(print_without_end)) == [1]
    *first, last = capfd.readouterr().err.splitlines()
    assert first == [f"step {n}" for n in range(20)]
    assert last == "(what more it prints is not shown)"


def test_what_it_prints_does_not_mix_with_what_we_print(capfd):
    assert list(in_fresh_process(print_much)) == [1]
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "printed\n")


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_modules_of_the_folder_do_not_take_the_place_of_pythons(tmp_path, monkeypatch):
    for name in ("types", "json", "threading"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('not this one')")
    monkeypatch.chdir(tmp_path)
    assert list(in_fresh_process(count, 2)) == [0, 1]


def what_a_helper_says(env: type[CompiledEnv]) -> Iterator[str]:
    yield sys.modules[env.__module__].HELPER


def test_helpers_beside_an_environment_come_before_installed_ones(tmp_path, monkeypatch):
    """As where environments are found."""
    source = """
import numpy as np
from fresh_helper import HELPER
from rollout.envs.diagnostic.counting import Counting

class Mine(Counting):
    pass
"""
    (tmp_path / "fresh_beside.py").write_text(source)
    (tmp_path / "fresh_helper.py").write_text("HELPER = 'beside'")
    (tmp_path / "installed").mkdir()
    (tmp_path / "installed" / "fresh_helper.py").write_text("HELPER = 'installed'")
    monkeypatch.syspath_prepend(tmp_path / "installed")
    env = find_env("fresh_beside:Mine", str(tmp_path))
    assert list(in_fresh_process(what_a_helper_says, env)) == ["beside"]
