"""What Linux offers about processes and Python does not: names, death signals, futexes, limits."""

import contextlib
import ctypes
import os
import platform
import resource
import select
import signal
import time
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)

PR_SET_PDEATHSIG, PR_SET_NAME, PR_SET_CHILD_SUBREAPER = 1, 15, 36
SYS_FUTEX = {"x86_64": 202, "aarch64": 98}  # system call numbers, by machine
FUTEX_WAIT, FUTEX_WAKE = 0, 1
EVERYONE = 2**31 - 1

# One thread each: a process per core is the parallelism, and only one with a single thread may
# fork. One malloc arena: a second one costs each actor another few hundred kilobytes.
SINGLE_THREAD_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
}


def set_name(name: str) -> None:
    """Rename this process; `/proc/PID/comm` shows the first 15 bytes."""
    _libc.prctl(PR_SET_NAME, name.encode(), 0, 0, 0)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it ends.

    parent: the pid expected of the parent; if it is gone already, this process ends here.
    """
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent dies, instead of process 1."""
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def children() -> set[int]:
    """Processes whose parent this one is, ended ones included that nobody has waited for."""
    found: set[int] = set()
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):  # the thread has ended
            found.update(map(int, Path(f"/proc/self/task/{task}/children").read_text().split()))
    return found


def reap(pid: int) -> int | None:
    """How a child ended (os.waitstatus_to_exitcode), None if it has not. Does not wait.

    One that is no child of ours any more has been killed, as far as anybody can still say.
    """
    try:
        ended, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return -signal.SIGKILL
    return os.waitstatus_to_exitcode(status) if ended else None


def state(pid: int) -> str:
    """The letter by which proc(5) names a process's state; "" if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


def open_child_of(pid: int, parent: int) -> int | None:
    """A pidfd of a process, if it is a child of `parent`.

    Its number may belong to another process by now; the descriptor cannot.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return None
    with contextlib.suppress(OSError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        if int(fields[1]) == parent:
            return pidfd
    os.close(pidfd)
    return None


def is_readable(descriptor: int, timeout_s: float = 0.0) -> bool:
    """Whether, within this time, there is something to be read, or the end; of a pidfd, its end."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(1000 * timeout_s))


def ignore_interrupts() -> None:
    """Leave Ctrl-C to the learner, which decides for the whole run."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def num_threads() -> int:
    """Threads of this process."""
    return len(os.listdir("/proc/self/task"))


def raise_open_files_limit() -> int:
    """Raise the limit on file descriptors as far as allowed; returns it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def available_memory_bytes() -> int:
    """What the kernel thinks processes can still take."""
    with open("/proc/meminfo") as file:
        lines = dict(line.split(":", 1) for line in file)
    return int(lines["MemAvailable"].split()[0]) * 1024


def seconds_since_start() -> float:
    """Wall seconds since this process was started by the kernel."""
    with open("/proc/self/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    started = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # field 22 of proc(5), after the boot
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started


def futex_wait(word: ctypes.c_uint32, value: int) -> None:
    """Sleep in the kernel while `word` is `value`; may return early, so callers look again."""
    _libc.syscall(
        SYS_FUTEX[platform.machine()], ctypes.byref(word), FUTEX_WAIT, ctypes.c_uint32(value), None
    )


def futex_wake_all(word: ctypes.c_uint32) -> None:
    """Wake every process that sleeps on `word`, in whichever process it is mapped."""
    _libc.syscall(SYS_FUTEX[platform.machine()], ctypes.byref(word), FUTEX_WAKE, EVERYONE)
