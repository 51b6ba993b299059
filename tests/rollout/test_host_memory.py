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
from hypothesis import given
from hypothesis import strategies as st

from rollout.host_memory import FADING, NOWHERE, HostPage, Moment, Slot, WeightsFiles
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
        assert page.wait_version(version, cut=0, unroll=0)


def test_page_without_a_version_lets_nobody_through(page):
    done = threading.Event()

    def wait() -> None:
        page.wait_version(0, cut=0, unroll=0)
        done.set()

    waiter = threading.Thread(target=wait, daemon=True)
    waiter.start()
    assert not done.wait(0.05)
    page.publish(0)
    assert done.wait(10)


WAITER = """
import sys
from pathlib import Path
from rollout.host_memory import HostPage, Slot
page = HostPage(Path(sys.argv[1]), 3)
slot = Slot(page, 1)
print("ready", flush=True)
goes_on = page.wait_version(int(sys.argv[2]), cut=3, unroll=int(sys.argv[3]))
slot.count(10)
print(goes_on, flush=True)
"""


def test_publication_wakes_a_waiter_in_another_process(page, tmp_path):
    with run_python(WAITER, str(tmp_path / "page"), "0", "0") as waiter:
        assert waiter.stdout is not None
        assert waiter.stdout.readline() == "ready\n"
        page.publish(0)
        assert waiter.stdout.readline() == "True\n"
    assert page.produced().tolist() == [0, 1, 0]
    assert page.produced_steps().tolist() == [0, 10, 0]


def test_cut_wakes_a_waiter_in_another_process_and_sends_it_home(page, tmp_path):
    page.publish_cut(3, 0)
    with run_python(WAITER, str(tmp_path / "page"), "7", "20") as waiter:
        assert waiter.stdout is not None
        assert waiter.stdout.readline() == "ready\n"
        page.publish_cut(4, 20)
        assert waiter.stdout.readline() == "False\n"


@pytest.mark.parametrize(
    ("cut", "unroll", "goes_on"), [(4, 19, True), (4, 20, False), (4, 21, False), (5, 99, True)]
)
def test_share_of_an_older_cut_is_acted_up_to_the_newer_ones_first_unroll(
    page, cut, unroll, goes_on
):
    page.publish(7)
    page.publish_cut(5, 20)
    assert page.wait_version(7, cut=cut, unroll=unroll) == goes_on


def test_cut_sends_home_even_where_the_version_is_there(page):
    """Its unroll is the next owner's, who may begin it as well."""
    page.publish(100)
    page.publish_cut(1, 0)
    assert not page.wait_version(0, cut=0, unroll=0)


def test_share_of_two_cuts_ago_is_over_wherever_the_newest_cut_begins(page):
    """Who was slow sees only the newest: the one between was over before that was told."""
    page.publish(100)
    page.publish_cut(4, 5)
    page.publish_cut(5, 9)
    assert not page.wait_version(4, cut=3, unroll=5)
    assert page.wait_version(4, cut=4, unroll=5)


STRESS = """
import os, sys, tempfile
from pathlib import Path
from rollout.host_memory import HostPage, Slot
WAITERS, VERSIONS = 24, 300
page = HostPage(Path(sys.argv[1]) / "page", WAITERS, create=True)
parent_turn = os.pipe()
pids = []
for actor in range(WAITERS):
    pid = os.fork()
    if pid == 0:
        slot = Slot(page, actor)
        for version in range(VERSIONS):
            page.wait_version(version, cut=0, unroll=version)
            slot.count(1)
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
print(sum(os.waitpid(pid, 0)[1] for pid in pids), int(page.produced().sum()))
"""


def test_no_wakeup_is_lost_between_many_waiters_and_many_versions(tmp_path):
    """A waiter that slept through a publication would sleep for good: the test would time out."""
    with run_python(STRESS, str(tmp_path)) as stress:
        output, _ = stress.communicate(timeout=60)
    assert output.split() == ["0", str(24 * 300)]


def test_kernel_compares_with_the_value_that_was_looked_at(page, monkeypatch):
    """A publication between look and sleep must be noticed: with any other value it would not."""
    compared = []

    def look(page: HostPage) -> int:
        if not compared:
            monkeypatch.undo()
            monkeypatch.setattr("rollout.host_memory.futex_wait", compare)
            page.publish(0)  # right after the look, which has not seen it
        return -1

    def compare(word: ctypes.c_uint32, value: int) -> None:
        compared.append((value, word.value))

    monkeypatch.setattr(HostPage, "version", property(look))
    page.wait_version(0, cut=0, unroll=0)
    assert compared == [(0, 1)]


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
    page.publish_cut(7, 2**40)
    assert page.produced().tolist() == page.produced_steps().tolist() == [0, 0, 0]
    page.slots["produced"] = [1, 2, 2**62]
    page.slots["produced_steps"] = [[0, 5], [6, 0], [2**62, 0]]
    again = HostPage(tmp_path / "page", 3)
    assert again.produced().tolist() == [1, 2, 2**62]
    assert again.produced_steps().tolist() == [5, 6, 2**62]
    assert again.cut == (7, 2**40)
    assert again.wait_version(2**32 - 2, cut=7, unroll=0)


def test_changes_wrap_around(page):
    page.publish(0)
    page._word.value = 2**32 - 1
    page.publish(1)
    assert page._word.value == 0 and page.wait_version(1, cut=0, unroll=0)


@given(st.lists(st.integers(0, 2**40), max_size=30), st.integers(0, 30))
def test_counts_go_on_from_life_to_life(tmp_path_factory, unrolls, deaths):
    page = HostPage(tmp_path_factory.mktemp("page") / "page", 2, create=True)
    slot = Slot(page, 1)
    for i, steps in enumerate(unrolls):
        if i == deaths:
            slot = Slot(page, 1)
        slot.begin(i)
        slot.count(steps)
        assert slot.produced == (i + 1, sum(unrolls[: i + 1]))
    assert page.produced().tolist() == [0, len(unrolls)]
    assert page.produced_steps().tolist() == [0, sum(unrolls)]


def test_dead_actor_leaves_where_it_was_and_the_next_life_is_nowhere(page):
    slot = Slot(page, 2)
    slot.begin(17)
    slot.position[0] = 23
    slot.count(10)
    assert page.end_life(2) == Moment(NOWHERE, 17), "its unroll was sealed"
    slot.begin(18)
    assert page.end_life(2) == Moment(NOWHERE, 18), "it had not begun to step"
    slot.begin(19)
    slot.position[0] = 4
    assert page.end_life(2) == Moment(4, 19)
    assert not page.slots["began_ns"].any(), "nobody can take it for one that hangs"
    assert page.end_life(2) == Moment(NOWHERE, 19)
    slot.begin(20)
    slot.position[0], slot.episode[:] = 5, (7, 199)
    assert page.end_life(2) == Moment(5, 20, 7, 199)
    slot.begin(21)
    slot.position[0], slot.episode[:] = 5, (7, 200)
    slot.rest()
    assert page.end_life(2) == Moment(NOWHERE, 21), "nothing of the former episode is left"
    assert page.end_life(0) == Moment(NOWHERE, 0)


def test_longest_unroll_is_kept_and_fades(page, monkeypatch):
    times = iter([100, 150, 200, 900, 1000, 1010])
    monkeypatch.setattr("rollout.host_memory.time.monotonic_ns", lambda: next(times))
    slot = Slot(page, 0)
    for _ in range(3):
        slot.begin(0)
        slot.count(1)
    assert page.slots["longest_ns"].tolist() == [int(700 * FADING), 0, 0]


KILLER = """
import os, random, signal, sys, time
from pathlib import Path
from rollout.host_memory import HostPage, Slot
page = HostPage(Path(sys.argv[1]) / "page", 1, create=True)
chance = random.Random(0)
for life in range(300):
    before = int(page.produced()[0])
    pid = os.fork()
    if pid == 0:
        slot = Slot(page, 0)
        while True:
            slot.begin(0)
            slot.count(1 + slot.produced[0] % 1000)
    time.sleep(chance.uniform(0, 0.005))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    produced, steps = int(page.produced()[0]), int(page.produced_steps()[0])
    assert produced >= before
    whole, rest = divmod(produced, 1000)
    assert steps == whole * 500_500 + rest * (rest + 1) // 2, (produced, steps)
print(produced)
"""


def test_counts_are_right_at_whatever_instruction_an_actor_is_killed(tmp_path):
    with run_python(KILLER, str(tmp_path)) as killer:
        output, _ = killer.communicate(timeout=60)
    assert killer.returncode == 0
    assert int(output) > 10_000, "they hardly got to do anything"


def test_weights_that_could_not_be_written_leave_no_part_of_them_behind(tmp_path):
    files = WeightsFiles(tmp_path)
    files.path(3).mkdir()  # in the way
    with pytest.raises(OSError, match="directory"):
        files.write(3, bytes(4000))
    assert list(tmp_path.iterdir()) == [files.path(3)]


def test_newest_weights_are_mapped_whatever_is_removed_meanwhile(page, tmp_path, monkeypatch):
    files = WeightsFiles(tmp_path)
    for version in (4, 5):
        files.write(version, np.full(10, version, np.float32).tobytes())
    page.publish(4)
    files.remove(4)
    page.publish(5)
    versions = iter([4, 5])
    monkeypatch.setattr(HostPage, "version", property(lambda _: next(versions)))
    version, weights = files.map_newest(page)
    assert version == 5 and (weights == 5).all()


def test_waiting_process_is_not_woken_until_there_is_something(page, tmp_path):
    with run_python(WAITER, str(tmp_path / "page"), "0", "0") as waiter:
        assert waiter.stdout is not None
        assert waiter.stdout.readline() == "ready\n"
        while num_sleeps(waiter.pid) != (before := num_sleeps(waiter.pid)):
            continue  # it is still on its way into the wait
        threading.Event().wait(0.5)  # what is measured is that nothing happens
        sleeps = num_sleeps(waiter.pid) - before
        page.publish(0)
        assert waiter.stdout.readline() == "True\n"
    assert sleeps <= 2, f"it woke up {sleeps} times"


def num_sleeps(pid: int) -> int:
    """How often a process has gone to sleep of its own accord; one that polls does so often."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("voluntary_ctxt_switches:")[2].split()[0])
