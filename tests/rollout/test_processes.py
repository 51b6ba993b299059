"""What Linux offers about processes."""

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rollout import processes


def run_python(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=30
    )


def test_name_of_a_process_is_shown_by_the_system():
    done = run_python(
        "from rollout.processes import set_name; set_name('rollout-learner')\n"
        "print(open('/proc/self/comm').read().strip())"
    )
    assert done.stdout == "rollout-learner\n", done.stderr


CHILD = """
import os, sys, time
from rollout.processes import die_with_parent
parent = os.getpid()
read, write = os.pipe()
pid = os.fork()
if pid == 0:
    die_with_parent(parent)
    print(os.getpid(), flush=True)
    time.sleep(60)
    os._exit(0)
sys.stdin.read()
os.kill(parent, 9)
"""


def test_child_dies_with_its_parent():
    with subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdin is not None and parent.stdout is not None
        child = os.pidfd_open(int(parent.stdout.readline()))
        parent.stdin.close()
        # A pidfd can be read once its process has ended.
        import select

        assert select.select([child], [], [], 10)[0], "the child lives on"
        os.close(child)


def test_child_whose_parent_is_gone_already_ends_at_once():
    done = run_python(
        "from rollout.processes import die_with_parent\ndie_with_parent(1)\nprint('still here')"
    )
    assert (done.returncode, done.stdout) == (1, "")


def test_interrupts_are_left_to_others():
    done = run_python(
        "import os, signal\nfrom rollout.processes import ignore_interrupts\n"
        "ignore_interrupts()\nos.kill(os.getpid(), signal.SIGINT)\nprint('still here')"
    )
    assert (done.returncode, done.stdout) == (0, "still here\n")


def test_limit_of_open_files_is_raised_to_the_hard_one():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(100, before[1]), before[1]))
    try:
        assert processes.raise_open_files_limit() == before[1]
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_threads_are_counted():
    done = run_python(
        "import threading\nfrom rollout.processes import num_threads\nprint(num_threads())\n"
        "threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "print(num_threads())"
    )
    assert done.stdout == "1\n2\n", done.stderr


def test_seconds_since_start_begin_with_the_process_and_not_with_the_import():
    started = time.monotonic()
    done = run_python(
        "import time\ntime.sleep(0.3)\n"
        "from rollout.processes import seconds_since_start\nprint(seconds_since_start())"
    )
    seconds = float(done.stdout)
    # The kernel tells the start in ticks of 10 ms.
    assert 0.28 < seconds < time.monotonic() - started + 0.02


@pytest.mark.parametrize("module", ["rollout.host", "rollout.template", "rollout.actor"])
def test_processes_of_a_host_import_none_of_the_learners_libraries(module):
    done = run_python(f"import sys, {module}\nprint(*sys.modules)")
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "rollout" in loaded, done.stderr
    assert loaded.isdisjoint({"torch", "pydantic", "typer", "rich", "tensorboard"})


@pytest.mark.parametrize("module", ["rollout.host", "rollout.template"])
def test_process_without_a_plan_ends_quietly(module):
    """As when its parent was killed before it could say what to do."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", module, str(os.getpid())],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=30,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_host_agent_whose_learner_dies_before_reading_on_removes_the_runs_directories(
    make_plan, places
):
    """The pipe closes right behind the plan: template and files must go all the same."""
    from rollout.plan import HostStart, write_record

    plan = make_plan()
    agent = subprocess.Popen(
        [sys.executable, "-P", "-m", "rollout.host", plan.name], stdin=subprocess.PIPE
    )
    assert agent.stdin is not None
    write_record(agent.stdin.fileno(), HostStart(plan))
    agent.stdin.close()
    assert agent.wait(10) == 0
    assert not Path(plan.socket_directory).exists()
    assert not Path(plan.memory_directory).exists()
    places.assert_gone()


ORPHANS = """
import os, sys, time
from rollout.processes import adopt_orphans, children, reap
assert children() == set()
adopt_orphans()
child = os.fork()
if child == 0:
    grandchild = os.fork()
    if grandchild == 0:
        time.sleep(60)
    print(grandchild, flush=True)
    os._exit(3)
grandchild = int(sys.stdin.readline())
os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
assert children() == {child, grandchild}, "a zombie is a child, too"
assert reap(child) == 3
assert children() == {grandchild}
assert reap(grandchild) is None
os.kill(grandchild, 15)
os.waitid(os.P_PID, grandchild, os.WEXITED | os.WNOWAIT)
assert reap(grandchild) == -15
assert reap(grandchild) == -9, "nobody can say"
assert children() == set()
print("good")
"""


def test_children_of_a_dead_child_become_ones_own():
    with subprocess.Popen(
        [sys.executable, "-c", ORPHANS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdin is not None and parent.stdout is not None
        parent.stdin.write(parent.stdout.readline())
        parent.stdin.flush()
        assert parent.stdout.readline() == "good\n"


def test_only_a_living_child_of_the_parent_is_opened():
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        assert processes.open_child_of(child.pid, os.getppid()) is None
        pidfd = processes.open_child_of(child.pid, os.getpid())
        assert pidfd is not None
        assert not processes.is_readable(pidfd)
        child.communicate()
        assert processes.is_readable(pidfd, 10)
        os.close(pidfd)
    assert processes.open_child_of(child.pid, os.getpid()) is None


def test_pipe_is_readable_when_there_is_something_or_its_end():
    read, write = os.pipe()
    assert not processes.is_readable(read)
    os.write(write, b"x")
    assert processes.is_readable(read)
    os.read(read, 1)
    assert not processes.is_readable(read, 0.01)
    os.close(write)
    assert processes.is_readable(read)
    os.close(read)
