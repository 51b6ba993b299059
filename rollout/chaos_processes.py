"""What can be seen of a run from outside, and done to it: processes to signal, actors that act.

Processes are known by the run's name on their command lines and by their names; what actors do is
read from their host's page. A run that is resumed has another name, a host agent that is started
again another page: `RunWatch.look` finds out.
"""

import contextlib
import os
import re
import signal
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec
import numpy as np

from rollout import processes
from rollout.chaos_faults import Kind
from rollout.host_memory import HostPage, host_page_bytes
from rollout.plan import HostPlan
from rollout.run_places import shared_memory_directory, socket_directory

COMMS = {  # by /proc/PID/comm
    "rollout-actor": Kind.actor,
    "rollout-templ": Kind.template,
    "rollout-host": Kind.host,
}
LOOK_EVERY_S = 0.02  # for pages and names, which change seldom
ACTOR_ENDED = re.compile(rb"rollout.hosts: actor (\d+) \(process (\d+)\) ")
OTHERS_ENDED = {  # by what the run's log says of it
    "templates": b"rollout.hosts: the template process ended",
    "hosts": b"rollout.hosts: the host agent process ended",
}


class RunWatch:
    """One run's processes and its local actors' numbers. `look` before anything else is asked.

    names: of all lives of the run so far. page_number: counts the pages there have been; `page` is
    the newest, None before the first. deaths: actor numbers by pid of those that the run knows to
    be dead. num_deaths: of each kind of process, as the run's log tells. Of a host agent that died
    it tells once, and not of each of its actors; the summary's actor_restarts has those, but only
    since the run was last resumed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.plan: HostPlan | None = None
        self.names: list[str] = []
        self.page: HostPage | None = None
        self.page_number = 0
        self.deaths: dict[int, int] = {}
        self.num_deaths = dict.fromkeys(("actors", *OTHERS_ENDED), 0)
        self._pages: set[Path] = set()  # directories whose pages have been seen
        self._looked_s = 0.0
        self._log_offset = 0
        self._log_rest = b""

    def __repr__(self) -> str:
        return f"RunWatch({str(self.path)!r}, {self.names}, page {self.page_number})"

    @property
    def version(self) -> int:
        """Updates so far: the newest weights version its host has; -1 before the first."""
        return -1 if self.page is None else self.page.version

    def look(self, at_once: bool = False) -> None:
        """Notice what has changed; not more often than is worth it, unless `at_once`."""
        now_s = time.monotonic()
        if not at_once and now_s < self._looked_s + LOOK_EVERY_S:
            return
        self._looked_s = now_s
        with contextlib.suppress(OSError, msgspec.DecodeError):
            plan = msgspec.msgpack.decode((self.path / "fleet.msgpack").read_bytes(), type=HostPlan)
            if plan.name not in self.names:
                self.names.append(plan.name)
                self.plan = plan
        if self.plan is not None:
            self._look_for_page(self.plan)
        self._read_log()

    def _look_for_page(self, plan: HostPlan) -> None:
        for directory in self._directories(shared_memory_directory(), [plan.name]):
            if directory in self._pages:
                continue
            with contextlib.suppress(OSError, ValueError):
                page = directory / "page"
                if page.stat().st_size == host_page_bytes(plan.num_actors):
                    self.page = HostPage(page, plan.num_actors)
                    self.page_number += 1
                    self._pages.add(directory)

    def _read_log(self) -> None:
        """Which actor a process was is told in the run's log, once it is dead."""
        with contextlib.suppress(OSError), open(self.path / "run.log", "rb") as file:
            file.seek(self._log_offset)
            content = file.read()
            self._log_offset += len(content)
            *lines, self._log_rest = (self._log_rest + content).split(b"\n")
            for line in lines:
                for actor, pid in ACTOR_ENDED.findall(line):
                    self.deaths[int(pid)] = int(actor)
                    self.num_deaths["actors"] += 1
                for name, text in OTHERS_ENDED.items():
                    self.num_deaths[name] += text in line

    def pids(self) -> dict[Kind, list[int]]:
        """The host's living processes, by role, of the run's present life.

        A child that has only just been forked is no template, though its name still says so.
        """
        found: dict[Kind, list[int]] = {role: [] for role in COMMS.values()}
        if self.plan is None:
            return found
        for pid, comm, _ in _processes_of([self.plan.name]):
            if comm in COMMS:
                found[COMMS[comm]].append(pid)
        hosts, templates = found[Kind.host], found[Kind.template]
        found[Kind.template] = [pid for pid in templates if _parent(pid) in hosts]
        return found

    def open(self, pid: int, role: Kind) -> int | None:
        """A pidfd of what is surely this process of the run; None if it has ended."""
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            return None
        if pid in self.pids()[role]:
            return pidfd
        os.close(pidfd)
        return None

    def leftovers(self) -> list[str]:
        """Processes and files of any life of the run that are still there."""
        left = [f"process {pid} ({comm})" for pid, comm, _ in _processes_of(self.names)]
        for parent in {shared_memory_directory(), socket_directory()}:
            left += map(str, self._directories(parent, self.names))
        if (self.path / "fleet.msgpack").exists():
            left.append(str(self.path / "fleet.msgpack"))
        return left

    def _directories(self, parent: Path, names: Iterable[str]) -> list[Path]:
        wanted = tuple(f"rollout-{name}" for name in names)
        with contextlib.suppress(OSError):
            return sorted(
                Path(entry)
                for entry in os.scandir(parent)
                if wanted and entry.name.startswith(wanted)
            )
        return []


class ActingAgain:
    """Whether, and when, actors have acted since some moment, though processes died meanwhile.

    acted_ns: int64 [actors], by time.monotonic_ns; 0: not yet.
    """

    def __init__(self, watch: RunWatch, num_actors: int, on_new_page: bool) -> None:
        """From now on. on_new_page: what the present page says does not count at all."""
        self._since_ns = time.monotonic_ns()
        self._page_number = watch.page_number
        self._on_new_page = on_new_page
        self._produced = (
            np.zeros(num_actors, np.int64) if watch.page is None else watch.page.produced()
        )
        self.acted_ns = np.zeros(num_actors, np.int64)

    def look(self, watch: RunWatch) -> None:
        page = watch.page
        if page is None:
            return
        produced, began_ns = page.produced(), page.slots["began_ns"]
        if watch.page_number == self._page_number:
            if self._on_new_page:
                return
            has_acted = (produced > self._produced) | (began_ns > self._since_ns)
        else:
            has_acted = (produced > 0) | (began_ns > 0)
        self.acted_ns[has_acted & (self.acted_ns == 0)] = time.monotonic_ns()

    def when_ns(self, actor: int | None) -> int | None:
        """When this actor, or else the last of all of them, acted first; None if not yet."""
        acted_ns = self.acted_ns
        if actor is not None and actor < len(acted_ns):
            acted_ns = acted_ns[actor : actor + 1]
        return int(acted_ns.max()) if acted_ns.all() else None


def send(pidfd: int, number: int) -> bool:
    """Whether the process was there to get the signal."""
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return False
    return True


def wait_ended(pidfds: Iterable[int], timeout_s: float) -> None:
    """Wait until all these processes have ended."""
    deadline = time.monotonic() + timeout_s
    for pidfd in pidfds:
        processes.is_readable(pidfd, max(0.0, deadline - time.monotonic()))


def _processes_of(names: Iterable[str]) -> list[tuple[int, str, list[bytes]]]:
    """Pid, name and command line of what has one of the names in it, and has not ended."""
    wanted = {name.encode() for name in names}
    found = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):  # it has ended meanwhile
            arguments = Path(entry, "cmdline").read_bytes().split(b"\0")
            if wanted.isdisjoint(arguments):
                continue
            state = Path(entry, "stat").read_text().rpartition(")")[2].split()[0]
            if state not in "ZX":
                comm = Path(entry, "comm").read_text().strip()
                found.append((int(entry.name), comm, arguments))
    return found


def _parent(pid: int) -> int | None:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return None
