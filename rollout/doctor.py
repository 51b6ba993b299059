"""What this machine can hold, and what to change so that it holds more.

Each check looks at one thing and says what it found; `warn` costs speed or actors, `fail` keeps a
run from starting. Nothing is changed.
"""

import contextlib
import importlib.metadata
import os
import resource
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rollout.cluster import LONGEST_IPC_PATH, SPARE_FILES
from rollout.envs.kernels import cache_directory
from rollout.experiment_tables import usable_cores
from rollout.processes import SINGLE_THREAD_ENVIRONMENT, available_memory_bytes
from rollout.run_places import shared_memory_directory, socket_directory
from rollout.sizes import show_size
from rollout.summary import versions

ACTOR_BYTES = 8 << 20  # what an actor process may take (PSS)
BASE_BYTES = 1 << 30  # learner, host agent and template
SPARE_PROCESSES = 64  # besides the actors: everything else of this user
MANY_ACTORS = 2000  # a limit above this is nothing to warn of
FEW_BYTES = 64 << 20  # of tmpfs: several versions of a large network's weights
NEEDED_BYTES = 1 << 20  # of tmpfs: several versions of a small one's
BUSY = 0.25  # share of the cores that other work may take before it shows

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    next_move: what to do about it; empty when it is fine. max_actors: how many it allows, or None
    if that does not depend on it.
    """

    name: str
    status: Status
    found: str
    next_move: str = ""
    max_actors: int | None = None


def examine() -> list[Check]:
    """Look at everything; takes a second, most of it to import torch."""
    return [
        check_python(),
        check_packages(),
        check_cores(),
        check_load(),
        check_memory(),
        check_open_files(),
        check_processes(),
        check_shared_memory(),
        check_sockets(),
        check_kernel_cache(),
        check_threads(),
        check_jit(),
        check_cuda(),
    ]


def fewest_actors(checks: list[Check]) -> Check | None:
    """The check that allows the fewest actors."""
    limits = [check for check in checks if check.max_actors is not None]
    return min(limits, key=lambda check: check.max_actors or 0, default=None)


def check_python() -> Check:
    return Check("python", "ok", f"{sys.version.split()[0]} ({sys.executable})")


def check_packages() -> Check:
    missing = [name for name in _required() if not _is_installed(name)]
    found = ", ".join(f"{name} {version}" for name, version in versions().items())
    if missing:
        return Check(
            "packages", "fail", f"missing: {', '.join(missing)}", f"pip install {' '.join(missing)}"
        )
    return Check("packages", "ok", found)


def _required() -> list[str]:
    """Names of the packages that rollout depends on, without its extras."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        lines = importlib.metadata.requires("rollout-cluster") or []
        names = (line for line in lines if "extra ==" not in line)
        return ["".join(_leading_name(line)) for line in names]
    return []


def _leading_name(requirement: str) -> Iterator[str]:
    for letter in requirement:
        if not (letter.isalnum() or letter in "-_."):
            return
        yield letter


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def check_cores() -> Check:
    usable, present = usable_cores(), os.cpu_count() or 1
    found = f"{usable} usable of {present}"
    quota = cpu_quota()
    if quota is not None and quota < usable:
        return Check(
            "cores",
            "warn",
            f"{found}, but this container may use the time of only {quota:g}",
            f"set fleet.num_actors={max(int(quota), 1)} (one per core is the default)",
        )
    if usable == 1:
        return Check("cores", "warn", found, "with one core, acting and learning take turns")
    return Check("cores", "ok", found)


def cpu_quota(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Cores' worth of time that this control group may use (versions 2 and 1); None: no limit."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = (root / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError):
        quota = int((root / "cpu/cpu.cfs_quota_us").read_text())
        period = int((root / "cpu/cpu.cfs_period_us").read_text())
        return quota / period if quota > 0 else None
    return None


def check_load() -> Check:
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    found = f"{load:.1f} processes on average in the last minute"
    if load > BUSY * cores:
        return Check(
            "load", "warn", found, "other work is running; speeds will be lower than alone"
        )
    return Check("load", "ok", found)


def check_memory() -> Check:
    available = available_memory_bytes()
    limit = memory_limit()
    found = f"{show_size(available)} available"
    if limit is not None and limit < available:
        available = limit
        found = f"{show_size(limit)} left of this container's limit"
    actors = max((available - BASE_BYTES) // ACTOR_BYTES, 0)
    found += f": about {actors:,} actors of {show_size(ACTOR_BYTES)}"
    if actors < usable_cores():
        return Check("memory", "fail", found, "free some memory", actors)
    return Check("memory", "ok", found, max_actors=actors)


def memory_limit(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes this control group may still use (versions 2 and 1); None: no limit."""
    for most, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):  # ValueError: "max"
            return max(int((root / most).read_text()) - int((root / used).read_text()), 0)
    return None


def check_open_files() -> Check:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    actors = max(hard - SPARE_FILES, 0)
    found = f"limit {hard:,} (soft {soft:,}, raised at start): {actors:,} actors"
    move = "raise the hard limit: `ulimit -Hn` as root, or nofile in /etc/security/limits.conf"
    if actors < usable_cores():
        return Check("open files", "fail", found, move, actors)
    if actors < MANY_ACTORS:
        return Check("open files", "warn", found, move, actors)
    return Check("open files", "ok", found, max_actors=actors)


def check_processes() -> Check:
    most = process_limit()
    if most is None:
        return Check("processes", "ok", "no limit")
    actors = max(most - SPARE_PROCESSES, 0)
    found = f"limit {most:,}: {actors:,} actors"
    if actors < MANY_ACTORS:
        move = "raise `ulimit -u`, or this container's pids limit (docker run --pids-limit)"
        status = "fail" if actors < usable_cores() else "warn"
        return Check("processes", status, found, move, actors)
    return Check("processes", "ok", found, max_actors=actors)


def process_limit(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Processes there may be, of this user or in this control group; None: no limit."""
    limits = []
    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if soft != resource.RLIM_INFINITY and os.geteuid() != 0:  # it does not hold for root
        limits.append(soft)
    for place in (root / "pids.max", root / "pids/pids.max", Path("/proc/sys/kernel/pid_max")):
        with contextlib.suppress(OSError, ValueError):  # ValueError: "max"
            limits.append(int(place.read_text()))
    return min(limits, default=None)


def check_shared_memory() -> Check:
    place = shared_memory_directory()
    move = "set ROLLOUT_SHM_DIR to a directory in a tmpfs"
    try:
        status = os.statvfs(place)
    except OSError as error:
        return Check("shared memory", "fail", f"{place}: {error.strerror}", move)
    free, size = status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize
    kind = file_system_of(place)
    found = f"{place}: {show_size(free)} free of {show_size(size)} ({kind})"
    if not os.access(place, os.W_OK | os.X_OK):
        return Check("shared memory", "fail", f"{found}, not writable", move)
    if free < NEEDED_BYTES:
        return Check("shared memory", "fail", found, f"free some space there, or {move}")
    if kind not in ("tmpfs", "ramfs"):
        return Check("shared memory", "warn", f"{found}: weights go to a disk", move)
    if free < FEW_BYTES:
        larger = "remount it larger (docker run --shm-size=1g)"
        return Check("shared memory", "warn", found, f"for large networks, {larger}")
    return Check("shared memory", "ok", found)


def file_system_of(place: Path, mounts: Path = Path("/proc/self/mounts")) -> str:
    """The kind of file system that holds `place`, by the kernel's name for it."""
    path, best, kind = os.path.realpath(place), "", "unknown"
    with contextlib.suppress(OSError):
        for line in mounts.read_text().splitlines():
            where, what = line.split()[1:3]
            is_above = os.path.commonpath([path, where]) == where
            if is_above and len(where) >= len(best):
                best, kind = where, what
    return kind


def check_sockets() -> Check:
    place = socket_directory()
    longest = len(os.fsencode(place / f"rollout-{'0' * 12}" / "unrolls"))
    found = f"{place}: paths of {longest} bytes, at most {LONGEST_IPC_PATH}"
    move = "set XDG_RUNTIME_DIR or TMPDIR to a short directory of yours, such as /tmp"
    if not os.access(place, os.W_OK | os.X_OK):
        return Check("sockets", "fail", f"{place}: not there, or not writable", move)
    if longest > LONGEST_IPC_PATH:
        return Check("sockets", "fail", found, move)
    return Check("sockets", "ok", found)


def check_kernel_cache() -> Check:
    place = cache_directory()
    there = next(parent for parent in (place, *place.absolute().parents) if parent.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        move = "set ROLLOUT_CACHE_DIR to a directory of yours, or every start compiles for seconds"
        return Check("kernel cache", "warn", f"{place}: not writable", move)
    files = [file for file in place.rglob("*") if file.is_file()] if place.exists() else []
    entries = {file.relative_to(place).parts[0] for file in files if file.parent != place}
    found = f"{place}: {len(entries)} kernels, {show_size(sum(map(_bytes_of, files)))}"
    return Check("kernel cache", "ok", found)


def check_threads() -> Check:
    chosen = [
        f"{name}={os.environ[name]}" for name in SINGLE_THREAD_ENVIRONMENT if name in os.environ
    ]
    found = ", ".join(chosen) or "no variable set"
    return Check("threads", "ok", f"{found}; actors have one each, the learner learner.num_threads")


def check_jit() -> Check:
    if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        return Check(
            "compiling",
            "warn",
            "NUMBA_DISABLE_JIT is set: environments run as plain Python, a thousand times slower",
            "unset NUMBA_DISABLE_JIT, unless you are debugging",
        )
    return Check("compiling", "ok", "environments and policies run compiled")


def check_cuda() -> Check:
    try:
        import torch
    except ImportError as error:
        return Check("learner device", "fail", f"torch: {error}", "pip install torch")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = ", ".join(torch.cuda.get_device_name(n) for n in range(count))
    if count:
        return Check("learner device", "ok", f"{count} CUDA device(s): {names}")
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    return Check("learner device", "ok", f"cpu (torch sees no CUDA device; it is {built})")


def _bytes_of(file: Path) -> int:
    """0 if it has just been renamed, as entries of the cache are when they are whole."""
    with contextlib.suppress(FileNotFoundError):
        return file.stat().st_size
    return 0
