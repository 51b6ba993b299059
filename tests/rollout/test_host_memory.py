"""What the processes of a host share: a page to wait on, and weights files."""

import ctypes
import errno
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from rollout.host_memory import HostPage, WeightsFiles, shared_memory_directory
from rollout.processes import futex_wait


@pytest.fixture
def page(tmp_path) -> HostPage:
    return HostPage(tmp_path / "page", num_actors=3, create=True)


def run_python(program: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
    )


def test_waiting_for_a_version_that_is_there_returns_at_once(page):
    page.publish(4)
    for version in (0, 3, 4):
        page.wait_version(version)


def test_page_without_a_version_lets_nobody_through(page):
    done = threading.Event()

    def wait() -> None:
        page.wait_version(0)
        done.set()

    waiter = threading.Thread(target=wait, daemon=True)
    waiter.start()
    assert not done.wait(0.05)
    page.publish(0)
    assert done.wait(10)


WAITER = """
import sys
from pathlib import Path
from rollout.host_memory import HostPage
page = HostPage(Path(sys.argv[1]), 3)
print("ready", flush=True)
for version in range(int(sys.argv[2])):
    page.wait_version(version)
    page.produced[1] += 1
print("done", flush=True)
"""


def test_publication_wakes_a_waiter_in_another_process(page, tmp_path):
    with run_python(WAITER, str(tmp_path / "page"), "1") as waiter:
        assert waiter.stdout is not None
        assert waiter.stdout.readline() == "ready\n"
        page.publish(0)
        assert waiter.stdout.readline() == "done\n"
    assert page.produced.tolist() == [0, 1, 0]


STRESS = """
import os, sys, tempfile
from pathlib import Path
from rollout.host_memory import HostPage
WAITERS, VERSIONS = 24, 300
page = HostPage(Path(sys.argv[1]) / "page", WAITERS, create=True)
parent_turn = os.pipe()
pids = []
for actor in range(WAITERS):
    pid = os.fork()
    if pid == 0:
        for version in range(VERSIONS):
            page.wait_version(version)
            page.produced[actor] += 1
            os.write(parent_turn[1], b".")
        os._exit(0)
    pids.append(pid)
for version in range(VERSIONS):
    page.publish(version)
    # Every other version is published at once, into the middle of everybody's return to waiting.
    if version % 2:
        seen = 0
        while seen < 2 * WAITERS:
            seen += len(os.read(parent_turn[0], 2 * WAITERS - seen))
print(sum(os.waitpid(pid, 0)[1] for pid in pids), int(page.produced.sum()))
"""


def test_no_wakeup_is_lost_between_many_waiters_and_many_versions(tmp_path):
    """A waiter that slept through a publication would sleep for good: the test would time out."""
    with run_python(STRESS, str(tmp_path)) as stress:
        output, _ = stress.communicate(timeout=60)
    assert output.split() == ["0", str(24 * 300)]


def test_kernel_compares_with_the_value_that_was_looked_at(page, monkeypatch):
    """A publication between look and sleep must be noticed: with any other value it would not."""
    looks = iter([0, 1])  # someone publishes version 0 right after the first look

    class Word:
        @property
        def value(self) -> int:
            return next(looks)

    compared = []
    monkeypatch.setattr(page, "_word", Word())
    monkeypatch.setattr("rollout.host_memory.futex_wait", lambda _, value: compared.append(value))
    page.wait_version(0)
    assert compared == [0]


def test_futex_does_not_sleep_when_the_value_has_changed():
    word = ctypes.c_uint32(5)
    futex_wait(word, 4)  # would sleep for good: nobody wakes it


def test_weights_come_out_as_they_went_in_and_cannot_be_changed(tmp_path):
    files = WeightsFiles(tmp_path)
    weights = np.arange(1000, dtype=np.float32)
    files.write(3, weights.tobytes())
    mapped = files.map(3)
    np.testing.assert_array_equal(mapped, weights)
    assert mapped.dtype == np.float32 and not mapped.flags.writeable


def test_mapped_weights_survive_the_removal_of_their_file(tmp_path):
    files = WeightsFiles(tmp_path)
    files.write(0, np.full(10_000, 7, np.float32).tobytes())
    mapped = files.map(0)
    files.remove(0)
    files.remove(0)  # nothing happens if it is gone
    assert list(tmp_path.iterdir()) == []
    assert (mapped == 7).all()


READER = """
import sys
from pathlib import Path
from rollout.host_memory import WeightsFiles
files = WeightsFiles(Path(sys.argv[1]))
print("ready", flush=True)
version = 0
while version < 40:
    try:
        weights = files.map(version)
    except FileNotFoundError:
        continue
    assert len(weights) == 500_000 and (weights == version).all(), (version, len(weights))
    version += 1
"""


def test_who_can_see_a_weights_file_sees_all_of_it(tmp_path):
    files = WeightsFiles(tmp_path)
    with run_python(READER, str(tmp_path)) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "ready\n"
        for version in range(40):
            files.write(version, np.full(500_000, version, np.float32).tobytes())
        assert reader.wait(60) == 0


def test_weights_that_do_not_fit_are_an_error_and_not_a_visible_file(tmp_path):
    """A full tmpfs answers `write` with an error; a mapping would have ended in SIGBUS."""
    files = WeightsFiles(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            files.write(0, bytes(4000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.errno == errno.EFBIG
    with pytest.raises(FileNotFoundError):
        files.map(0)


def test_counters_of_a_page_are_zero_and_apart_from_the_version(page, tmp_path):
    page.publish(2**32 - 2)
    assert page.produced.tolist() == [0, 0, 0]
    page.produced[:] = [1, 2, 2**63]
    again = HostPage(tmp_path / "page", 3)
    assert again.produced.tolist() == [1, 2, 2**63]
    again.wait_version(2**32 - 2)


def test_operator_chooses_where_shared_files_go(monkeypatch):
    monkeypatch.delenv("ROLLOUT_SHM_DIR", raising=False)
    assert shared_memory_directory() == Path("/dev/shm")
    monkeypatch.setenv("ROLLOUT_SHM_DIR", "/run/other")
    assert shared_memory_directory() == Path("/run/other")
    monkeypatch.setenv("ROLLOUT_SHM_DIR", "")
    assert shared_memory_directory() == Path("/dev/shm")


def test_waiting_process_is_not_woken_until_there_is_something(page, tmp_path):
    with run_python(WAITER, str(tmp_path / "page"), "1") as waiter:
        assert waiter.stdout is not None
        assert waiter.stdout.readline() == "ready\n"
        while num_sleeps(waiter.pid) != (before := num_sleeps(waiter.pid)):
            continue  # it is still on its way into the wait
        threading.Event().wait(0.5)  # what is measured is that nothing happens
        sleeps = num_sleeps(waiter.pid) - before
        page.publish(0)
        assert waiter.stdout.readline() == "done\n"
    assert sleeps <= 2, f"it woke up {sleeps} times"


def num_sleeps(pid: int) -> int:
    """How often a process has gone to sleep of its own accord; one that polls does so often."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("voluntary_ctxt_switches:")[2].split()[0])
